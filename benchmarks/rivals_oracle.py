"""What a narrowed network should compute, found without asking the tool that narrowed it.

A tool deletes rows and columns of parameters. Which ones is read off the values: every value of a random weight occurs
once, so a value of the narrow weight says where it stood in the intact one. The oracle is then the intact network with
the same channels multiplied by zero: what convolutions and linear layers read where they lost columns, and what they
make where they lost rows; for layers that use their weights as they are, zeros in the weights do both. Nothing of it
knows either tool.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Removal",
    "UnidentifiedError",
    "attention_widths",
    "expected_output",
    "kept_positions",
    "output_error",
    "removal",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class UnidentifiedError(ValueError):
    """A narrow parameter is no selection of rows and columns of the intact one."""


@dataclass
class Removal:
    """What a tool removed from a network.

    Attributes:
        kept: Kept positions per axis, by parameter name; parameters of unchanged shape are left out.
        elements: Boolean masks of kept elements ``(rows, columns per group)`` of grouped convolutions.
    """

    kept: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    elements: dict[str, Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.kept or self.elements)


def kept_positions(intact: Tensor, narrow: Tensor) -> tuple[Tensor, ...]:
    """Positions of the intact tensor that the narrow one consists of, per axis.

    Raises: UnidentifiedError when it is no such selection.
    """
    if intact.ndim != narrow.ndim or not narrow.numel():
        raise UnidentifiedError(f"{tuple(intact.shape)} became {tuple(narrow.shape)}")
    first = (intact == narrow[(0,) * narrow.ndim]).nonzero()
    if len(first) != 1:
        raise UnidentifiedError(
            f"the first value of {tuple(narrow.shape)} occurs {len(first)} times in the intact tensor"
        )
    corner = first[0].tolist()
    positions = []
    for axis in range(intact.ndim):
        line = intact[tuple(slice(None) if other == axis else at for other, at in enumerate(corner))]
        wanted = narrow[tuple(slice(None) if other == axis else 0 for other in range(narrow.ndim))]
        positions.append(_found(line, wanted))
    rebuilt = intact
    for axis, chosen in enumerate(positions):
        rebuilt = rebuilt.index_select(axis, chosen)
    if not torch.equal(rebuilt, narrow):
        raise UnidentifiedError(f"{tuple(narrow.shape)} is no selection from {tuple(intact.shape)}")
    return tuple(positions)


def _found(line: Tensor, wanted: Tensor) -> Tensor:
    """Position in the line of every wanted value."""
    ordered, order = line.sort()
    places = torch.searchsorted(ordered, wanted.contiguous()).clamp(max=len(line) - 1)
    if not torch.equal(ordered[places], wanted):
        raise UnidentifiedError("values that the intact tensor does not have")
    return order[places]


def _grouped_elements(intact: Tensor, narrow: Tensor) -> Tensor:
    """Which (row, column of its group) of a grouped convolution's weight remain; rows may lose different columns."""
    corner = (slice(None), slice(None), *(0,) * (intact.ndim - 2))
    found = _found(intact[corner].flatten(), narrow[corner].flatten())
    rows, columns = found // intact.shape[1], found % intact.shape[1]
    if not torch.equal(intact[rows, columns].reshape(narrow.shape), narrow):
        raise UnidentifiedError(f"{tuple(narrow.shape)} is no selection from {tuple(intact.shape)}")
    kept = torch.zeros(intact.shape[:2], dtype=torch.bool)
    kept[rows, columns] = True
    return kept


def _kept_of_either(intact: Tensor, standardised: Tensor | None, narrow: Tensor) -> tuple[Tensor, ...]:
    try:
        return kept_positions(intact, narrow)
    except UnidentifiedError:
        if standardised is None:
            raise
        return kept_positions(standardised, narrow)


def standardised_weights(network: nn.Module, inputs: Sequence[Any]) -> dict[str, Tensor]:
    """What convolutions with a forward of their own convolve with, by the name of the weight it is made from."""
    found: dict[str, Tensor] = {}
    running: list[str] = []
    names = {f"{name}.weight": layer for name, layer in network.named_modules() if isinstance(layer, CONVOLUTIONS)}
    handles = []
    for name, layer in names.items():
        if type(layer) not in LAYERS:
            handles.append(layer.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
            handles.append(layer.register_forward_hook(lambda *_: running.clear()))
    original = functional.conv2d

    def conv2d(x: Tensor, weight: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if running:
            found[running[-1]] = weight.detach()
        return original(x, weight, *arguments, **options)

    with torch.no_grad(), _replaced("conv2d", conv2d):
        network(*inputs)
    for handle in handles:
        handle.remove()
    return found


def removal(
    intact: nn.Module, narrow: Mapping[str, Tensor], standardised: Mapping[str, Tensor] | None = None
) -> Removal:
    """What is gone from the parameters of a network.

    Args:
        intact: The network before.
        narrow: Parameters after, by the names they had before; those that are missing count as unchanged.
        standardised: Values that a tool may have put in place of a weight (see `standardised_weights`).

    Raises: UnidentifiedError, with the name of the parameter.
    """
    result = Removal()
    for name, before in intact.named_parameters(remove_duplicate=False):
        after = narrow.get(name)
        if after is None or after.shape == before.shape:
            continue
        owner, _, leaf = name.rpartition(".")
        module = intact.get_submodule(owner)
        try:
            if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and module.groups > 1 and leaf == "weight":
                result.elements[name] = _grouped_elements(before.detach(), after.detach())
            else:
                result.kept[name] = _kept_of_either(before.detach(), (standardised or {}).get(name), after.detach())
        except UnidentifiedError as error:
            raise UnidentifiedError(f"{name}: {error}") from None
    return result


def expected_output(
    intact: nn.Module,
    removed: Removal,
    inputs: Sequence[Any],
    *,
    attention: Sequence[int] | None = None,
    kept_weights: bool = False,
) -> Any:
    """Output of the intact network with the removed channels multiplied by zero.

    LayerNorm, RMSNorm and GroupNorm take their statistics over the kept channels.

    Args:
        intact: The network before; its parameters are put back afterwards.
        removed: What to multiply by zero.
        inputs: Of the network.
        attention: Head widths whose scale ``1 / sqrt(width)`` each call of `scaled_dot_product_attention` without an
            own scale takes, in order; None for the widths of the intact network.
        kept_weights: Whether a convolution with a forward of its own (weight standardisation) sees the kept part of its
            weight only, as a LayerNorm sees the kept channels only.
    """
    norms: dict[int, Tensor] = {}
    saved: list[tuple[Tensor, Tensor]] = []
    handles = []
    modules = dict(intact.named_modules(remove_duplicate=False))
    for name, before in intact.named_parameters(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        module, positions = modules[owner], removed.kept.get(name)
        if name in removed.elements:
            saved.append((before, before.detach().clone()))
            mask = removed.elements[name]
            before.data = before.data * mask.reshape(*mask.shape, *(1,) * (before.ndim - 2))
        elif positions is None:
            continue
        elif isinstance(module, BATCH_NORMS) and leaf == "weight":
            handles.append(module.register_forward_hook(_masks_output(positions[0], len(before))))
        elif isinstance(module, BATCH_NORMS):
            continue
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)):
            norms[id(before)] = positions[0]
        elif isinstance(module, CONVOLUTIONS) and type(module) not in LAYERS:
            handles += (_on_kept_part if kept_weights else _layer_masks)(module, leaf, positions, before)
        else:
            saved.append((before, before.detach().clone()))
            before.data = _zeroed(before.data, positions)
    try:
        with torch.no_grad(), _kept_statistics(norms), _attention_scale(attention), no_fast_path():
            return intact(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, value in reversed(saved):
            parameter.data = value


def _zeroed(value: Tensor, positions: Sequence[Tensor]) -> Tensor:
    """The tensor with everything outside the positions set to zero."""
    for axis, chosen in enumerate(positions):
        mask = _mask(chosen, value.shape[axis])
        value = value * mask.reshape([-1 if other == axis else 1 for other in range(value.ndim)])
    return value


def _mask(kept: Tensor, width: int) -> Tensor:
    mask = torch.zeros(width, dtype=torch.float64)
    mask[kept] = 1
    return mask


def _masks_output(kept: Tensor, width: int) -> Callable[..., Tensor]:
    mask = _mask(kept, width)

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * mask.reshape([-1 if axis == 1 else 1 for axis in range(output.ndim)])

    return hook


def _layer_masks(module: nn.Module, leaf: str, positions: Sequence[Tensor], weight: Tensor) -> list[Any]:
    """Hooks that multiply a convolution's inputs by zero where columns are gone, and its outputs where rows are."""
    if leaf != "weight":
        return []
    inputs = _mask(positions[1], weight.shape[1])

    def masks_input(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x = arguments[0]
        return (x * inputs.reshape([-1 if axis == 1 else 1 for axis in range(x.ndim)]), *arguments[1:])

    output = _masks_output(positions[0], weight.shape[0])
    return [module.register_forward_pre_hook(masks_input), module.register_forward_hook(output)]


class _Forward:
    """Another forward for a module, until it is removed as a hook is."""

    def __init__(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        self._module = module
        module.__dict__["forward"] = forward

    def remove(self) -> None:
        """Let the module's class decide again."""
        del self._module.__dict__["forward"]


def _on_kept_part(module: nn.Module, leaf: str, positions: Sequence[Tensor], weight: Tensor) -> list[Any]:
    """Let an ungrouped convolution run on its kept rows and columns alone; all other outputs are zero."""
    if leaf != "weight":
        return []
    rows, columns = positions[0], positions[1]
    alone = copy.deepcopy(module)
    alone.weight = nn.Parameter(weight.detach()[rows][:, columns])
    if module.bias is not None:
        alone.bias = nn.Parameter(module.bias.detach()[rows])

    def forward(x: Tensor) -> Tensor:
        y = alone(x[:, columns])
        return y.new_zeros(y.shape[0], weight.shape[0], *y.shape[2:]).index_copy(1, rows, y)

    return [_Forward(module, forward)]


@contextmanager
def _replaced(name: str, function: Callable[..., Any]) -> Iterator[None]:
    original = getattr(functional, name)
    setattr(functional, name, function)
    try:
        yield
    finally:
        setattr(functional, name, original)


@contextmanager
def _kept_statistics(norms: Mapping[int, Tensor]) -> Iterator[None]:
    """Make the normalisations with these weights average over the kept channels."""
    layer, group, root = functional.layer_norm, functional.group_norm, functional.rms_norm

    def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        if id(weight) not in norms:
            return layer(x, shape, weight, bias, eps)
        kept = norms[id(weight)]
        y = layer(x[..., kept], [len(kept)], weight[kept], None if bias is None else bias[kept], eps)
        return torch.zeros_like(x).index_copy(-1, kept, y)

    def rms_norm(x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
        if id(weight) not in norms:
            return root(x, shape, weight, eps)
        kept = norms[id(weight)]
        return torch.zeros_like(x).index_copy(-1, kept, root(x[..., kept], [len(kept)], weight[kept], eps))

    def group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        if id(weight) not in norms:
            return group(x, groups, weight, bias, eps)
        result, size = torch.zeros_like(x), x.shape[1] // groups
        for number in range(groups):
            kept = norms[id(weight)]
            kept = kept[kept // size == number]
            if len(kept):
                part = group(x[:, kept], 1, weight[kept], None if bias is None else bias[kept], eps)
                result = result.index_copy(1, kept, part)
        return result

    with ExitStack() as stack:
        for name, function in (("layer_norm", layer_norm), ("rms_norm", rms_norm), ("group_norm", group_norm)):
            stack.enter_context(_replaced(name, function))
        yield


@contextmanager
def _attention_scale(widths: Sequence[int] | None) -> Iterator[None]:
    """Let the calls of `scaled_dot_product_attention` that rely on the width of their heads take these, in order."""
    if widths is None:
        yield
        return
    remaining, original = iter(widths), functional.scaled_dot_product_attention

    def attention(query: Tensor, *arguments: Any, scale: float | None = None, **options: Any) -> Tensor:
        width = next(remaining, query.shape[-1])
        return original(query, *arguments, scale=1 / math.sqrt(width) if scale is None else scale, **options)

    with _replaced("scaled_dot_product_attention", attention):
        yield


@contextmanager
def attention_widths(into: list[int]) -> Iterator[None]:
    """Write down the width of the heads of every call of `scaled_dot_product_attention`."""
    original = functional.scaled_dot_product_attention

    def attention(query: Tensor, *arguments: Any, **options: Any) -> Tensor:
        into.append(query.shape[-1])
        return original(query, *arguments, **options)

    with _replaced("scaled_dot_product_attention", attention):
        yield


@contextmanager
def no_fast_path() -> Iterator[None]:
    """Run `nn.MultiheadAttention` as written in Python."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def output_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, bool]:
    """Largest difference over the largest expected value, and whether outputs of the network are missing.

    An output that lost positions along one axis is compared with those positions, in order, that fit it best.

    Returns:
        The worst relative error over all outputs, infinite where shapes cannot be compared; whether any output is cut.
    """
    if len(actual) != len(expected):
        return math.inf, False
    worst, cut = 0.0, False
    for one, other in zip(actual, expected, strict=True):
        shorter = [axis for axis in range(min(one.ndim, other.ndim)) if one.shape[axis] < other.shape[axis]]
        if one.ndim == other.ndim and len(shorter) == 1:
            cut, axis = True, shorter[0]
            other = _best_fitting(one.movedim(axis, 0), other.movedim(axis, 0)).movedim(0, axis)
        if one.shape != other.shape or not bool(torch.isfinite(one).all()):
            return math.inf, cut
        scale = float(other.abs().max())
        gap = float((one - other).abs().max())
        worst = max(worst, gap / scale if scale else (0.0 if gap == 0 else math.inf))
    return worst, cut


def _best_fitting(narrow: Tensor, whole: Tensor) -> Tensor:
    """For every entry of the narrow tensor the entry of the whole one, further on, that it is closest to."""
    if narrow.shape[1:] != whole.shape[1:]:
        return whole
    chosen, start = [], 0
    for number, entry in enumerate(narrow):
        stop = len(whole) - (len(narrow) - number) + 1
        gaps = (whole[start:stop] - entry).abs().flatten(1).amax(1) if entry.ndim else (whole[start:stop] - entry).abs()
        start += int(gaps.argmin()) + 1
        chosen.append(start - 1)
    return whole[chosen]
