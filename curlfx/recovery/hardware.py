"""Where a training runs and in which precision and memory layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curlfx.errors import ConfigError
from curlfx.recovery.processes import local_rank, processes
from curlfx.recovery.settings import Amp, MemoryFormat


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``"auto"`` is the first GPU, else the CPU. Raises: ConfigError when there is none.

    Of several processes on a machine, each has the GPU of its own number.
    """
    own = local_rank()
    if name == "auto":
        name = f"cuda:{own}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r}: want 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type == "cuda":
        found, index = torch.cuda.device_count(), device.index if ":" in name else own
        if index >= found:
            wanted = "want device=auto or cpu" if own == 0 else f"process {own} here would need its own; start fewer"
            raise ConfigError(f"device = {name!r}: this machine has {found} CUDA devices; {wanted}")
        if index != own and processes().count > 1:
            raise ConfigError(f"device = {name!r}: of several processes each has a GPU of its own; want device=auto")
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise ConfigError(f"device = {name!r}: want 'auto', 'cpu', 'cuda' or 'cuda:N'")
    return device


def computes_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 in hardware (CUDA: compute capability 8; CPU: AVX512-BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextmanager
def evaluating(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module on ``device``, in eval mode; where it was, and as it was, afterwards."""
    before, was_training = home_of(module), module.training
    module.to(device).eval()
    try:
        yield
    finally:
        module.to(before).train(was_training)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Algorithms that give the same bits every time; the caller's choice afterwards. On the CPU they all do."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    if device.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def arrange(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out the 4-axis parameters and buffers of ``module`` in ``memory_format``; the tensor objects stay the same.

    `Module.to(memory_format=…)` would refuse networks that have 3-d convolutions as well.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)


@dataclass(frozen=True)
class Placement:
    """How batches are computed.

    Attributes:
        device: Where.
        memory_format: Layout of images with 4 axes.
        dtype: Autocast type of the forward pass; None for plain float32.
    """

    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format
    dtype: torch.dtype | None = None

    def autocast(self) -> AbstractContextManager[object]:
        """Context of a forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def images(self, images: Tensor) -> Tensor:
        """``images`` on the device, in the layout."""
        images = images.to(self.device, non_blocking=True)
        return images.contiguous(memory_format=self.memory_format) if images.dim() == 4 else images


def choose_placement(
    networks: Sequence[nn.Module], images: Tensor, device: torch.device, amp: Amp, memory_format: MemoryFormat
) -> Placement:
    """The fastest placement in which every network runs; arranges their weights accordingly.

    What was asked for by name is taken at its word; under ``"auto"`` one forward pass in eval mode decides. A network
    with a literal ``view`` across channels fits the contiguous layout only, one that insists on a dtype no autocast.
    """
    layouts = [torch.contiguous_format]
    if images.dim() == 4 and memory_format != "contiguous":
        layouts = [torch.channels_last, *(layouts if memory_format == "auto" else [])]
    dtypes: list[torch.dtype | None] = [None]
    if amp == "bfloat16" or (amp == "auto" and computes_bfloat16(device)):
        dtypes = [torch.bfloat16, *(dtypes if amp == "auto" else [])]
    choices = [Placement(device, layout, dtype) for layout in layouts for dtype in dtypes]
    for choice in choices[:-1]:
        for network in networks:
            arrange(network, choice.memory_format)
        if all(_runs(network, choice, images) for network in networks):
            return choice
    for network in networks:
        arrange(network, choices[-1].memory_format)
    return choices[-1]


def _runs(module: nn.Module, placement: Placement, images: Tensor) -> bool:
    was_training, devices = module.training, [placement.device] if placement.device.type == "cuda" else []
    module.eval()
    try:
        with torch.random.fork_rng(devices), torch.inference_mode(), placement.autocast():
            module(placement.images(images))
    except RuntimeError:  # whatever it is, the plain placement will either cure it or raise it again
        return False
    finally:
        module.train(was_training)
    return True


def home_of(module: nn.Module) -> torch.device:
    """Device of the module's first parameter or buffer; the CPU when it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
