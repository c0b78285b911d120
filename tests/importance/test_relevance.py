"""Feature relevance scores: by hand, what they do not depend on, and groups of every kind."""

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from curlfx.coupling import Coupling, couple
from curlfx.errors import ConfigError, DataError, ModelError
from curlfx.graph import TracedModel, show, trace
from curlfx.importance import CRITERIA, feature_relevance, score
from curlfx.importance.relevance import KEPT
from curlfx.lrp import relevance
from curlfx.planning import plan
from curlfx.progress import StepEvent
from tests.importance.kl_oracle import Pooled, traced_and_coupled
from tests.networks.fixtures import FIXTURES

Batches = list[tuple[Tensor, Tensor]]


def scored(network: TracedModel, coupling: Coupling, data: object, **options: object) -> dict[str, np.ndarray]:
    criteria = {**CRITERIA, "mine": functools.partial(feature_relevance, **options)}
    return dict(score(network, coupling, "mine", data, criteria=criteria).values)


class TwoBlocks(nn.Module):
    """A stem and two residual blocks: one tied group that two sums have, two inner ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first = nn.ModuleList([nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)])
        self.second = nn.ModuleList([nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])
        self.head = nn.Linear(6, 3)
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for (inner, outer), norm in zip((self.first, self.second), self.norms, strict=True):
            x = functional.relu_(x + norm(outer(functional.relu(inner(x)))))
        return self.head(x.mean((2, 3)))


def two_blocks() -> tuple[TracedModel, Coupling, Tensor, Tensor]:
    network, coupling = traced_and_coupled(TwoBlocks().double())
    return network, coupling, torch.randn(9, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0, 0, 0, 2])


def by_definition(network: TracedModel, images: Tensor, classes: Tensor, node: str, *, weighted: bool) -> np.ndarray:
    """Formula 2.2 of the specification, image by image."""
    found = relevance(network, images, classes)
    each = found.at(node).mean((2, 3))
    right = found.logits.argmax(1) == classes
    accuracy = torch.stack([right[classes == label].double().mean() for label in range(3)]).clamp(min=1e-3)
    weights = torch.sigmoid(accuracy.max() / accuracy) if weighted else torch.ones(3, dtype=torch.float64)
    mean = sum(weights[label] * each[classes == label].mean(0) for label in range(3)) / 3
    return (mean.abs() / (mean.norm() + 1e-9)).numpy()


@pytest.mark.parametrize("weighted", [True, False])
def test_it_is_the_formula(weighted: bool) -> None:
    network, coupling, images, classes = two_blocks()
    found = scored(network, coupling, [(images, classes)], class_weights=weighted)
    definition = functools.partial(by_definition, network, images, classes, weighted=weighted)
    np.testing.assert_allclose(found["first.0.weight"], definition("conv2d_1"), rtol=1e-7)
    np.testing.assert_allclose(found["second.0.weight"], definition("conv2d_3"), rtol=1e-7)
    sums = [node.name for node in network.graph.nodes if "aten.add" in str(node.target)]
    assert len(sums) == 2
    np.testing.assert_allclose(found["stem.weight"], sum(map(definition, sums)) / 2, rtol=1e-7)


@pytest.mark.slow
def test_neither_the_order_of_images_nor_batches_nor_names_of_classes_matter() -> None:
    network, coupling, images, classes = two_blocks()
    want = scored(network, coupling, [(images, classes)])
    order = torch.randperm(9)
    mixed = scored(network, coupling, [(images[part], classes[part]) for part in order.split(4)])
    renamed = torch.tensor([2, 0, 1])
    module = TwoBlocks().double()
    module.load_state_dict(network.module.state_dict())
    module.head.weight.data[renamed], module.head.bias.data[renamed] = (
        tensor.data.clone() for tensor in (module.head.weight, module.head.bias)
    )
    other, groups = traced_and_coupled(module)
    again = scored(other, groups, [(images, renamed[classes])])
    for group, values in want.items():
        np.testing.assert_allclose(mixed[group], values, rtol=1e-9)
        np.testing.assert_allclose(again[group], values, rtol=1e-9)


def test_a_channel_that_nothing_reads_scores_zero_and_scale_does_not_matter() -> None:
    network, _, images, classes = two_blocks()
    module = TwoBlocks().double()
    module.load_state_dict(network.module.state_dict())
    module.first[1].weight.data[:, 3] = 0
    closed, groups = traced_and_coupled(module)
    found = scored(closed, groups, [(images, classes)])["first.0.weight"]
    assert found[3] == 0
    assert np.delete(found, 3).min() > 0
    assert np.linalg.norm(found) == pytest.approx(1)


def test_by_hand() -> None:
    # Activations a and 2a. Class 0: weights 1 and 0.5, both raise, each gets half. Class 1: only the second one reads.
    images = torch.tensor([1.0, 3.0], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    network = trace(Pooled().double(), (images,))
    found = scored(network, couple(network), [(images, torch.tensor([0, 1]))], class_weights=False)["conv.weight"]
    per_class = np.array([[0.5, 0.5], [0.0, 1.0]]) / 4  # the mean over four pixels
    want = per_class.mean(0)
    np.testing.assert_allclose(found, want / np.linalg.norm(want), rtol=1e-7)


def test_weak_classes_count_more() -> None:
    # As by hand, three images of each class; the network always says class 0, so class 1 is the weak one.
    images = torch.ones(6, 1, 2, 2, dtype=torch.float64)
    classes = torch.tensor([0, 0, 0, 1, 1, 1])
    network = trace(Pooled().double(), (images,))
    coupling = couple(network)
    assert not relevance(network, images).logits.argmax(1).any()
    per_class = np.array([[0.5, 0.5], [0.0, 1.0]])
    want = np.array([1 / (1 + np.exp(-1)), 1.0]) @ per_class
    weighted, alike = (
        scored(network, coupling, [(images, classes)], class_weights=which)["conv.weight"] for which in (True, False)
    )
    np.testing.assert_allclose(weighted, want / np.linalg.norm(want), rtol=1e-7)
    assert weighted[1] > alike[1] + 1e-3  # class 1 hears the second channel only


def test_channels_that_residual_sums_tie_go_last_by_inner() -> None:
    network, coupling, images, classes = two_blocks()
    tied, inner = (scored(network, coupling, [(images, classes)], policy=policy) for policy in ("tied", "inner"))
    assert (inner["stem.weight"] == KEPT).all()
    assert tied["stem.weight"].max() < 1
    assert np.array_equal(tied["first.0.weight"], inner["first.0.weight"])
    scores = score(network, coupling, "relevance-inner", [(images, classes)])
    kept = plan(network, coupling, scores, {"macs": "80%"}, round_to=1, per="channel").keep
    assert "stem.weight" not in kept
    kept = plan(network, coupling, scores, {"macs": "30%"}, round_to=1, per="channel", floor=0.3).keep
    assert {group: len(channels) for group, channels in kept.items()} == {
        "stem.weight": 5, "first.0.weight": 1, "second.0.weight": 1
    }  # fmt: skip
    with pytest.raises(ConfigError, match="policy = both: want tied or inner"):
        scored(network, coupling, [(images, classes)], policy="both")


class PooledTwice(nn.Module):
    """Channels gated as in CBAM: the gate holds a sum of two poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head((x * torch.sigmoid(x.mean(1, keepdim=True) + x.amax(1, keepdim=True))).mean(1))


def test_a_sum_inside_a_gate_ties_nothing() -> None:
    network, coupling = traced_and_coupled(PooledTwice().double(), (7, 6))
    images, classes = torch.randn(5, 7, 6, dtype=torch.float64), torch.tensor([0, 3, 2, 1, 1])
    for policy in ("tied", "inner"):
        found = scored(network, coupling, [(images, classes)], policy=policy, class_weights=False)["stem.weight"]
        maps = relevance(network, images, classes)
        per_class = [maps.at("linear").mean(1)[classes == label].mean(0) for label in range(4)]
        want = torch.stack(per_class).mean(0).abs()
        np.testing.assert_allclose(found, (want / want.norm()).numpy(), rtol=1e-6)


class Attentive(nn.Module):
    """Queries and keys with channels of their own, values gated by a squeeze."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 8)
        self.squeeze, self.gate = nn.Linear(8, 3), nn.Linear(3, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1) @ self.value(x)
        gates = torch.sigmoid(self.gate(torch.relu(self.squeeze(mixed.mean(1)))))
        return self.head((mixed * gates.unsqueeze(1)).mean(1))


def test_gates_and_queries_are_kept() -> None:
    network, coupling = traced_and_coupled(Attentive(), (7, 6))
    scores = score(network, coupling, "relevance", [torch.randn(3, 7, 6)])
    kept = {group for group, values in scores.values.items() if (values == KEPT).all()}
    assert kept == {"query.weight", "squeeze.weight"}
    assert scores.values["value.weight"].max() < 1
    assert scores.details["channels_without_relevance"] == 5 + 3


def test_an_op_without_a_rule_is_named() -> None:
    case = FIXTURES["unknown_op"]
    network = trace(case.build(), case.inputs())
    with pytest.raises(ModelError, match=r"aten.linalg_matrix_exp.default, .*: no rule says how it hands relevance on"):
        score(network, couple(network), "relevance", [case.inputs(3)[0]])


WITHOUT_RELEVANCE = {
    "squeeze_excitation": {"body.1.reduce.weight": 3},
    "selective_kernel": {"body.reduce.weight": 3},
    "attention_fused": {"body.qkv.weight": 8},
    "attention_fused_matmul": {"body.qkv.weight": 8},
    "attention_separate": {"body.query.weight": 8},
    "attention_separate_matmul": {"body.query.weight": 8},
    "transformer": {"attention.in_proj_weight": 8},
    "cbam": {"body.reduce.weight": 3},
    "cbam_max_of_dim": {"body.reduce.weight": 3},
}
"""By fixture and group, how many channels there are of hidden layers of gates, and of queries and keys."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FIXTURES if name != "unknown_op"])
def test_every_fixture_gets_finite_scores(name: str) -> None:
    case = FIXTURES[name]
    network = trace(case.build(), case.inputs(), dynamic_batch=case.dynamic)
    coupling = couple(network)
    before = show(network)
    found = score(network, coupling, "relevance", [case.inputs(3)[0]])
    found.check(coupling)
    assert show(network) == before
    kept = {group: int((values == KEPT).sum()) for group, values in found.values.items()}
    assert {group: count for group, count in kept.items() if count} == WITHOUT_RELEVANCE.get(name, {})
    scores = np.concatenate([np.zeros(0), *found.values.values()])
    scores = scores[scores != KEPT]
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores.any() or not scores.size


def test_a_network_in_training_mode_is_scored_in_evaluation_mode_and_stays_in_training() -> None:
    network, coupling, images, classes = two_blocks()
    want = scored(network, coupling, [(images, classes)])
    network.module.train()
    statistics = {name: tensor.clone() for name, tensor in network.tensors().items()}
    found = scored(network, coupling, [(images, classes)])
    assert network.module.training
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in network.tensors().items())
    assert all(np.array_equal(found[group], values) for group, values in want.items())


def test_progress_and_details() -> None:
    network, coupling, images, classes = two_blocks()
    events: list[StepEvent] = []

    class Watcher:
        def on_step(self, event: StepEvent) -> None:
            events.append(event)

    batches = [(images[:4], classes[:4]), (images[4:], classes[4:])]
    found = score(network, coupling, "relevance", batches, progress=Watcher())
    assert [(event.step, event.total) for event in events] == [(1, 2), (2, 2)]
    right = int((relevance(network, images).logits.argmax(1) == classes).sum())
    assert found.details == {
        "seed": 0, "images": 9, "channels_without_relevance": 0, "accuracy_permille": round(1000 * right / 9)
    }  # fmt: skip


def test_classes_that_do_not_fit_are_refused() -> None:
    network, coupling, images, _ = two_blocks()
    with pytest.raises(DataError, match="want one of 0 to 2 for every image"):
        score(network, coupling, "relevance", [(images, torch.full((9,), 3))])
