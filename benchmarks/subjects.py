"""The dense network and the images of programs that train: as the command line names them."""

import argparse
import re
import sys
from collections.abc import Collection
from pathlib import Path

import safetensors.torch
import torch
from records import Lines, called
from torch import nn

from curlfx.recovery import TrainSettings, fit
from curlfx.sources import DataSource, input_shape, load_data, load_model, load_weights

__all__ = ["add_dense", "add_machine", "chosen", "dense_file", "dense_network", "images_for"]


def add_dense(parser: argparse.ArgumentParser, model: str) -> None:
    """Arguments that name the dense network and its images."""
    parser.add_argument("--data", required=True, help="image folder with train/ and test/, or a DATA specification")
    parser.add_argument("--weights", help="weights of the dense network (.safetensors)")
    parser.add_argument("--model", default=model)
    parser.add_argument("--train-epochs", type=int, default=0, help="train the dense network first, once")
    parser.add_argument("--size", type=int, help="pixels per side of a colour image (default: the network's own)")
    parser.add_argument("--train-limit", type=int, help="training images, classes balanced (default all)")
    parser.add_argument("--test-limit", type=int, help="test images, classes balanced (default all)")


def add_machine(parser: argparse.ArgumentParser, record: Path) -> None:
    """Arguments that say where to train and where to write."""
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--record", type=Path, default=record, help="finished rows, one JSON object per line")
    parser.add_argument("--out", type=Path, help="write what is printed to this Markdown file too")


def chosen(arguments: argparse.Namespace, known: Collection[str]) -> tuple[list[str], list[int]]:
    """The arms and the seeds of ``--arms`` and ``--seeds``, threads set; ends the program where an arm is unknown."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arms = arguments.arms.split(",")
    if unknown := [arm for arm in arms if arm not in known]:
        sys.exit(f"--arms {','.join(unknown)}: want some of {', '.join(known)}")
    return arms, [int(seed) for seed in arguments.seeds.split(",")]


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
    epochs = arguments.train_epochs
    settings = TrainSettings(
        epochs=epochs,
        lr=0.1,
        warmup_epochs=min(1.0, epochs / 10),
        batch_size=128,
        distillation=0,
        device=arguments.device,
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
