"""Plans: floors, ranking, bisection, rounding, blocks, controls."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.errors import BudgetError, PlanError, TargetError
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores, score
from curlfx.planning import plan, plan_from_widths, resolve_round_to
from curlfx.planning.choose import Allocation
from curlfx.planning.units import kept_positions, make_units, rank_globally
from tests.cost.test_model import curl_keep
from tests.networks.fixtures import FIXTURES

Subject = tuple[TracedModel, Coupling, Scores]


def chain(*widths: int) -> nn.Sequential:
    sizes = [3, *widths, 5]
    layers = [[nn.Conv2d(a, b, 3, padding=1), nn.ReLU()] for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain(*layers))


def subject(module: nn.Module, seed: int = 0, shape: tuple[int, ...] = (3, 8, 8)) -> Subject:
    traced = trace(module, (torch.randn(2, *shape, dtype=next(module.parameters()).dtype),))
    coupling = couple(traced)
    return traced, coupling, score(traced, coupling, "random", seed=seed)


@pytest.fixture(scope="module")
def resnet50() -> Subject:
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    traced = trace(model, (torch.empty(2, 3, 224, 224, device="meta"),))
    coupling = couple(traced)
    return traced, coupling, score(traced, coupling, "random")


def test_the_floor_of_curl() -> None:
    widths = (64, 128, 256, 512, 960)
    _, coupling, scores = subject(chain(*widths))
    units = make_units(coupling, scores)
    assert (units.sizes - units.caps(Fraction("0.3"))).tolist() == [19, 38, 76, 153, 287]
    assert (units.sizes - units.caps(Fraction(0))).tolist() == [1] * 5
    assert (units.sizes - units.caps(Fraction("0.99"))).tolist() == [63, 126, 253, 506, 950]


def walked(coupling: Coupling, scores: Scores, top_k: int, floor: float) -> dict[str, set[int]]:
    """CURL's walk over one list, entry by entry."""
    entries = [
        (value, place, channel)
        for place, group in enumerate(coupling.groups)
        for channel, value in enumerate(scores.values[group.id].tolist())
    ]
    kept = {group.id: set(range(group.width)) for group in coupling.groups}
    for _, place, channel in sorted(entries)[:top_k]:
        group = coupling.groups[place]
        if len(kept[group.id]) / group.width >= floor and len(kept[group.id]) > 1:
            kept[group.id].remove(channel)
    return kept


@pytest.mark.parametrize("floor", [0.0, 0.3, 0.5, 0.8])
def test_ranking_is_the_walk_of_curl(floor: float) -> None:
    _, coupling, _ = subject(chain(10, 30, 7, 64))
    generator = np.random.default_rng(1)
    coarse = {group.id: generator.integers(0, 12, group.width) / 4 for group in coupling.groups}  # many ties
    scores = Scores("coarse", coarse)
    units = make_units(coupling, scores)
    order = rank_globally(units, units.caps(Fraction(str(floor))))
    total = sum(group.width for group in coupling.groups)
    for top_k in (0, 1, 17, 40, 80, total):
        want = walked(coupling, scores, top_k, floor)
        removed = total - sum(len(kept) for kept in want.values())
        found = kept_positions(coupling, units, np.bincount(order[:removed], minlength=len(units.ids)))
        whole = {group.id: tuple(range(group.width)) for group in coupling.groups}
        assert {**whole, **found} == {group: tuple(sorted(kept)) for group, kept in want.items()}


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("round_to", [1, 4, 16])
@pytest.mark.parametrize(
    "target", [{"macs": "50%"}, {"params": 0.4}, {"macs": "70%", "params": "35%"}, {"size_mb": 0.06}]
)
def test_targets_are_met_with_the_multiple(
    allocation: str, round_to: int, target: dict[str, int | float | str]
) -> None:
    traced, coupling, scores = subject(chain(24, 48, 32, 40))
    found = plan(traced, coupling, scores, target, round_to=round_to, allocation=allocation)  # type: ignore[arg-type]
    found.check(traced, coupling)
    costs = CostModel(traced, coupling)
    assert found.before == costs.dense
    assert found.after == costs.evaluate(coupling.alive(found.keep))

    def met(keep: dict[str, tuple[int, ...]]) -> bool:
        cost = costs.evaluate(coupling.alive(keep))
        shares = {"macs": cost.macs / costs.dense.macs, "params": cost.params / costs.dense.params}
        limits = {"50%": 0.5, "70%": 0.7, "35%": 0.35}
        size = cost.size_bytes <= target.get("size_mb", np.inf) * 1e6  # type: ignore[operator]
        return size and all(
            shares[key] <= limits.get(str(value), value) for key, value in target.items() if key in shares
        )

    assert met(found.keep)
    units = make_units(coupling, scores)
    for group, size, step in zip(units.ids, units.sizes, units.steps(round_to), strict=True):
        assert found.widths[group] == size or found.widths[group] % step == 0


def test_bisection_equals_a_search_one_by_one() -> None:
    traced, coupling, scores = subject(chain(12, 20, 9))
    costs, units = CostModel(traced, coupling), make_units(coupling, scores)
    for round_to, percent in itertools.product((1, 4), (90, 55, 30)):
        order, steps = rank_globally(units, units.caps(Fraction("0.3"))), units.steps(round_to)
        for count in range(order.size + 1):
            removed = units.rounded(np.bincount(order[:count], minlength=len(units.ids)), steps)
            if costs.evaluate(units.alive(removed)).macs * 100 <= percent * costs.dense.macs:
                break
        found = plan(traced, coupling, scores, {"macs": f"{percent}%"}, round_to=round_to)
        assert found.keep == kept_positions(coupling, units, removed)


def test_the_best_channels_stay_and_the_best_of_the_removed_come_back() -> None:
    traced, coupling, scores = subject(chain(64, 64))
    plain = plan(traced, coupling, scores, {"macs": "50%"}, round_to=1)
    rounded = plan(traced, coupling, scores, {"macs": "50%"}, round_to=16)
    for found in (plain, rounded):
        for group, kept in found.keep.items():
            order = np.argsort(-scores.values[group], kind="stable")[: len(kept)]
            assert kept == tuple(sorted(order.tolist()))
    assert all(width % 16 == 0 for width in rounded.widths.values())


def test_groups_as_narrow_as_the_multiple_take_a_part_of_it() -> None:
    traced, coupling, scores = subject(chain(8, 16, 24, 6, 4, 2))
    units = make_units(coupling, scores)
    assert units.steps(16).tolist() == [4, 8, 16, 4, 4, 4]  # what onnxruntime reads at a time, at least
    assert units.steps(2).tolist() == [2, 2, 2, 2, 2, 1]
    assert units.steps(12).tolist() == [6, 12, 12, 6, 6, 6]  # the half of 6 would be less than 4
    assert units.steps(1).tolist() == [1] * 6
    found = plan(traced, coupling, scores, {"macs": "40%"}, round_to=16, floor=0.0)
    choices = {8: (4, 8), 16: (8, 16), 24: (16, 24), 6: (4, 6), 4: (4,), 2: (2,)}
    for group, kept in found.widths.items():
        assert kept in choices[coupling.group(group).width]


class TwoPaths(nn.Module):
    """Grouped convolution between two plain ones: its channels keep equal counts in both groups."""

    def __init__(self, width: int = 24, groups: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 1)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.grouped(torch.relu(self.first(x)))))


@pytest.mark.parametrize(("groups", "round_to"), [(2, 1), (2, 8), (3, 4), (4, 8), (6, 1), (2, 16)])
def test_blocks_keep_equal_counts_and_the_total_is_the_multiple(groups: int, round_to: int) -> None:
    traced, coupling, scores = subject(TwoPaths(48, groups))
    found = plan(traced, coupling, scores, {"macs": "60%"}, round_to=round_to)
    coupling.alive(found.keep)
    (whole,) = (group for group in coupling.groups if group.whole_blocks)
    left = len(found.keep.get(whole.id, range(groups)))
    for group in coupling.groups:
        kept, blocks = found.keep.get(group.id, tuple(range(group.width))), group.blocks
        if group is whole:
            continue
        assert blocks is not None
        assert len(kept) // groups * left % round_to == 0
        for block in range(groups):
            members = np.flatnonzero(blocks == block)
            best = members[np.argsort(-scores.values[group.id][members], kind="stable")][: len(kept) // groups]
            assert sorted(best.tolist()) == [position for position in kept if blocks[position] == block]


def test_the_score_of_a_unit_is_the_mean_of_its_channels() -> None:
    _, coupling, _ = subject(TwoPaths(6, 2))
    given = np.array([5.0, 1.0, 3.0, 40.0, 20.0, 60.0])
    values = {group.id: given[: group.width] for group in coupling.groups}
    units = make_units(coupling, Scores("given", values))
    assert units.sizes.tolist() == [3, 3, 2]
    assert units.whole.tolist() == [False, False, True]
    assert units.inside == ((), (), (0, 1))
    assert units.score[:3].tolist() == [(1 + 20) / 2, (3 + 40) / 2, (5 + 60) / 2]


def test_whole_blocks_complete_what_the_channels_inside_them_lack() -> None:
    """Of 8 groups of 6 channels, channels come two by two, so that 8 groups times 2 are 16: then all groups stay."""
    _, coupling, scores = subject(TwoPaths(48, 8))
    assert make_units(coupling, scores).steps(16).tolist() == [2, 2, 8]
    assert make_units(coupling, scores).steps(1).tolist() == [1, 1, 1]


def test_of_blocks_no_wider_than_the_multiple_only_whole_ones_go() -> None:
    """A runtime that works on 8 channels at a time saves nothing inside a block of 6; 4 blocks of 6 are a multiple."""
    traced, coupling, scores = subject(TwoPaths(48, 8))
    units = make_units(coupling, scores)
    assert units.steps(8).tolist() == [6, 6, 4]
    assert units.caps(Fraction(0), units.steps(8)).tolist() == [0, 0, 7]
    allocations: tuple[Allocation, ...] = ("global", "uniform", "knapsack")
    for allocation in allocations:
        found = plan(traced, coupling, scores, {"macs": "60%"}, round_to=8, allocation=allocation)
        assert {group: len(kept) for group, kept in found.keep.items()} == {"first.weight#blocks": 4}
        assert found.after.padded_macs < 0.6 * found.before.padded_macs


def test_whole_blocks_can_go_but_not_by_uniform_widths_where_channels_inside_them_can() -> None:
    traced, coupling, _ = subject(TwoPaths(48, 4))
    low = {group.id: np.where(np.arange(group.width) == 0, 0.0, 1.0 + group.whole_blocks) for group in coupling.groups}
    found = plan(traced, coupling, Scores("given", low), {"macs": "80%"}, round_to=1)
    assert found.keep["first.weight#blocks"] == (1, 2, 3)
    even = plan(traced, coupling, Scores("given", low), {"macs": "60%"}, round_to=1, allocation="uniform")
    assert "first.weight#blocks" not in even.keep


def test_uniform_takes_the_same_share_of_every_group() -> None:
    traced, coupling, scores = subject(chain(40, 80, 20, 60))
    found = plan(traced, coupling, scores, {"macs": "40%"}, allocation="uniform", round_to=1)
    shares = [kept / coupling.group(group).width for group, kept in found.widths.items()]
    assert max(shares) - min(shares) <= 1 / 20 + 1 / 80
    same = plan(traced, coupling, scores, {"macs": "40%"}, global_pruning=False, round_to=1)
    assert (same.keep, same.allocation) == (found.keep, "uniform")


def test_an_easy_target_removes_nothing() -> None:
    traced, coupling, scores = subject(chain(8, 8))
    found = plan(traced, coupling, scores, {"macs": "100%"})
    assert found.keep == {}
    assert found.after == found.before


def test_unreachable_says_what_is_and_what_stands_in_the_way() -> None:
    net = chain(32, 32)
    traced = trace(net, (torch.randn(2, 3, 8, 8),))
    coupling = couple(traced, frozen=["0", "2"])
    with pytest.raises(
        BudgetError, match=r"macs 20 % of dense cannot be reached: no channel of this network can go: .*frozen"
    ):
        plan(traced, coupling, score(traced, coupling, "random"), {"macs": "20%"})
    coupling = couple(traced, frozen=["0"])
    with pytest.raises(BudgetError) as caught:
        plan(traced, coupling, score(traced, coupling, "random"), {"macs": "20%"}, round_to=16, floor=0.5)
    dense = 9 * (3 * 32 + 32 * 32 + 32 * 5)
    assert str(caught.value) == (
        f"macs 20 % of dense cannot be reached: the least is {100 * 9 * (3 * 32 + 32 * 16 + 16 * 5) / dense:.3g} %; "
        f"the frozen layers alone are {100 * 9 * 3 * 32 / dense:.3g} % (0.weight {100 * 9 * 3 * 32 / dense:.3g} %); "
        f"what floor 0.5 and round_to 16 keep of the others is {100 * 9 * (32 * 16 + 16 * 5) / dense:.3g} % "
        f"(2.weight {100 * 9 * 32 * 16 / dense:.3g} %, 4.weight {100 * 9 * 16 * 5 / dense:.3g} %); "
        f"floor=0 and round_to=1 would reach {100 * 9 * (3 * 32 + 32 + 5) / dense:.3g} %"
    )


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ({}, "want a quantity with a bound"),
        ({"mac": "50%"}, "target 'mac' is not known; did you mean 'macs'"),
        ({"latency": 3}, "did you mean 'latency_ms'"),
        ({"latency_ms": "50%"}, "it needs a latency table of this network"),
        ({"joules": 3}, "want one of macs, params"),
        ({"macs": "0%"}, "target macs = 0%: out of range"),
        ({"macs": "120%"}, "out of range: want a share above 0% and at most 100%"),
        ({"macs": 0.0}, "out of range"),
        ({"macs": -0.5}, "out of range"),
        ({"macs": "-5%"}, "want a share like"),
        ({"macs": 0}, "want more than 0"),
        ({"params": 10**9}, "at most the dense network's 3,0"),
        ({"macs": "half"}, "target macs = 'half': want a share"),
        ({"macs": True}, "target macs = True"),
        ({"macs": float("nan")}, "want a share"),
        ({"macs": None}, "want a share"),
    ],
)
def test_targets_that_mean_nothing(target: dict[str, int | float | str], match: str) -> None:
    traced, coupling, scores = subject(chain(8, 24))
    with pytest.raises(TargetError, match=match):
        plan(traced, coupling, scores, target)


@pytest.mark.parametrize(
    ("one", "other"),
    [("50%", 0.5), ("50 %", "0.5"), (60_000, "60000"), (60_000, "60k"), (60_000.0, "0.06M"), ("12.5%", 0.125)],
)
def test_the_same_target_in_other_words(one: float | str, other: float | str) -> None:
    traced, coupling, scores = subject(chain(16, 16))
    a, b = (plan(traced, coupling, scores, {"macs": amount}, round_to=1, floor=0.0) for amount in (one, other))
    assert a.keep == b.keep


@pytest.mark.parametrize(
    "options",
    [
        *({"floor": floor} for floor in (1.0, -0.1, "a", float("nan"))),
        *({"round_to": step} for step in (0, "x", 1.5, float("nan"), float("inf"), 10**30)),
    ],
)
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(TargetError, match=f"{next(iter(options))} = "):
        plan(*subject(chain(8)), **options)  # type: ignore[arg-type]


def test_auto_rounding_goes_by_the_vector_length(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, want in (("AVX512", 16), ("AVX2", 8), ("DEFAULT", 8), ("NO AVX", 8)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert resolve_round_to("auto") == want
        assert resolve_round_to("auto", "cuda") == 8
        assert resolve_round_to("auto", "CPUExecutionProvider") == want
        assert resolve_round_to(32, "cuda") == 32


def test_widths_as_given() -> None:
    traced, coupling, scores = subject(chain(8, 16, 24))
    found = plan_from_widths(traced, coupling, scores, {"*.weight": "50%", "2.weight": 3, "4.*": 0.26})
    assert found.widths == {"0.weight": 4, "2.weight": 3, "4.weight": 7}
    best = np.argsort(-scores.values["2.weight"])[:3]
    assert found.keep["2.weight"] == tuple(sorted(best.tolist()))
    assert (found.allocation, found.target) == ("widths", {})
    assert plan_from_widths(traced, coupling, scores, {}).keep == {}


@pytest.mark.parametrize(
    ("widths", "match"),
    [
        ({"2.wieght": 3}, "no free coupling group has this name; did you mean '2.weight'"),
        ({"2.weight": 0}, r"widths\['2.weight'\] = 0: want in \[1, 16\]"),
        ({"2.weight": 17}, r"want in \[1, 16\]"),
        ({"2.weight": "x"}, "want a number of channels, or a share"),
        ({"2.weight": 1.5}, "want a number of channels, or a share"),
        ({"2.weight": "1/0"}, "want a number of channels, or a share"),
        ({"2.weight": True}, "want a number of channels, or a share"),
    ],
)
def test_widths_that_no_group_has(widths: dict[str, int | float | str], match: str) -> None:
    with pytest.raises(PlanError, match=match):
        plan_from_widths(*subject(chain(8, 16, 24)), widths)


def test_widths_of_groups_with_blocks() -> None:
    traced, coupling, scores = subject(TwoPaths(24, 4))
    group = coupling.groups[0].id
    assert plan_from_widths(traced, coupling, scores, {group: 8}).widths[group] == 8
    assert plan_from_widths(traced, coupling, scores, {group: 0.4}).widths[group] == 12
    with pytest.raises(PlanError, match=r"want multiples of 4 \(it has 4 equal blocks\) in \[4, 24\]"):
        plan_from_widths(traced, coupling, scores, {group: 9})


@pytest.mark.slow
def test_the_fingerprint_of_resnet50_is_small(resnet50: Subject) -> None:
    found = plan_from_widths(*resnet50, {}).fingerprint
    assert len(found.ops) == 176
    assert len(found.model_dump_json()) < 25_000


@pytest.mark.slow
def test_curls_own_widths_cost_what_curl_says(resnet50: Subject) -> None:
    widths = {group: len(kept) for group, kept in curl_keep(resnet50[1]).items()}
    found = plan_from_widths(*resnet50, widths)
    assert (found.after.macs, found.after.params) == (1_110_843_275, 6_668_506)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXTURES)
def test_every_fixture_can_be_planned(name: str) -> None:
    case = FIXTURES[name]
    traced = trace(case.build(), case.inputs(), dynamic_batch=case.dynamic)
    coupling = couple(traced)
    scores = score(traced, coupling, "magnitude")
    costs = CostModel(traced, coupling)
    least = costs.evaluate(make_units(coupling, scores).alive(make_units(coupling, scores).caps(Fraction("0.3"))))
    for share in (0.95, 0.6):
        if least.params <= share * costs.dense.params:
            found = plan(traced, coupling, scores, {"params": share}, round_to=1)
            assert found.after.params <= share * found.before.params
            found.check(traced, coupling)
