"""The dense network and the images of programs that train: as the command line names them."""

import argparse
import re
from pathlib import Path

import safetensors.torch
import torch
from records import Lines, called
from torch import nn

from curlfx.recovery import TrainSettings, fit
from curlfx.sources import DataSource, input_shape, load_data, load_model, load_weights

__all__ = ["dense_file", "dense_network", "images_for"]


def images_for(arguments: argparse.Namespace, limit: int | None) -> DataSource:
    """The data (``--data``, ``--size``), or every class's share of ``limit`` images of it."""
    spec, size = arguments.data, arguments.size
    shape = input_shape(arguments.model) if size is None else (3, size, size)
    return load_data(f"imagefolder:{spec}" if Path(spec).is_dir() else spec, shape=shape, limit=limit)


def dense_network(arguments: argparse.Namespace, data: DataSource) -> nn.Module:
    """The dense network (``--model``, ``--weights``); with ``--train-epochs`` trained on ``data`` first, once."""
    torch.manual_seed(0)
    model = load_model(arguments.model, num_classes=data.num_classes, weights=arguments.weights)
    if not arguments.train_epochs:
        return model.eval()
    file = dense_file(arguments)
    if file.exists():
        load_weights(model, file)
        return model.eval()
    settings = TrainSettings(
        epochs=arguments.train_epochs, lr=0.1, batch_size=128, distillation=0, device=arguments.device
    )
    fit(model, data.loader("train", settings.batch_size, augment=True, shuffle=True), settings, progress=Lines("dense"))
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return model.eval()


def dense_file(arguments: argparse.Namespace) -> Path:
    """Where a trained dense network is kept, beside the record; its name has all that it was trained from."""
    parts = ["dense", arguments.model, called(arguments.data), f"epochs{arguments.train_epochs}"]
    parts += [f"images{arguments.train_limit}"] * (arguments.train_limit is not None)
    parts += [f"size{arguments.size}"] * (arguments.size is not None)
    parts += [f"from-{called(arguments.weights)}"] * (arguments.weights is not None)
    name = "-".join(re.sub(r"\W+", "-", str(part)) for part in parts)
    return arguments.record.parent / f"{name}.safetensors"
