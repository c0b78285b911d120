"""Networks from specifications: ``torchvision:NAME``, ``timm:NAME``, ``curlfx:NAME``, ``file.py:factory``, …"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from curlfx.errors import CurlfxError, ModelError, did_you_mean, near_names
from curlfx.models import MODELS
from curlfx.sources.factory import describe, load_attribute
from curlfx.sources.weights import copy_weights, load_weights

Build = Callable[[str, int | None, bool], nn.Module]
"""From a name, a class count (none takes the network's own) and whether to take the published weights."""

PUBLISHED = "default"
"""The ``weights`` that stand for the ones the library itself publishes for the network (they are downloaded)."""

INPUT_SHAPES: Mapping[str, tuple[int, int, int]] = MappingProxyType({"curlfx:digits": (1, 8, 8)})
"""Shape of one image ``(C, H, W)`` for networks of ours; the CIFAR networks take ``(3, 32, 32)``."""


def load_model(spec: str, num_classes: int | None = None, weights: str | Path | None = None) -> nn.Module:
    """Return the network that ``spec`` names, in eval mode, on the CPU.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``curlfx:NAME``, ``file.py:factory`` or ``package.module:factory``.
        num_classes: Size of the head, for factories that take it; others keep their own.
        weights: File for `load_weights`; ``"default"`` takes the published weights; none leaves the random ones.

    Raises: ModelError when ``spec`` names nothing or its factory fails; WeightsError from `load_weights`.
    """
    kind, name = _parts(spec)
    build = BUILDERS.get(kind)
    published = weights == PUBLISHED
    if build is not None:
        model = build(name, num_classes, published)
    elif published:
        raise ModelError(f"model {spec}: no published weights are known; give weights=FILE")
    else:
        model = _from_factory(spec, num_classes)
    if weights is not None and not published:
        load_weights(model, Path(weights))
    return model.eval()


def input_shape(spec: str) -> tuple[int, int, int] | None:
    """Return the shape of one image ``(C, H, W)`` that the network was made for, where that is on record.

    Source: the published evaluation crop of torchvision, the configuration of timm, an attribute ``input_shape`` of a
    factory. Raises: ModelError when ``spec`` names nothing.
    """
    kind, name = _parts(spec)
    if kind == "curlfx":
        return INPUT_SHAPES.get(spec, (3, 32, 32))
    if kind == "torchvision":
        return _torchvision_shape(name)
    size: object = (
        _timm_shape(name)
        if kind == "timm"
        else getattr(load_attribute(spec, ModelError, BUILDERS), "input_shape", None)
    )
    if not isinstance(size, tuple | list) or len(size) != 3:
        return None
    channels, height, width = size
    return int(channels), int(height), int(width)


def _parts(spec: str) -> tuple[str, str]:
    """What stands before and behind the colon of a specification. Raises: ModelError where one is missing."""
    kind, separator, name = spec.partition(":")
    if not separator or not name:
        known = ", ".join(f"{prefix}:NAME" for prefix in BUILDERS)
        raise ModelError(f"model {spec!r}: want {known}, file.py:factory or package.module:factory{_near(spec)}")
    return kind, name


def _timm_shape(name: str) -> object:
    configuration = _timm(name).get_pretrained_cfg(name)
    return configuration.input_size if configuration is not None else None


def _torchvision_shape(name: str) -> tuple[int, int, int]:
    import torchvision.models as zoo

    if name not in zoo.list_models():
        raise ModelError(f"model torchvision:{name}: no such network{did_you_mean(name, zoo.list_models(), 3)}")
    if name in zoo.list_models(module=zoo.detection):
        side = next((int(size) for size in ("300", "320") if size in name), 800)  # their transforms scale images to it
        return 3, side, side
    weights = next(iter(zoo.get_model_weights(name)), None)
    crop = getattr(getattr(weights, "transforms", dict)(), "crop_size", None)
    return (3, int(crop[0]), int(crop[0])) if crop else (3, 224, 224)


def _near(name: str) -> str:
    """What a name without a prefix may stand for: itself with one, or a name that is spelt nearly so."""
    prefixes = ("curlfx", "torchvision")
    near = [f"{prefix}:{name}" for prefix in prefixes if name in model_names(prefix)]
    for prefix in () if near else prefixes:
        near += [f"{prefix}:{one}" for one in near_names(name, model_names(prefix))]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _from_curlfx(name: str, num_classes: int | None, published: bool) -> nn.Module:
    if name not in MODELS:
        raise ModelError(f"model curlfx:{name}: there are {', '.join(MODELS)}{did_you_mean(name, MODELS, 3)}")
    if published:
        raise ModelError(f"model curlfx:{name}: no published weights; give weights=FILE, or train on the data")
    return MODELS[name]() if num_classes is None else MODELS[name](num_classes=num_classes)


def _from_torchvision(name: str, num_classes: int | None, published: bool) -> nn.Module:
    import torchvision.models as zoo

    names: list[str] = zoo.list_models()
    if name not in names:
        raise ModelError(f"model torchvision:{name}: no such network{did_you_mean(name, names, 3)}")
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # asked for, because the default warns and does the same
    if name.startswith(("deeplabv3", "fcn", "fcos", "lraspp", "retinanet", "ssd")) or "rcnn" in name:
        options["weights_backbone"] = None  # the default downloads them
    if num_classes is not None:
        options["num_classes"] = num_classes
    spec = f"torchvision:{name}"
    if not published:
        return _called(spec, lambda: zoo.get_model(name, weights=None, **options))
    trained = _called(spec, lambda: zoo.get_model(name, weights="DEFAULT"))
    if num_classes is None:
        return trained
    model = _called(spec, lambda: zoo.get_model(name, weights=None, **options))
    copy_weights(model, trained.state_dict(), f"the published weights of {spec}", new_head=True)
    return model


def _from_timm(name: str, num_classes: int | None, published: bool) -> nn.Module:
    timm = _timm(name)
    names = timm.list_models()
    if name.partition(".")[0] not in names:
        raise ModelError(f"model timm:{name}: no such network{did_you_mean(name, names, 3)}")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    return _called(f"timm:{name}", lambda: timm.create_model(name, pretrained=published, **options))


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as cause:
        raise ModelError(f"model timm:{name}: timm is not installed; pip install 'curlfx[timm]'") from cause
    return timm


def _from_factory(spec: str, num_classes: int | None) -> nn.Module:
    factory = load_attribute(spec, ModelError, BUILDERS)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise ModelError(f"model {spec}: is {type(factory).__name__}, want a function that returns a torch.nn.Module")
    options = {"num_classes": num_classes} if num_classes is not None and _takes(factory, "num_classes") else {}
    return _called(spec, lambda: factory(**options))


def _takes(factory: Callable[..., object], name: str) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return False
    return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _called(spec: str, build: Callable[[], object]) -> nn.Module:
    try:
        model = build()
    except CurlfxError:
        raise
    except (Exception, SystemExit) as cause:
        raise ModelError(f"model {spec}: its factory failed: {describe(cause)}") from cause
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {spec}: its factory returned {type(model).__name__}, want a torch.nn.Module")
    return model


BUILDERS: Mapping[str, Build] = MappingProxyType(
    {"torchvision": _from_torchvision, "timm": _from_timm, "curlfx": _from_curlfx}
)
"""Prefix of a specification to what builds it; any other prefix is a file or a module."""


def model_names(prefix: str) -> Iterable[str]:
    """Return the names that stand after ``prefix:``. Raises: KeyError for a prefix other than ours."""
    if prefix == "curlfx":
        return tuple(MODELS)
    if prefix == "torchvision":
        import torchvision.models as zoo

        return tuple(zoo.list_models())
    raise KeyError(prefix)
