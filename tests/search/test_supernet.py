"""Oracles of a supernet in stages: physically slim networks, closed forms, and gradients that must be zero."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curlfx.cost import CostModel, macs
from curlfx.coupling import couple
from curlfx.errors import ConfigError, ModelError, UsageError
from curlfx.graph import trace
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.passes.widths import Widths
from curlfx.search.sandwich import SandwichSettings, accumulate, draw
from curlfx.search.space import Space
from curlfx.search.supernet import Supernet
from tests.search.networks import CLASSES, Chain, Toy, images, labels, supernet

STATISTICS = ("running_mean", "running_var")


@pytest.fixture(scope="module")
def net() -> Supernet:
    return supernet()


def genomes(net: Supernet, count: int = 3) -> list[tuple[int, ...]]:
    generator = np.random.default_rng(1)
    return [net.space.full, net.space.tiny, *(net.space.random(generator) for _ in range(count))]


def slim(net: Supernet, genome: tuple[int, ...]) -> torch.nn.Module:
    return run(net.network, [Slim(net.space.coupling, net.space.keep(genome))])[0].module


def kept_border(net: Supernet, genome: tuple[int, ...]) -> Tensor:
    """Channels that stay of what leaves the first stage, by the labels of the cut."""
    coupling = net.space.coupling
    (array,) = coupling.channels_in(coupling.labels(net.stages[0].end))
    return torch.from_numpy(net.space.alive(genome)[array].ravel()).nonzero().ravel()


def test_stages_end_before_the_image_shrinks(net: Supernet) -> None:
    assert [stage.start for stage in net.stages] == [None, net.stages[0].end]
    assert net.stages[0].end.startswith("relu")
    groups = [group.id for group in net.space.coupling.groups]
    first, second = ([groups[gene] for gene in stage.genes] for stage in net.stages)
    assert first == ["stem.weight", "inner.weight"]
    assert second == ["stem.weight", "expand.weight", "left.weight", "right.weight"]


def test_in_training_every_genome_is_its_slim_network(net: Supernet) -> None:
    for genome in genomes(net):
        narrow = slim(net, genome).train()
        *_, logits = net.outputs(images(), net.gates(genome))
        assert_close(logits, narrow(images()), rtol=1e-9, atol=1e-12)


def test_with_measured_statistics_every_genome_is_its_slim_network(net: Supernet) -> None:
    for genome in genomes(net):
        *_, logits = net.outputs(images(), net.gates(genome), "measured")
        assert_close(logits, slim(net, genome).eval()(images()), rtol=1e-9, atol=1e-12)


def test_macs_of_a_genome_are_those_of_its_slim_network(net: Supernet) -> None:
    costs = CostModel(net.network, net.space.coupling)
    for genome in genomes(net):
        narrow = run(net.network, [Slim(net.space.coupling, net.space.keep(genome))])[0]
        assert costs.evaluate(net.space.alive(genome)).macs == sum(macs(narrow).values())


def test_the_whole_network_has_no_error_and_the_entropy_of_its_logits(net: Supernet) -> None:
    gates = net.gates(net.space.full)
    border, logits = net.outputs(images(), gates)
    assert not net.loss(0, net.forward(0, images(), gates), border, gates)
    found = net.loss(1, net.forward(1, border, gates), logits, gates)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert_close(found, entropy)


def test_stage_loss_is_the_mean_over_what_stays_in_variances_of_the_target(net: Supernet) -> None:
    for genome in genomes(net)[1:]:
        gates, kept = net.gates(genome), kept_border(net, genome)
        target, *_ = net.outputs(images(), net.gates(net.space.full))
        output = net.forward(0, images(), gates)
        want = (output - target)[:, kept].square().mean() / target.var(unbiased=False)
        assert 0 < len(kept) <= output.shape[1]
        assert_close(net.loss(0, output, target, gates), want)
    assert len(kept_border(net, net.space.tiny)) < 8


def test_stages_after_each_other_are_the_network(net: Supernet) -> None:
    one = Supernet(net.network, net.space, ())
    assert [stage.end for stage in one.stages] == [net.stages[1].end]
    for genome in genomes(net):
        gates = net.gates(genome)
        *_, fed = net.outputs(images(), gates, "measured")
        (whole,) = one.outputs(images(), gates, "measured")
        assert_close(fed, whole, rtol=0.0, atol=0.0)


def test_a_stage_depends_on_its_own_genes_alone(net: Supernet) -> None:
    space = net.space
    incoming = [images(), *net.outputs(images(), net.gates(space.full))]
    for number, stage in enumerate(net.stages):
        pairs = enumerate(zip(space.tiny, space.full, strict=True))
        changed = tuple(full if gene in stage.genes else tiny for gene, (tiny, full) in pairs)
        assert changed not in (space.tiny, space.full)
        outputs = [net.forward(number, incoming[number], net.gates(genome)) for genome in (space.full, changed)]
        assert_close(*outputs, rtol=0.0, atol=0.0)


def test_closed_channels_of_what_comes_in_are_not_read(net: Supernet) -> None:
    genome, space = net.space.tiny, net.space
    border = next(net.outputs(images(), net.gates(space.full)))
    spoilt = torch.full_like(border, 1e6)
    kept = kept_border(net, genome)
    spoilt[:, kept] = border[:, kept]
    assert_close(net.forward(1, spoilt, net.gates(genome)), net.forward(1, border, net.gates(genome)))


def gradients(net: Supernet) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in net.network.module.named_parameters()
    }


def test_a_stage_loss_reaches_its_own_stage_and_what_stays_of_it() -> None:
    net = supernet()
    genome = genomes(net)[2]
    values = [images(), *(value.detach() for value in net.outputs(images(), net.gates(net.space.full)))]
    first = {"stem.weight", "stem_bn.weight", "inner.weight", "outer.weight"}
    alive = net.space.alive(genome)
    for stage in (0, 1):
        net.network.module.zero_grad()
        gates = net.gates(genome)
        net.loss(stage, net.forward(stage, values[stage], gates), values[stage + 1], gates).backward()
        found = gradients(net)
        moved = {name for name, gradient in found.items() if gradient.any()}
        assert moved
        assert all((name.split("_")[0].split(".")[0] in {"stem", "inner", "outer"}) == (stage == 0) for name in moved)
        assert (first <= moved) == (stage == 0)
        for group in net.space.coupling.groups:
            gone = ~alive[group.channels]
            for site in group.sites:
                if site.name in found and gone.any() and site.name != "head.weight":
                    rows = found[site.name].movedim(site.axis, 0)
                    if rows.shape[0] == group.width:
                        assert not rows[torch.from_numpy(gone)].any(), site.name


def test_a_step_gives_every_channel_a_gradient() -> None:
    net = supernet()
    accumulate(net, images(), labels(), [net.space.tiny], SandwichSettings())
    found = gradients(net)
    for group in net.space.coupling.groups:
        weight = found[group.id]
        assert weight.flatten(1).abs().sum(1).min() > 0, group.id


def test_a_step_adds_up_the_terms_and_stops_the_gradient_at_targets() -> None:
    net = supernet()
    chosen = genomes(net)[1:3]
    total, logits = accumulate(net, images(), labels(), chosen, SandwichSettings())
    summed = gradients(net)
    net.network.module.zero_grad()
    values = list(net.outputs(images(), net.gates(net.space.full)))
    loss = torch.nn.functional.cross_entropy(values[-1], labels())
    for genome in chosen:
        gates = net.gates(genome)
        incoming = images()
        for stage, target in enumerate(values):
            output = net.forward(stage, incoming.detach(), gates)
            loss = loss + net.loss(stage, output, target.detach(), gates)
            incoming = target
    loss.backward()
    assert_close(total, loss.detach())
    assert_close(logits, values[-1].detach())
    for name, gradient in gradients(net).items():
        assert_close(summed[name], gradient, rtol=1e-6, atol=1e-9)


def test_without_the_whole_network_it_is_the_target_only() -> None:
    net = supernet()
    total, _ = accumulate(net, images(), labels(), [net.space.full], SandwichSettings(full=False))
    *_, logits = (value.detach() for value in net.outputs(images(), net.gates(net.space.full)))
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert_close(total, entropy)


def test_visits_are_as_fair_as_they_should_be() -> None:
    net, count = supernet(least=0.25, step=0.25), 1000
    settings, generator = SandwichSettings(random=2), np.random.default_rng(0)
    drawn = [draw(net, settings, generator) for _ in range(count)]
    grid = net.space.grids[0]
    for k, kept in enumerate(grid, 1):
        visits = np.mean([1 + sum(genome[0] >= kept for genome in each) for each in drawn])
        expected = 1 + (k == 1) + 2 * (len(grid) - k + 1) / len(grid)
        assert abs(visits - expected) < 0.1
    assert len(draw(net, SandwichSettings(tiny=False), generator)) == 3
    assert net.space.tiny in drawn[0]


def test_the_weights_of_the_dense_network_stay_as_they_are() -> None:
    module = Chain().double().eval()
    traced = trace(module, (images(2),))
    before = {name: tensor.clone() for name, tensor in traced.module.state_dict().items()}
    net = Supernet(traced, Space.of(couple(traced)))
    accumulate(net, images(), labels(), [net.space.tiny], SandwichSettings())
    torch.optim.SGD(net.network.module.parameters(), lr=1.0).step()
    for name, tensor in traced.module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not torch.equal(net.network.module.get_parameter("head.weight"), before["head.weight"])
    for name, tensor in net.network.module.state_dict().items():
        if name.endswith(STATISTICS):
            assert torch.equal(tensor, before[name])


def test_cuts_by_name(net: Supernet) -> None:
    again = supernet(cuts=("relu", net.stages[0].end))
    assert [stage.start for stage in again.stages] == [None, "relu", net.stages[0].end]
    for genome in genomes(again):
        *_, logits = again.outputs(images(), again.gates(genome), "measured")
        assert_close(logits, slim(again, genome).eval()(images()), rtol=1e-9, atol=1e-12)


def test_a_cut_that_a_path_goes_around_is_refused() -> None:
    with pytest.raises(ConfigError, match="cuts: 'conv2d_1' is no tensor that every path passes"):
        supernet(cuts=("conv2d_1",))


def test_networks_without_channels_or_of_one_batch_size_are_refused() -> None:
    traced = trace(Toy().double().eval(), (images(2),))
    frozen = couple(traced, frozen=["a", "b", "c"])
    with pytest.raises(UsageError, match="no channel of this network can go"):
        run(traced, [Widths(frozen)])
    fixed = trace(Toy().double().eval(), (images(2),), dynamic_batch=False)
    space = Space.of(couple(fixed))
    with pytest.raises(ModelError, match="one batch size only"):
        Supernet(fixed, space)
    assert traced.module(images()).shape == (6, CLASSES)
