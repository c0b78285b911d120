"""Training of a supernet: it learns, it resumes to the same bits, and it refuses what it does not know."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from curlfx.errors import CheckError, ConfigError, DataError, ModelError, WeightsError
from curlfx.importance import score
from curlfx.recovery import TrainSettings
from curlfx.search import SandwichSettings, Space, Supernet, train_supernet
from tests.killed import Killed
from tests.search.networks import CLASSES, Toy, images, supernet

BATCHES = [(part, part.flatten(1)[:, :CLASSES].argmax(1)) for part in (images(16, seed) for seed in range(4))]
TRAIN = TrainSettings(epochs=4, lr=0.05, amp="off", memory_format="contiguous", seed=1)
SETTINGS = SandwichSettings(TRAIN)


def toy() -> Supernet:
    torch.manual_seed(0)
    return supernet(Toy(), ("relu",))


def weights(net: Supernet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.network.module.state_dict().items()}


def loss(net: Supernet, genome: tuple[int, ...]) -> float:
    """Soft cross-entropy of a narrow network against the whole one, end to end."""
    with torch.no_grad():
        values = [list(net.outputs(BATCHES[0][0], net.gates(one)))[-1] for one in (net.space.full, genome)]
        return float(net.loss(len(net.stages) - 1, values[1], values[0], net.gates(genome)))


class KilledAfter:
    """Batches that end in the second epoch."""

    def __init__(self) -> None:
        self.epochs = 0

    def __iter__(self):
        self.epochs += 1
        for number, batch in enumerate(BATCHES):
            if self.epochs == 3 and number == 2:
                raise Killed
            yield batch

    def __len__(self) -> int:
        return len(BATCHES)


def test_it_learns() -> None:
    net = toy()
    before = loss(net, net.space.tiny)
    found = train_supernet(net, BATCHES, replace(SETTINGS, train=replace(TRAIN, epochs=12)))
    assert found.history[-1].loss < found.history[0].loss
    assert found.history[-1].accuracy > found.history[0].accuracy
    assert loss(net, net.space.tiny) < before


def test_it_resumes_to_the_same_bits(tmp_path: Path) -> None:
    straight, killed, resumed = toy(), toy(), toy()
    file = tmp_path / "supernet.pt"
    train_supernet(straight, BATCHES, SETTINGS)
    with pytest.raises(Killed):
        train_supernet(killed, KilledAfter(), SETTINGS, checkpoint=file)
    found = train_supernet(resumed, BATCHES, SETTINGS, checkpoint=file, resume=True)
    assert (found.resumed_after, len(found.history)) == (2, 4)
    wanted = weights(straight)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(resumed).items())
    assert not all(torch.equal(tensor, wanted[name]) for name, tensor in weights(killed).items())


@pytest.mark.slow
def test_a_checkpoint_of_another_question_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "supernet.pt"
    one = replace(SETTINGS, train=replace(TRAIN, epochs=1))
    train_supernet(toy(), BATCHES, one, checkpoint=file)
    with pytest.raises(ConfigError, match="was made with tiny=True, not False"):
        train_supernet(toy(), BATCHES, replace(one, tiny=False), checkpoint=file, resume=True)
    with pytest.raises(ConfigError, match="was made with stages=relu, linear, not linear"):
        train_supernet(supernet(Toy(), ()), BATCHES, one, checkpoint=file, resume=True)
    with pytest.raises(ConfigError, match="was made with lr"):
        train_supernet(toy(), BATCHES, replace(one, train=replace(one.train, lr=0.1)), checkpoint=file, resume=True)
    with pytest.raises(ConfigError, match="was made with stages"):
        train_supernet(supernet(), BATCHES, one, checkpoint=file, resume=True)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match="not a checkpoint of curlfx"):
        train_supernet(toy(), BATCHES, one, checkpoint=file, resume=True)


def test_a_checkpoint_of_another_start_is_refused(tmp_path: Path) -> None:
    file, one = tmp_path / "supernet.pt", replace(SETTINGS, train=replace(TRAIN, epochs=1))
    train_supernet(toy(), BATCHES, one, checkpoint=file)
    other = toy()
    with torch.no_grad():
        other.network.parameter("head.bias").add_(1e-3)
    before = weights(other)
    with pytest.raises(ConfigError, match="was made with start weights="):
        train_supernet(other, BATCHES, one, checkpoint=file, resume=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(other).items())


def test_a_checkpoint_of_another_order_of_channels_is_refused(tmp_path: Path) -> None:
    file, one = tmp_path / "supernet.pt", replace(SETTINGS, train=replace(TRAIN, epochs=1))
    first = toy()
    traced, coupling = first.network, first.space.coupling
    other = Supernet(traced, Space.of(coupling, score(traced, coupling, "magnitude")), ("relu",))
    assert other.space.grids == first.space.grids
    train_supernet(first, BATCHES, one, checkpoint=file)
    with pytest.raises(ConfigError, match="was made with kept channels="):
        train_supernet(other, BATCHES, one, checkpoint=file, resume=True)


def test_a_finished_training_is_taken_up_only_where_it_started(tmp_path: Path) -> None:
    file, first, second = tmp_path / "supernet.pt", toy(), toy()
    train_supernet(first, BATCHES, SETTINGS, checkpoint=file)
    found = train_supernet(second, BATCHES, SETTINGS, checkpoint=file, resume=True)
    assert (found.resumed_after, len(found.history)) == (4, 4)
    wanted = weights(first)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(second).items())
    with pytest.raises(ConfigError, match="was made with start weights="):
        train_supernet(first, BATCHES, SETTINGS, checkpoint=file, resume=True)  # it is elsewhere by now


def test_a_stage_without_anything_to_train() -> None:
    net = toy()
    module = net.network.module
    for name in ("a.weight", "a_bn.weight", "a_bn.bias"):
        module.get_parameter(name).requires_grad_(False)
    before = weights(net)
    train_supernet(net, BATCHES, replace(SETTINGS, train=replace(TRAIN, epochs=1)))
    assert torch.equal(module.get_parameter("a.weight"), before["a.weight"])
    assert not torch.equal(module.get_parameter("head.weight"), before["head.weight"])
    module.requires_grad_(False)
    with pytest.raises(ModelError, match="nothing to train"):
        train_supernet(net, BATCHES, SETTINGS)


def test_the_memory_format_is_put_back_after_an_error(tmp_path: Path) -> None:
    net, train = toy(), replace(TRAIN, memory_format="channels_last")
    with pytest.raises(Killed):
        train_supernet(net, KilledAfter(), SandwichSettings(train))
    assert net.network.parameter("b.weight").is_contiguous()


def test_a_loss_that_is_not_finite_ends_it() -> None:
    with pytest.raises(CheckError, match="the loss is not finite at learning rate"):
        train_supernet(toy(), BATCHES, SandwichSettings(replace(TRAIN, lr=1e30)))


def test_refusals() -> None:
    with pytest.raises(DataError, match="the network has 5 classes"):
        train_supernet(toy(), [(images(4), torch.tensor([0, 1, 2, 9]))], SETTINGS)
    with pytest.raises(ConfigError, match="mixup"):
        SandwichSettings(replace(TRAIN, mixup=0.2))
    with pytest.raises(ConfigError, match="ema_decay"):
        SandwichSettings(replace(TRAIN, ema_decay=0.9))
    with pytest.raises(ConfigError, match="random = 0"):
        SandwichSettings(TRAIN, random=0, full=False, tiny=False)
