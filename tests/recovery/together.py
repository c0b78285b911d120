"""What several processes do together, for `test_processes`: ``python -m tests.recovery.together FOLDER``.

Each scenario returns tensors that must be the same in one process and in two.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import curlfx
from curlfx.errors import CurlfxError
from curlfx.gradual import GradualPruner, Pruning, Schedule
from curlfx.graph import TracedModel, trace
from curlfx.recovery import (
    Overparam,
    Recipe,
    TrainSettings,
    evaluate,
    fit,
    fit_expanded,
    joined,
    processes,
    refine,
)
from curlfx.recovery.batch_norm import WholeBatchNorm
from curlfx.recovery.similarity import all_similarities
from curlfx.search import SandwichSettings, Space, Supernet, train_supernet
from curlfx.sources import from_datasets

Found = dict[str, Tensor]
CLASSES, SIZE = 3, (3, 6, 6)
PLAIN = TrainSettings(epochs=3, lr=0.1, distillation=0.0, amp="off", memory_format="contiguous", device="cpu")
TAUGHT = replace(PLAIN, distillation=0.6, mixup=0.7, clip_gradient=0.5, ema_decay=0.8, label_smoothing=0.1)


class Clouds:
    """Batches of 17, 13 and 2 noisy float64 images; a function of the epoch."""

    sizes = (17, 13, 2)

    def __len__(self) -> int:
        return len(self.sizes)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(100 + number)
        for size in self.sizes:
            labels = torch.randint(CLASSES, (size,), generator=generator)
            noise = torch.randn(size, *SIZE, generator=generator, dtype=torch.float64)
            yield noise + labels.view(-1, 1, 1, 1), labels


class Few(Clouds):
    """Its last batch is one image."""

    sizes = (4, 1)


class Own(Clouds):
    """Every process has batches of its own."""

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        return super().epoch(number + processes().rank)


class Network(nn.Module):
    """Two convolutions with or without batch normalisation, one of them computed again for its gradient, and a head."""

    def __init__(self, *, normed: bool, again: bool = False) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, bias=False)
        self.first, self.second = (nn.BatchNorm2d(width) if normed else nn.Identity() for width in (8, 6))
        self.head, self.unused = nn.Linear(6, CLASSES), nn.Linear(2, 2)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(self.stem(x)))
        x = checkpoint(self._deep, x, use_reentrant=False) if self.again else self._deep(x)
        return self.head(x.mean((2, 3)))

    def _deep(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.deep(x)))


def network(seed: int = 0, *, normed: bool = True, again: bool = False) -> nn.Module:
    """In float64, with statistics and affine parameters that are not those of the start."""
    torch.manual_seed(seed)
    found = Network(normed=normed, again=again).double()
    for norm in found.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(tensor, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return found


def graph(seed: int = 0) -> TracedModel:
    return trace(network(seed), (torch.zeros(2, *SIZE, dtype=torch.float64),))


def state(module: nn.Module) -> Found:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def trained(module: nn.Module, settings: TrainSettings = PLAIN, teacher: int = 7) -> Found:
    found = fit(module, Clouds(), settings, teacher=network(teacher), validation=Clouds())
    figures = [(one.loss, one.accuracy, one.validation) for one in found.history]
    return {**state(module), "history": torch.tensor(figures, dtype=torch.float64)}


def without_normalisation() -> Found:
    return trained(network(normed=False))


def of_a_module() -> Found:
    return trained(network())


def of_a_graph() -> Found:
    return trained(graph().module)


def frozen() -> Found:
    module = network()
    module.stem.requires_grad_(False)
    return trained(module)


def taught_and_mixed() -> Found:
    return trained(network(), TAUGHT)


def begun_otherwise() -> Found:
    """The networks of the first process count, in the average of weights too."""
    rank = processes().rank
    return trained(network(rank), TAUGHT, teacher=7 + rank)


def judged_in_another_order() -> Found:
    """Images to judge by in an order that follows from a random state which is not the same everywhere."""
    images, labels = (torch.cat(parts) for parts in zip(*Clouds().epoch(0), strict=True))
    judges = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 4, shuffle=True)
    module = network()
    torch.manual_seed(processes().rank)
    found = fit(module, Clouds(), PLAIN, validation=judges)
    return {"accuracy": torch.tensor([one.validation for one in found.history])}


def computed_again() -> Found:
    return trained(network(again=True))


def enlarged() -> Found:
    dense = graph(7)
    coupling = curlfx.couple(dense)
    plan = curlfx.plan(dense, coupling, curlfx.score(dense, coupling, "magnitude"), {"macs": "60%"}, round_to=1)
    slim = curlfx.slim(dense, plan)
    settings = Overparam(replace(PLAIN, batch_size=16, lr=0.01), rate=2, frozen_epochs=1, merge_every=2)
    fit_expanded(slim, Clouds(), settings, teacher=dense)
    return state(slim.module)


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """25 images."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.images = torch.randn(25, *SIZE, generator=generator)
        self.targets = torch.randint(CLASSES, (25,), generator=generator).tolist()

    def __len__(self) -> int:
        return 25

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def refined() -> Found:
    """In float32, in which labels are kept."""
    data, student, teacher = from_datasets({"train": Images(), "test": Images()}), network().float(), network(7).float()
    recipe = Recipe(PLAIN, refine=replace(PLAIN, batch_size=10, lr=0.01, distillation=0.7), expand_refine=True)
    _, labels = refine(student, data, recipe, teacher=teacher)
    return {**state(student), "labels": torch.from_numpy(labels.values.copy())}


def pruned_meanwhile() -> Found:
    dense = graph()
    pruner = GradualPruner(dense, Schedule(interval=1, last=2, target={"macs": "60%"}, round_to=1), "magnitude")
    fit(dense.module, Clouds(), PLAIN, supplement=Pruning(pruner))
    return state(pruner.slim().module)


def pruned_by_the_first() -> Found:
    """Whose scores are random, and not the same everywhere."""
    dense, schedule = graph(), Schedule(interval=1, last=2, target={"macs": "60%"}, round_to=1)
    pruner = GradualPruner(dense, schedule, "random", seed=processes().rank)
    fit(dense.module, Clouds(), PLAIN, supplement=Pruning(pruner))
    return {name: torch.tensor(kept) for name, kept in pruner.keep.items()}


def alike() -> Found:
    """Similarities of features whose layout in memory is not the same everywhere."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(5, 4, 3, 2, generator=generator, dtype=torch.float64)
    rows = processes().share(5)
    layout = torch.channels_last if processes().rank == 0 else torch.contiguous_format
    (own,) = all_similarities([features[rows].contiguous(memory_format=layout)], processes())
    return {"similarities": processes().joined_rows(own, rows, 5)}


def supernet() -> Found:
    dense = graph()
    coupling = curlfx.couple(dense)
    space = Space.of(coupling, curlfx.score(dense, coupling, "magnitude"), least=0.25, step=0.25)
    found = Supernet(dense, space, ["relu"])
    result = train_supernet(found, Clouds(), SandwichSettings(PLAIN))
    figures = torch.tensor([(one.loss, one.accuracy) for one in result.history], dtype=torch.float64)
    return {**state(found.network.module), "history": figures}


def judged() -> Found:
    return {"accuracy": torch.tensor(evaluate(network(), Clouds(), device="cpu", group=processes()))}


def normalised() -> Found:
    """Values, gradients and statistics of batch normalisations themselves."""
    found: Found = {}
    for number, (shape, affine) in enumerate([((7, 4), True), ((5, 3, 2), False), ((9, 4, 3, 2), True)]):
        generator = torch.Generator().manual_seed(number)
        x, weights = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        norm = (nn.BatchNorm1d if len(shape) < 4 else nn.BatchNorm2d)(shape[1], affine=affine, momentum=0.3).double()
        rows = processes().share(len(x))
        own = (2 * x[rows] + 3).requires_grad_()
        with WholeBatchNorm(processes()) if processes().count > 1 else nullcontext():
            output = norm(own)
        (output.square() * weights[rows]).sum().backward()
        gradients = [parameter.grad for parameter in norm.parameters()]
        processes().add_up(gradients)
        parts = {"output": output.detach(), "gradient": own.grad}
        whole = {name: processes().joined_rows(part, rows, len(x)) for name, part in parts.items()}
        whole |= state(norm) | {f"gradient {place}": gradient for place, gradient in enumerate(gradients)}
        found |= {f"{shape} {name}": tensor for name, tensor in whole.items()}
    return found


def in_half_precision() -> Found:
    """Of a network whose parameters are such numbers, too: what float32 gives, but for the last bits."""
    norm, precise, rows = nn.BatchNorm1d(3).bfloat16(), nn.BatchNorm1d(3), processes().share(6)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(4)).bfloat16()
    with WholeBatchNorm(processes()) if processes().count > 1 else nullcontext():
        output = norm(x[rows])
    output.sum().backward()
    wanted = {"output": precise(x.float())[rows], "mean": precise.running_mean, "variance": precise.running_var}
    found = {"output": output, "mean": norm.running_mean, "variance": norm.running_var}
    return {name: torch.tensor(torch.allclose(found[name].float(), wanted[name], 0.02, 0.02)) for name in wanted}


def normalised_by_operators() -> Found:
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    one, rows, found = torch.ones(3, dtype=torch.float64), processes().share(7), {}
    for name, normalise in (("packet", torch.ops.aten.batch_norm), ("call", torch.batch_norm)):
        with WholeBatchNorm(processes()) if processes().count > 1 else nullcontext():
            own = normalise(x[rows], one, one, None, None, True, 0.1, 1e-5, False)
        found[name] = processes().joined_rows(own, rows, 7)
    return found


SAME: Mapping[str, Callable[[], Found]] = {
    one.__name__: one
    for one in (
        without_normalisation, of_a_module, of_a_graph, frozen, taught_and_mixed, computed_again, enlarged, refined,
        begun_otherwise, judged_in_another_order, pruned_meanwhile, pruned_by_the_first, alike, supernet, judged,
        normalised, normalised_by_operators, in_half_precision,
    )
}  # fmt: skip


class Short(Clouds):
    """Damaged in its second epoch."""

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(super().epoch(number)):
            if (number, step) == (1, 1):
                raise CurlfxError("stop here")
            yield batch


def resumed(folder: Path) -> Found:
    """Stopped in its second epoch, and gone on with; only the first process has the checkpoint."""
    path = folder / f"{processes().rank}" / "resumed.pt"
    path.parent.mkdir()
    said = refusal(lambda: fit(network(), Short(), TAUGHT, teacher=network(7), checkpoint=path))
    module = network(3)
    result = fit(module, Clouds(), TAUGHT, teacher=network(7), validation=Clouds(), checkpoint=path, resume=True)
    figures = [(one.loss, one.accuracy) for one in result.history]
    written = sorted(one.name for one in path.parent.iterdir())
    found = {**state(module), "history": torch.tensor(figures), said: torch.tensor(result.resumed_after)}
    return found | {name: torch.tensor(0) for name in written}


def leads() -> bool:
    return processes().leads


def refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except CurlfxError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def broken() -> None:
    raise ZeroDivisionError("half of nothing")


def refused() -> None:
    raise CurlfxError("no")


def refusals() -> dict[str, str]:
    settings = replace(PLAIN, epochs=1)
    recorded = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), nn.Linear(108, CLASSES))
    works: dict[str, Callable[[], object]] = {
        "too few": lambda: fit(network(), Few(), settings),
        "other batches": lambda: fit(network(), Own(), settings),
        "other settings": lambda: fit(network(), Clouds(), replace(settings, lr=0.1 + processes().rank)),
        "other networks": lambda: fit(network(normed=leads()), Clouds(), settings),
        "instance norm": lambda: fit(recorded.double(), Clouds(), settings),
        "not finite": lambda: fit(network(), Clouds(), replace(settings, lr=1e200, epochs=2)),
        "on the first": lambda: processes().on_leader(refused),
        "broken on the first": lambda: processes().on_leader(broken) if not leads() else refusal_of_broken(),
    }
    return {name: refusal(work) for name, work in works.items()} | {"no labels": refusal(without_labels)}


def without_labels() -> None:
    """Gone on with where the first process has lost them."""
    data = from_datasets({"train": Images(), "test": Images()})
    recipe = Recipe(PLAIN, refine=replace(PLAIN, epochs=1, batch_size=10, lr=0.01, distillation=0.7))
    folder = Path(tempfile.mkdtemp())
    path = folder / "refine.pt"
    for _ in range(2):
        refine(network().float(), data, recipe, teacher=network(7).float(), checkpoint=path, resume=True)
        for labels in folder.glob("*.npy"):
            labels.unlink()


def refusal_of_broken() -> None:
    try:
        processes().on_leader(broken)
    except ZeroDivisionError as error:
        raise CurlfxError("its own error") from error


def left_alone() -> int:
    """The second process ends before a word is said; 0 where the first one notices, then or when they meet."""

    def speak() -> None:
        with joined() as group:
            if group.leads:
                group.on_leader(leads)

    said = refusal(speak)
    return int(os.environ["RANK"] == "0" and not said.startswith("CheckError: process 0 of 2 "))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with joined() as group:
        found = {name: scenario() for name, scenario in SAME.items()}
        alone = group.on_leader(lambda: processes().count)
        others = {"resumed": resumed(folder), "refusals": refusals(), "alone": alone, "count": group.count}
        if not group.leads:
            torch.save((found, others), folder / "1.pt")
            sys.stdout.flush()
            os._exit(0)  # the first one finds itself alone
        others["lost"] = refusal(lambda: trained(network()))
        torch.save((found, others), folder / "0.pt")
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
