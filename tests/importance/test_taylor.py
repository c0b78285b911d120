"""Taylor scores: by hand, by finite differences, and what they leave alone."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curlfx.coupling import Coupling, couple
from curlfx.errors import DataError, ModelError
from curlfx.graph import TracedModel, show, trace
from curlfx.importance import score
from curlfx.passes.gate import Gate, set_gates
from tests.importance.kl_oracle import Pooled
from tests.networks.fixtures import FIXTURES


def built(name: str) -> tuple[TracedModel, Coupling, tuple[Tensor, ...]]:
    case = FIXTURES[name]
    traced = trace(case.build(), case.inputs(), dynamic_batch=case.dynamic)
    return traced, couple(traced), case.inputs(3)


def by_hand(levels: tuple[float, ...], classes: tuple[int, ...]) -> np.ndarray:
    """Activations a and 2a: logits (a + a, -2a). dL/dg is (p - y) times the weights times the activation, summed."""
    squares = []
    for a, label in zip(levels, classes, strict=True):
        p = np.exp([2 * a, -2 * a]) / np.exp([2 * a, -2 * a]).sum()
        slope = p - np.eye(2)[label]
        squares.append([(slope @ [1.0, 0.0]) * a, (slope @ [0.5, -1.0]) * 2 * a])
    return np.mean(np.square(squares), axis=0)


@pytest.mark.parametrize("classes", [(0, 1, 0), None])
def test_by_hand(classes: tuple[int, ...] | None) -> None:
    levels = (0.5, 1.0, 0.1)
    images = torch.stack([torch.full((1, 2, 2), level, dtype=torch.float64) for level in levels])
    traced = trace(Pooled().double(), (images,))
    coupling = couple(traced)
    data = (
        [images]
        if classes is None
        else [(images[:2], torch.tensor(classes[:2])), (images[2:], torch.tensor(classes[2:]))]
    )
    found = score(traced, coupling, "taylor", data).values["conv.weight"]
    np.testing.assert_allclose(found, by_hand(levels, classes or (0, 0, 0)), rtol=1e-12)


@pytest.mark.parametrize("name", ["basic_identity", "squeeze_excitation", "layer_norm", "grouped_conv"])
def test_it_is_the_slope_of_the_loss_along_each_gate(name: str) -> None:
    traced, coupling, (images, *_) = built(name)
    found = score(traced, coupling, "taylor", [images]).values
    gated = Gate(coupling, statistics="kept" if any(g.statistics_change for g in coupling.groups) else "all")(traced)

    def losses(gates: Tensor) -> Tensor:
        set_gates(gated.module, gates)
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(gated.module.eval()(images), own, reduction="none")

    with torch.no_grad():
        own = traced.module.eval()(images).argmax(1)
    step = 1e-5
    for group in coupling.groups:
        channel = int(group.channels[-1])
        ends = []
        for sign in (1, -1):
            gates = torch.ones(coupling.total + 1, dtype=torch.float64)
            gates[channel] += sign * step
            ends.append(losses(gates))
        want = ((ends[0] - ends[1]) / (2 * step)).square().mean()
        assert found[group.id][-1] == pytest.approx(float(want), rel=1e-5, abs=1e-14)


def test_a_dead_channel_scores_nothing_and_the_network_is_left_alone() -> None:
    traced, coupling, (images, *_) = built("basic_identity")
    group = next(
        group for group in coupling.groups if any("bn1" in site.name or "1.weight" in site.name for site in group.sites)
    )
    text = show(traced)
    before = {name: tensor.clone() for name, tensor in traced.module.state_dict().items()}
    first = score(traced, coupling, "taylor", [images[:2], images[2:]]).values
    again = score(traced, coupling, "taylor", images).values
    for name, values in first.items():
        np.testing.assert_allclose(values, again[name], rtol=1e-12)
        assert (values >= 0).all()
    assert first[group.id].max() > 0
    assert show(traced) == text
    assert all(torch.equal(tensor, before[name]) for name, tensor in traced.module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in traced.module.parameters())


def test_a_network_of_one_batch_size_is_asked_in_that_size() -> None:
    torch.manual_seed(1)
    net = Pooled().double()
    images = torch.rand(4, 1, 2, 2, dtype=torch.float64)
    fixed = trace(net, (images[:2],), dynamic_batch=False)
    free = trace(net, (images[:2],))
    one, other = (score(t, couple(t), "taylor", [images]).values["conv.weight"] for t in (fixed, free))
    np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (None, DataError, "none was given"),
        ([(torch.rand(2, 1, 2, 2), torch.tensor([0, 2]))], DataError, "from 2 to 2 do not fit the output"),
        ([(torch.rand(2, 1, 2, 2), torch.zeros(2, 3, dtype=torch.long))], DataError, "do not fit the output"),
        ([torch.rand(2, 3, 2, 2)], DataError, "do not fit the network"),
    ],
)
def test_what_does_not_fit(data: object, error: type[Exception], match: str) -> None:
    traced = trace(Pooled(), (torch.rand(2, 1, 2, 2),))
    with pytest.raises(error, match=match):
        score(traced, couple(traced), "taylor", data)


def test_an_output_that_is_no_distribution() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    traced = trace(net, (torch.rand(2, 1, 2, 2),))
    with pytest.raises(ModelError, match="importance 'taylor': the output is"):
        score(traced, couple(traced), "taylor", torch.rand(2, 1, 2, 2))


class Headed(nn.Module):
    """`Pooled` with an op behind its logits."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.body, self.head = Pooled().double(), head

    def forward(self, x: Tensor) -> object:
        logits = self.body(x)
        if self.head == "named":
            return {"features": -3 * logits, "logits": logits}
        return {"softmax": logits.softmax(1), "log_softmax": logits.log_softmax(1), "sigmoid": logits.sigmoid()}[
            self.head
        ]


@pytest.mark.parametrize("head", ["softmax", "log_softmax", "named"])
def test_the_loss_is_that_of_the_logits(head: str) -> None:
    images = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    plain, headed = trace(Pooled().double(), (images,)), trace(Headed(head), (images,))
    want = score(plain, couple(plain), "taylor", images).values["conv.weight"]
    found = score(headed, couple(headed), "taylor", images).values["body.conv.weight"]
    np.testing.assert_allclose(found, want, rtol=1e-12)
    assert want.min() > 0


def test_labels_that_do_not_exclude_each_other_are_refused() -> None:
    images = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    traced = trace(Headed("sigmoid"), (images,))
    with pytest.raises(ModelError, match="importance 'taylor': the network ends in a sigmoid"):
        score(traced, couple(traced), "taylor", images)
