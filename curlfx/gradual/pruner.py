"""The pruner: what a training loop calls after every epoch."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from curlfx.cost import Cost, CostModel
from curlfx.coupling import Coupling, couple
from curlfx.errors import ConfigError, PlanError, UsageError
from curlfx.gradual.choice import most, next_removed
from curlfx.gradual.dense_state import DenseState
from curlfx.gradual.feasible import check_reachable, check_stable
from curlfx.gradual.mask import Masks, check_maskable
from curlfx.gradual.schedule import Schedule
from curlfx.gradual.shrink import shrink
from curlfx.graph.traced import TracedModel
from curlfx.importance import Scores, check_criterion, score
from curlfx.importance.criteria import CRITERIA, Criterion
from curlfx.labels.compact import Bools, Ints
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning.choose import RANKINGS, Allocation, frozen_names
from curlfx.planning.fingerprint import Fingerprint
from curlfx.planning.iterate import of_what_is_left, on_the_way, still_there
from curlfx.planning.price import Per, name_of, priced, resolve_per
from curlfx.planning.slim_plan import SlimPlan
from curlfx.planning.structure import class_of
from curlfx.planning.target import Target, parse_targets
from curlfx.planning.units import first_channels, kept_positions, make_units
from curlfx.progress import Progress
from curlfx.recovery.processes import processes

BACKWARD = 3
"""A training step costs about three forward passes: one forward, one for each of the two gradients."""


@dataclass(frozen=True)
class PruneStep:
    """What one step did.

    Attributes:
        epoch: After which it came.
        channels: Coupled channels that went.
        left: Coupled channels that are left.
        macs: Multiply-adds for one image of the slim network.
        params: Its parameters.
        seconds: Wall-clock time, scoring included.
    """

    epoch: int
    channels: int
    left: int
    macs: int
    params: int
    seconds: float


class GradualPruner:
    """Takes channels from a network while it is trained; call `step` after every epoch.

    What is left is scored afresh at every step, by any criterion; the channels with the lowest scores go for good.
    Masked (the default), their weights become zero and are kept there after every optimiser step: the network computes
    what the slim one would, at the cost of the dense one. Physical, they are taken away at once: the module stays the
    same object, its parameters become narrower ones, in the optimisers too, and every further epoch costs less (a
    coupling or a plan of the dense network no longer fits ``traced`` then).

    Args:
        traced: The network; train ``traced.module``.
        schedule: When, how many, until what.
        importance: A key of ``criteria``.
        data: Batches that the criterion looks at, with labels for ``relevance`` and ``taylor``; read at every step.
        coupling: The network's channels; found where not given. Freeze names there.
        physical: Slim the network at every step instead of masking it.
        optimizer: What trains it, or several; more with `attach`.
        costs: Cost model of the network, with a latency table where a latency is the target.
        seed: Of random criteria.
        progress: Is told of the scoring.
        criteria: Names and functions.
        per: Scores are divided by what a channel of its group costs in what is left, as for `curlfx.plan`; not
            ``"latency"``, as a latency table is of the dense network alone.
        allocation: ``"global"`` ranks the channels of all groups together; ``"uniform"`` takes the same share of every
            group, the lowest scores first.

    Attributes:
        keep: Kept positions of every group that has lost channels, of the dense network.
        history: The steps so far.
        epoch: Last epoch that `step` was called for.
        epoch_macs: Multiply-adds for one image of the network that each epoch trained.

    Raises: ConfigError for an unknown criterion; TargetError for a target that means nothing; BudgetError for one that
        the floor does not let this network reach; PlanError for a ``per`` that is no cost, or another ``allocation``;
        UsageError where masks do not do what slimming does (a LayerNorm or GroupNorm over channels that go), and
        physical is needed.
    Source: feature relevance scores (arXiv:2002.09958), pruning while training; physical slimming is ours.
    """

    def __init__(
        self,
        traced: TracedModel,
        schedule: Schedule,
        importance: str = "relevance",
        data: Iterable[object] | None = None,
        *,
        coupling: Coupling | None = None,
        physical: bool = False,
        optimizer: Optimizer | Iterable[Optimizer] = (),
        costs: CostModel | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        criteria: Mapping[str, Criterion] = CRITERIA,
        per: Per = "auto",
        allocation: Allocation = "global",
    ) -> None:
        check_criterion(importance, criteria=criteria)
        if allocation not in RANKINGS:
            raise PlanError(
                f"allocation = {allocation!r}: while a network is trained want one of {', '.join(RANKINGS)}"
            )
        self.allocation, self.per = allocation, _resolved(per, importance, allocation, schedule)
        self.traced, self.schedule, self.importance, self.physical = traced, schedule, importance, physical
        self.data, self.seed, self.progress, self.criteria = data, seed, progress, criteria
        self.history: list[PruneStep] = []
        self.epoch_macs: list[int] = []
        self.epoch = 0
        self._optimizers: dict[Optimizer, RemovableHandle] = {}
        with self._evaluating():
            self.coupling = coupling or couple(traced)
            self.coupling.check(traced)
            self._costs = costs or CostModel(traced, self.coupling)
            self._fingerprint, self._class = Fingerprint.of(traced, self.coupling), class_of(traced)
            self._frozen = frozen_names(self.coupling)
            self._dense = DenseState.of(traced, self.coupling)
            if not physical:
                check_maskable(traced, self.coupling)
        self._masks = None if physical else Masks(traced, self.coupling)
        self._targets = parse_targets(schedule.target, self._costs.dense) if schedule.target else ()
        nothing = {group.id: np.zeros(group.width) for group in self.coupling.groups}
        priced(Scores(importance, nothing), self.per, self._costs, self.coupling)  # what is no cost is refused now
        units = make_units(self.coupling, first_channels(self.coupling))
        self._removed: Ints = np.zeros_like(units.sizes)
        row = RANKINGS[allocation](units, most(units, schedule.floor))
        self._caps = np.bincount(row, minlength=units.sizes.size).astype(np.int64)
        self._steps = units.steps(schedule.round_to)
        self.keep: dict[str, tuple[int, ...]] = {}
        self._left_coupling = self.coupling
        if schedule.amount is None:
            check_reachable(units, units.rounded(self._caps, self._steps), self._targets, self._costs, schedule)
        with self._evaluating():
            check_stable(traced, self.coupling, kept_positions(self.coupling, units, self._caps), schedule.floor)
        for each in (optimizer,) if isinstance(optimizer, Optimizer) else optimizer:
            self.attach(each)

    def attach(self, optimizer: Optimizer) -> None:
        """Follow an optimiser: its memory is masked with the network after each of its steps, or cut with it.

        Done once for each; a second time changes nothing.
        """
        if optimizer not in self._optimizers:
            hook = optimizer.register_step_post_hook(lambda *_: self.after_optimizer_step())
            self._optimizers[optimizer] = hook

    def detach(self) -> None:
        """Let go of all optimisers."""
        for hook in self._optimizers.values():
            hook.remove()
        self._optimizers.clear()

    def after_optimizer_step(self) -> None:
        """Make the weights of channels that are gone zero again, and what attached optimisers remember of them.

        Attached optimisers do this by themselves.
        """
        if self._masks is not None:
            self._masks.apply()
            for optimizer in self._optimizers:
                self._masks.forget(optimizer)

    def step(self, epoch: int) -> PruneStep | None:
        """Note that ``epoch`` (from 1) is trained, and take channels if a step is due; None where nothing goes.

        Raises: UsageError when the epoch is not the next one, or when an optimiser that is not attached trains the
            network; DataError, ModelError, PlanError as the criterion does, the network unchanged.
        """
        if epoch != self.epoch + 1:
            raise UsageError(
                f"step({epoch}) after step({self.epoch}): want one call after every epoch, counted from 1: "
                f"step({self.epoch + 1})"
            )
        number = self.schedule.number(epoch)
        found = None
        trained = self.cost.macs if self.physical else self._costs.dense.macs
        if number is not None:
            with self._evaluating():
                found = self._prune(epoch, number)
        self.epoch = epoch
        self.epoch_macs.append(trained)
        return found

    @property
    def cost(self) -> Cost:
        """What the slim network costs now."""
        return self._costs.evaluate(self.alive)

    @property
    def dense_cost(self) -> Cost:
        """What the dense network costs."""
        return self._costs.dense

    @property
    def alive(self) -> Bools:
        """The channels that are left, ``(N + 1,)``."""
        return self.coupling.alive(self.keep)

    @property
    def reached(self) -> bool:
        """Whether every target holds; False without one."""
        return _met(self._targets, self.cost)

    def training_macs(self, images: int) -> tuple[int, int]:
        """Multiply-adds of the training so far, and of the dense network trained as long.

        Three times those of a forward pass for each of ``images`` per epoch.
        """
        each = BACKWARD * images
        return each * sum(self.epoch_macs), each * self._costs.dense.macs * len(self.epoch_macs)

    def plan(self) -> SlimPlan:
        """What has gone so far, as a plan for the dense network."""
        facts: dict[str, JsonValue] = {
            "curlfx": importlib.metadata.version("curlfx"),
            "torch": str(torch.__version__),
            "class": self._class,
            "seed": self.seed,
            "epochs": [step.epoch for step in self.history],
        }
        return SlimPlan(
            keep=self.keep,
            target=dict(self.schedule.target or {}),
            importance=self.importance,
            allocation=self.allocation,
            per=name_of(self.per),
            floor=float(self.schedule.floor),
            round_to=self.schedule.round_to,
            before=self._costs.dense,
            after=self.cost,
            fingerprint=self._fingerprint,
            provenance=facts,
            frozen=self._frozen,
        )

    def slim(self) -> TracedModel:
        """The slim network in eval mode, with weights of its own."""
        with self._evaluating():
            if self.physical or not self.keep:
                return run(self.traced, [])[0]
            return run(self.traced, [Slim(self.coupling, self.keep)])[0]

    def dense_state_dict(self) -> dict[str, Tensor]:
        """The trained weights in the shapes of the dense network, zero where channels are gone; to slim with `plan`."""
        state = self.traced.module.state_dict()
        if not self.physical:
            return {name: tensor.detach().clone() for name, tensor in state.items()}
        return self._dense.filled(state, self.coupling.cells.alive(self.alive))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the states of module and optimiser; plain types only."""
        return {
            "settings": self._settings(),
            "epoch": self.epoch,
            "epoch_macs": list(self.epoch_macs),
            "keep": {group: list(kept) for group, kept in self.keep.items()},
            "history": [asdict(step) for step in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint; load it before the states of the module and of the optimisers.

        Of a network that is slimmed physically, module and attached optimisers get their narrower parameters here.
        Raises: ConfigError when it was made with other settings; UsageError when this pruner has begun.
        """
        if self.epoch:
            raise UsageError(f"load_state_dict after step({self.epoch}): want a pruner that has not begun")
        try:
            made, keep = dict(state["settings"]), {group: tuple(kept) for group, kept in state["keep"].items()}
            epoch, macs = int(state["epoch"]), [int(each) for each in state["epoch_macs"]]
            history = [PruneStep(**step) for step in state["history"]]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"not the state of a pruning ({reason}); want what state_dict() gave") from error
        for name, now in self._settings().items():
            was = made.get(name)
            if was != now:
                raise ConfigError(
                    f"the checkpoint was made with {name}={was}, not {now}; use the same, or start afresh"
                )
        if keep:
            with self._evaluating():
                self._apply(keep)
        self.epoch, self.epoch_macs, self.history = epoch, macs, history

    def _settings(self) -> dict[str, Any]:
        return asdict(self.schedule) | {
            "importance": self.importance,
            "per": name_of(self.per),
            "allocation": self.allocation,
            "physical": self.physical,
            "seed": self.seed,
            "network": self._fingerprint.sha256,
        }

    def _prune(self, epoch: int, number: int) -> PruneStep | None:
        """Take what is to go; of several processes the first one says what, as their scores may differ by rounding."""
        start = time.perf_counter()
        keep = processes().on_leader(lambda: self._next_keep(epoch, number))
        if keep is None:
            return None
        before = int(self.alive.sum())
        self._apply(keep)
        alive, cost = self.alive, self.cost
        went, left = before - int(alive.sum()), int(alive.sum()) - 1
        step = PruneStep(epoch, went, left, cost.macs, cost.params, time.perf_counter() - start)
        self.history.append(step)
        return step

    def _next_keep(self, epoch: int, number: int) -> dict[str, tuple[int, ...]] | None:
        """What a step leaves of the dense network; None where nothing goes."""
        if not self._wants_more(number):
            return None
        if not self._optimizers and any(each.grad is not None for each in self.traced.module.parameters()):
            raise UsageError(
                "step: the network is trained by an optimiser that the pruner does not know; call attach(optimizer)"
            )
        units = make_units(self.coupling, self._scores(epoch))
        bounds = self._bounds(number)
        removed = next_removed(
            units, self._removed, self._caps, self._steps, RANKINGS[self.allocation],
            self.schedule.channels(self.coupling.total),
            lambda gone: _met(bounds, self._costs.evaluate(units.alive(gone))),
            give_back=self.allocation == "global",
        )  # fmt: skip
        return kept_positions(self.coupling, units, removed)

    def _wants_more(self, number: int) -> bool:
        """Whether something may go at a step."""
        return bool((self._removed < self._caps).any()) and not _met(self._bounds(number), self.cost)

    def _bounds(self, number: int) -> tuple[Target, ...]:
        """Where a step may stop: at the target, or, without an amount, after its equal part of the way there."""
        if self.schedule.amount is not None:
            return self._targets
        return tuple(on_the_way(target, number, len(self.schedule.epochs)) for target in self._targets)

    def _scores(self, epoch: int) -> Scores:
        """Scores of what is left, for the channels of the dense network; what is gone stands below all of it."""
        network = self.traced
        if not self.physical and self.keep:
            network, _ = run(network, [Slim(self.coupling, self.keep)], own_weights=False)
        coupling = self._left_coupling
        if not self.physical and self.keep:
            coupling = couple(network, frozen=self._frozen, rules=self.coupling.rules)
        found = score(
            network, coupling, self.importance, self.data, self.seed + epoch, self.progress, criteria=self.criteria
        )
        found.check(coupling)
        if self.per != "channel":
            found = priced(found, self.per, CostModel(network, coupling, block=self._costs.block), coupling)
        return of_what_is_left(self.coupling, self.keep, found)

    def _apply(self, keep: dict[str, tuple[int, ...]]) -> None:
        """Let everything outside ``keep`` be gone."""
        if self._masks is None:
            left = self._relative(keep)
            if left:
                slim, _ = run(self.traced, [Slim(self._left_coupling, left)], own_weights=False)
                coupling = couple(slim, frozen=self._frozen, rules=self.coupling.rules)
                shrink(self.traced, slim, self._left_coupling, left, tuple(self._optimizers))
                self._left_coupling = coupling
        else:
            self._masks.set(self.coupling.alive(keep))
            self.after_optimizer_step()
        self.keep = keep
        self._removed = self._gone(keep)

    def _relative(self, keep: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """A keep set of the dense network for the slim one that there is now."""
        there, found = still_there(self.coupling, self.keep), {}
        for group in self.coupling.groups:
            old = np.isin(np.arange(group.width), self.keep.get(group.id, range(group.width)))
            old &= there[group.channels]
            stays = np.isin(np.flatnonzero(old), keep.get(group.id, range(group.width)))
            if not stays.all():
                found[group.id] = tuple(np.flatnonzero(stays).tolist())
        return found

    def _gone(self, keep: Mapping[str, tuple[int, ...]]) -> Ints:
        """Units of each group that a keep set leaves out, ``(G,)``."""
        units = make_units(self.coupling, first_channels(self.coupling))
        missing = [group.width - len(keep.get(group.id, range(group.width))) for group in self.coupling.groups]
        gone: Ints = np.array(missing, np.int64) // units.blocks
        return gone

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The network in eval mode, its example where it is; in its own mode afterwards."""
        module = self.traced.module
        training = module.training
        place = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
        self.traced.to(place)
        module.eval()
        try:
            yield
        finally:
            module.train(training)


def _resolved(per: Per, importance: str, allocation: str, schedule: Schedule) -> Per:
    """What stands behind ``"auto"``. Raises: PlanError for latency."""
    if per == "latency":
        raise PlanError("per = 'latency': the table is of the dense network alone; want per='padded_macs' or 'macs'")
    return resolve_per(per, importance, allocation, schedule.target or {})


def _met(targets: Sequence[Target], cost: Cost) -> bool:
    """Whether all targets hold; False where there are none."""
    return bool(targets) and all(target.met(cost) for target in targets)
