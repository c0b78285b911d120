"""Weights from files, checked in full before any of them reaches the network."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from curlfx.errors import WeightsError, did_you_mean
from curlfx.sources.factory import describe

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the weights beside other things."""
PREFIXES = ("module.", "_orig_mod.")
"""What data parallel training and ``torch.compile`` put in front of every name."""
SHOWN = 3
REMEDY = "give the network that these weights were made for"
HEAD_REMEDY = "or take all but the head: new_head=true in a run, which trains it on the data"


def load_weights(model: nn.Module, path: Path, *, new_head: bool = False) -> tuple[str, ...]:
    """Copy the weights in ``path`` into ``model``; return the names that kept their own values.

    Args:
        model: Changed in place, and only when everything fits.
        path: ``.safetensors``, or a pickle (``.pth``, ``.pt``, …), which is read without executing anything in it.
        new_head: Let the last weight and its bias keep their own values where the file's are for another class count.

    Raises: WeightsError naming the tensor, what was found and what is wanted.
    """
    return copy_weights(model, read_weights(path), str(path), new_head=new_head)


def copy_weights(
    model: nn.Module, found: Mapping[str, Tensor], origin: str, *, new_head: bool = False
) -> tuple[str, ...]:
    """Copy ``found`` into ``model`` as `load_weights` does; ``origin`` stands for the file in messages.

    Raises: WeightsError, before anything is copied.
    """
    wanted = model.state_dict()
    head = _other_head(found, wanted)
    fresh = head if new_head else ()
    _check_names(origin, found, wanted)
    for name, tensor in wanted.items():
        if name in found and name not in fresh and found[name].shape != tensor.shape:
            shapes = f"is {tuple(found[name].shape)}, the network wants {tuple(tensor.shape)}"
            remedy = f"{REMEDY}, {HEAD_REMEDY}" if name in head else REMEDY
            raise WeightsError(f"{origin}: {name} {shapes}; {remedy}")
    model.load_state_dict({name: tensor for name, tensor in found.items() if name not in fresh}, strict=False)
    return fresh


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in ``path`` by name, without wrappers and prefixes; all are finite.

    Raises: WeightsError when the file is missing, damaged, executes code, holds no weights, or holds NaN or infinity.
    """
    if not path.is_file():
        raise WeightsError(f"no weights file {path}")
    if path.suffix == ".safetensors":
        content: object = _read_safetensors(path)
    elif path.suffix in PICKLES:
        content = _read_pickle(path)
    else:
        raise WeightsError(f"{path}: want .safetensors, or one of {', '.join(PICKLES)}")
    state = _plain_names(_unwrapped(content, path))
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            bad = int((~torch.isfinite(tensor.float())).sum())
            raise WeightsError(f"{path}: {name} holds {bad} values that are NaN or infinite, of {tensor.numel()}")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as cause:
        raise WeightsError(f"{path} is no readable safetensors file: {describe(cause)}") from cause


def _read_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write; they are refused or they load
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as cause:
        raise WeightsError(f"{path} {_refused(str(cause))}; save model.state_dict(), best as .safetensors") from cause
    except Exception as cause:  # a damaged pickle raises whatever its bytes run into
        raise WeightsError(f"{path} is no readable torch file: {describe(cause)}") from cause
    return content


def _refused(message: str) -> str:
    code = re.search(r"GLOBAL ([\w.]+)", message)
    if code is not None:
        return f"holds more than weights: reading it would execute code ({code[1]})"
    return "was not written by torch.save or is damaged, and reading it further could execute code"


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds {type(content).__name__}, want names with tensors: model.state_dict()")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{path}: {name!r} is {type(value).__name__}, want a tensor: save model.state_dict() alone"
            )
    return dict(content)


def _plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _plain_names({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def _check_names(origin: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    # Files from before BatchNorm counted its batches lack the counter, which nothing in inference reads.
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    if not missing and not unexpected:
        return
    parts = []
    if missing:
        parts.append(f"lacks {_listed(missing)}")
    if unexpected:
        parts.append(f"has {_listed(unexpected)}, which the network has not{did_you_mean(unexpected[0], wanted, 3)}")
    raise WeightsError(f"{origin} {' and '.join(parts)}; {REMEDY}")


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {more} more" if more > 0 else "")


def _other_head(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return what differs only in its first axis, and there as the last weight does: heads for another class count."""
    weights = [name for name, tensor in wanted.items() if name.endswith("weight") and tensor.dim() >= 2]
    if not weights or weights[-1] not in found:
        return ()
    classes = (len(found[weights[-1]]), len(wanted[weights[-1]]))
    if classes[0] == classes[1]:
        return ()
    both = [
        (name, found[name].shape, tensor.shape) for name, tensor in wanted.items() if name in found and tensor.dim()
    ]
    return tuple(name for name, old, new in both if (*old[:1], *new[:1]) == classes and old[1:] == new[1:])
