"""The processes that train together: which of them this is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from curlfx.errors import CheckError, ConfigError, CurlfxError, DataError, first_line

PATIENCE = timedelta(days=30)
"""How long a process waits for the first one between trainings; one that dies is noticed at once."""
_ENVIRONMENT = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_alone: ContextVar[bool] = ContextVar("_alone", default=False)
_messages: dict[Any, Any] = {}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Processes:
    """Some processes, of which this is one. All methods do nothing, at no cost, where it is the only one.

    Every process must call the methods in the same order.

    Attributes:
        rank: This process, from 0. The first one leads: it reads and writes files, and talks to people.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the first process, or the only one."""
        return self.rank == 0

    def share(self, images: int) -> slice:
        """Which part of a batch this process has; parts differ by at most one image.

        Raises: DataError for fewer images than processes.
        """
        if images < self.count:
            raise DataError(
                f"a batch of {images} images for {self.count} processes: want at least one for each; "
                "use fewer processes, or larger batches (a DataLoader's last one: drop_last=True)"
            )
        whole, rest = divmod(images, self.count)
        start = self.rank * whole + min(self.rank, rest)
        return slice(start, start + whole + (self.rank < rest))

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor, in place, by its sum over all processes; one message per device and type."""
        if self.count == 1:
            return
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        with torch.no_grad():
            for alike in kinds.values():
                flat = torch.cat([tensor.reshape(-1) for tensor in alike])
                with self._talking():
                    dist.all_reduce(flat)
                for tensor, part in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes; one that no process has stays None."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        found = [parameter.grad is not None for parameter in trained]
        holders = torch.tensor(found, dtype=trained[0].dtype).to(trained[0].device)
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add_up([*(parameter.grad for parameter in trained if parameter.grad is not None), holders])
        if all(found):
            return
        for parameter, held in zip(trained, holders.tolist(), strict=True):
            if not held:
                parameter.grad = None

    def joined_rows(self, own: Tensor, rows: slice, total: int) -> Tensor:
        """Rows of all processes, ``(total, …)``, from ``rows`` of this one; gradients flow to everyone's."""
        if self.count == 1:
            return own
        joined: Tensor = _Joined.apply(own, rows, total, self)
        return joined

    def joined_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Rows ``(B, …)`` of all processes for each of several tensors ``(b, …)``, b the same for all.

        Gradients flow to everyone's rows.
        """
        if self.count == 1 or not features:
            return list(features)
        sizes = torch.zeros(self.count, dtype=torch.int64, device=features[0].device)
        sizes[self.rank] = len(features[0])
        self.add_up([sizes])
        counts = sizes.tolist()
        start, total = sum(counts[: self.rank]), sum(counts)
        rows = slice(start, start + counts[self.rank])
        return [self.joined_rows(own, rows, total) for own in features]

    def align(self, module: nn.Module, what: str = "the network") -> None:
        """Give every process the parameters and buffers of the first. Raises: CheckError for networks that differ."""
        if self.count == 1:
            return
        tensors = dict([*module.named_parameters(), *module.named_buffers()])
        shapes = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()]
        self.agree(what, "\n".join(shapes))
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for tensor in tensors.values():
            kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        with torch.no_grad():
            for alike in kinds.values():
                flat = torch.cat([tensor.reshape(-1) for tensor in alike])
                with self._talking():
                    dist.broadcast(flat.view(torch.uint8), 0)  # bytes: every backend knows them
                for tensor, part in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def agree(self, what: str, value: str) -> None:
        """Insist that ``value`` is the same in all processes. Raises: CheckError in all, with the first other line."""
        if self.count == 1:
            return
        found: list[Any] = [None] * self.count
        with self._talking():
            dist.all_gather_object(found, value, group=_messages_group())
        other = next((rank for rank, one in enumerate(found) if one != found[0]), None)
        if other is not None:
            first, second = _first_difference(found[0], found[other])
            raise CheckError(
                f"{what} differs between processes: process 0 has {first!r}, process {other} has {second!r}; "
                "start all of them with the same settings, files and seeds"
            )

    def on_leader(self, work: Callable[[], _T]) -> _T:
        """Let the first process do something, and give everyone its result. To ``work`` it is the only process.

        Raises: what ``work`` raises, in all processes; of errors that are not ours the others get a CheckError.
        """
        if self.count == 1:
            return work()
        if not self.leads:
            heard: _T = _understood(self._told(None))
            return heard
        try:
            with _solitude():
                result = work()
        except BaseException as error:
            with suppress(CheckError):  # the others may be gone
                self._told((None, error if isinstance(error, CurlfxError) else f"{type(error).__name__}: {error}"))
            raise
        self._told((result, None))
        return result

    def _told(self, message: Any) -> Any:
        """What the first process says, as bytes that only its like can send."""
        held = [message]
        with self._talking():
            dist.broadcast_object_list(held, 0, group=_messages_group())
        return held[0]

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Raises: CheckError in place of what torch says when another process is gone."""
        try:
            yield
        except RuntimeError as error:
            raise CheckError(
                f"process {self.rank} of {self.count} cannot reach the others ({first_line(error)}); if one of them "
                "has ended, its own message says why"
            ) from error


ALONE = Processes()


def processes() -> Processes:
    """Those of torch.distributed's group; this one alone where there is no group."""
    if _alone.get() or not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())


def local_rank() -> int:
    """Position of this process among those of its machine, from 0; where nothing says it, its GPU that is set."""
    if processes().count == 1:
        return 0
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that ``torchrun`` or ``accelerate launch`` started, as a group until the end of the block.

    A group that is there already is taken as it is, and stays. Messages go through gloo, tensors on GPUs through NCCL.
    Raises: ConfigError for an environment that names several processes but not how to find them; CheckError when they
        do not find each other.
    """
    asked = os.environ.get("WORLD_SIZE", "1")
    if "WORLD_SIZE" not in os.environ and {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys():
        raise ConfigError(  # it says where several processes would meet, and starts one, or some that know of no other
            "accelerate launch starts several processes on CPUs through MPI alone, which curlfx does not read; "
            "use torchrun --nproc-per-node N -m curlfx"
        )
    if not dist.is_available() or dist.is_initialized() or asked == "1":
        yield processes()
        return
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE = {asked}, but {', '.join(missing)} not set; start the processes with torchrun or accelerate "
            "launch, or unset WORLD_SIZE"
        )
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        if gpus and int(os.environ["LOCAL_RANK"]) < torch.cuda.device_count():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        _messages_group()  # now, while all are there: who is missing when it is made is waited for
    except (RuntimeError, ValueError) as error:
        raise CheckError(
            f"process {os.environ['RANK']} of {asked} does not find the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({first_line(error)})"
        ) from error
    try:
        yield processes()
    finally:
        _messages.clear()
        dist.destroy_process_group()


class _Joined(torch.autograd.Function):
    """Everyone's rows, one after the other; each process gets the gradients that all of them have for its own."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: slice, total: int, group: Processes) -> Tensor:
        ctx.rows, ctx.group = rows, group
        whole = own.new_zeros((total, *own.shape[1:]))
        whole[rows] = own
        group.add_up([whole])
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        whole = gradient.clone()
        ctx.group.add_up([whole])
        return whole[ctx.rows], None, None, None


@contextmanager
def _solitude() -> Iterator[None]:
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


def _messages_group() -> Any:
    """A gloo group for what processes tell each other between trainings, made by all of them at the first message."""
    world = dist.group.WORLD
    if world not in _messages:
        _messages.clear()
        _messages[world] = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _messages[world]


def _understood(message: Any) -> Any:
    result, error = message
    if error is None:
        return result
    if isinstance(error, CurlfxError):
        error.args = (f"process 0: {error}",)
        raise error
    raise CheckError(f"process 0 stopped ({error}); its own message says why")


def _first_difference(one: str, other: str) -> tuple[str, str]:
    ours, theirs = one.splitlines(), other.splitlines()
    pairs = zip([*ours, ""], [*theirs, ""], strict=False)
    return next(((a, b) for a, b in pairs if a != b), (one, other))
