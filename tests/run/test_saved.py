"""A slim network as a folder: back bit for bit, from its factory and from its graph, and what is wrong is named."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

import curlfx
from curlfx.errors import CurlfxError, ModelError, OutputError, PlanError, SavedError
from curlfx.graph import TracedModel
from curlfx.ops.pointwise import pointwise
from curlfx.planning import SlimPlan
from curlfx.run.recheck import recheck
from curlfx.run.runner import RunResult
from curlfx.run.saved import FILES, MANIFEST, load, save
from tests.networks.fixtures import FIXTURES

HERE = Path(__file__)
NETS = f"{HERE}:"


class Shuffled(nn.Module):
    """A shuffle, which slimming turns into an index buffer; tied weights; statistics; a frozen parameter."""

    def __init__(self, num_classes: int = 5, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.again = nn.Conv2d(width, width, 3, padding=1)
        self.again.weight = self.body.weight
        self.head = nn.Linear(width, num_classes)
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        x = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        x = functional.relu(self.again(functional.relu(self.body(x))))
        return self.head(x.mean((2, 3)))


def shuffled(num_classes: int = 5) -> nn.Module:
    return Shuffled(num_classes)


def narrower(num_classes: int = 5) -> nn.Module:
    return Shuffled(num_classes, 8)


class Noisy(nn.Module):
    """Holds random numbers that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("noise", torch.rand(4, 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.conv(x)) * self.noise)


def noisy() -> nn.Module:
    return Noisy()


def slimmed(net: nn.Module, dtype: torch.dtype = torch.float32, share: str = "60%") -> tuple[TracedModel, SlimPlan]:
    traced = curlfx.trace(net.to(dtype), (torch.randn(2, 3, 4, 4, dtype=dtype),))
    coupling = curlfx.couple(traced)
    scores = curlfx.score(traced, coupling, importance="random")
    plan = curlfx.plan(traced, coupling, scores, target={"params": share}, round_to=1)
    return curlfx.slim(traced, plan), plan


def train(network: TracedModel) -> None:
    """Two steps, so that weights and statistics are no longer those of the factory."""
    dtype = network.example_inputs[0].dtype
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD([p for p in network.module.parameters() if p.requires_grad], lr=0.1)
    network.module.train()
    for _ in range(2):
        optimizer.zero_grad()
        network.module(torch.randn(6, 3, 4, 4, generator=generator, dtype=dtype)).square().mean().backward()
        optimizer.step()
    network.module.eval()


def assert_same(found: TracedModel, wanted: TracedModel) -> None:
    assert list(found.module.state_dict()) == list(wanted.module.state_dict())
    for name, tensor in wanted.tensors().items():
        assert torch.equal(found.parameter(name), tensor), name
        assert found.parameter(name).dtype == tensor.dtype
        assert found.parameter(name).requires_grad == tensor.requires_grad
    images = torch.randn(3, 3, 4, 4, dtype=wanted.example_inputs[0].dtype)
    assert torch.equal(found.module.eval()(images), wanted.module.eval()(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("graph", [False, True])
def test_comes_back_bit_for_bit_and_trains_on(tmp_path: Path, dtype: torch.dtype, graph: bool) -> None:
    network, plan = slimmed(shuffled(), dtype)
    train(network)
    assert any(name.startswith(("curlfx_index", "curlfx_shuffle")) for name in network.tensors())
    save(network, tmp_path / "net", plan=plan, model=NETS + "shuffled")
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == sorted([MANIFEST, *FILES])
    found = load(tmp_path / "net", graph=graph)
    assert not found.module.training
    assert_same(found, network)
    assert found.parameter("body.weight") is found.parameter("again.weight")
    for each in (found, network):
        train(each)
    assert_same(found, network)


@pytest.mark.slow
def test_the_public_names(tmp_path: Path) -> None:
    network, plan = slimmed(shuffled(3))
    curlfx.save(network, tmp_path, plan=plan, model=NETS + "shuffled", num_classes=3)
    assert_same(curlfx.load(str(tmp_path)), network)
    saved = SlimPlan.load(tmp_path / "plan.json")
    assert saved.provenance["model"] == NETS + "shuffled"
    assert saved.provenance["arguments"] == {"num_classes": 3}
    curlfx.save(network, tmp_path, plan=plan)  # over its own files
    with pytest.raises(SavedError, match=r"network\.json names no factory; give model=, or take the saved graph"):
        curlfx.load(tmp_path)
    assert_same(curlfx.load(tmp_path, model=shuffled(3)), network)
    assert_same(curlfx.load(tmp_path, graph=True), network)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ("shuffle_v2", "called_twice", "swin_block") if name in FIXTURES])
def test_fixtures_come_back(name: str, tmp_path: Path) -> None:
    case = FIXTURES[name]
    traced = curlfx.trace(case.build(), case.inputs(), dynamic_batch=case.dynamic)
    coupling = curlfx.couple(traced)
    keep = {group.id: 1 / 2 for group in coupling.groups}
    plan = curlfx.planning.plan_from_widths(traced, coupling, curlfx.score(traced, coupling, "random"), keep)
    network = curlfx.slim(traced, plan)
    save(network, tmp_path, plan=plan)
    for found in (load(tmp_path, model=case.build(seed=1)), load(tmp_path, graph=True)):
        for name, tensor in network.tensors().items():
            assert torch.equal(found.parameter(name), tensor), name
        assert torch.equal(found.module(*case.inputs(seed=2)), network.module.eval()(*case.inputs(seed=2)))


@pytest.mark.slow
@pytest.mark.parametrize("graph", [False, True])
def test_a_run_directory_is_a_saved_network(finished: RunResult, graph: bool) -> None:
    found = load(finished.directory, graph=graph)
    weights = safetensors.torch.load_file(finished.directory / "slim.safetensors")
    state = found.module.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in state)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found.module(images), load(finished.directory, graph=not graph).module(images))


@pytest.mark.slow
def test_both_kinds_of_folder_are_verified(finished: RunResult, tmp_path: Path) -> None:
    assert recheck(finished.directory).checks[-1].name == "saved graph vs torch"
    network, plan = slimmed(shuffled())
    save(network, tmp_path, plan=plan, model=NETS + "shuffled")
    (check,) = recheck(tmp_path).checks
    assert (check.name, check.error) == ("saved graph vs torch", 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "net"
    network, plan = slimmed(shuffled())
    save(network, folder, plan=plan, model=NETS + "shuffled")
    return folder


def torn(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-7])


def gone(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def noted(key: str, value: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**document, key: value}))

    return edit


@pytest.mark.parametrize(
    ("damage", "graph", "error", "message"),
    [
        (gone("slim.safetensors"), False, SavedError, r"slim\.safetensors: cannot read it: .*; restore it"),
        (torn("slim.safetensors"), False, SavedError, r"slim\.safetensors is not the file that was saved"),
        (torn("plan.json"), False, SavedError, r"plan\.json is not the file that was saved"),
        (gone("slim.pt2"), True, SavedError, r"slim\.pt2: cannot read it"),
        (torn("slim.pt2"), True, SavedError, r"slim\.pt2 is not the file that was saved \(its hash differs\)"),
        (gone(MANIFEST), False, SavedError, r"holds no saved network: want network\.json, as curlfx\.save"),
        (torn(MANIFEST), True, SavedError, r"network\.json: the file: invalid JSON"),
        (noted("format", 2), True, SavedError, r"network\.json: format: input should be 1"),
        (noted("dtype", "float7"), False, SavedError, r"network\.json: dtype: "),
        (noted("inputs", {"tuple": [3, {}]}), False, SavedError, "inputs: {} describes none"),
        (noted("model", "nowhere.py:net"), False, ModelError, r"no file nowhere\.py; name the factory with model=, or"),
        (noted("model", NETS + "narrower"), False, PlanError, r"parameter 'stem\.weight' is .* in the plan's network"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    folder: Path, tmp_path: Path, damage: Callable[[Path], object], graph: bool, error: type[CurlfxError], message: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(error, match=message) as caught:
        load(copy, graph=graph)
    assert caught.value.exit_code == 2
    assert str(copy) in str(caught.value) or "inputs" in message


def test_a_file_that_this_torch_cannot_read(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "slim.pt2").write_bytes(b"other")
    files = json.loads((copy / MANIFEST).read_text())["files"]
    noted("files", {**files, "slim.pt2": hashlib.sha256(b"other").hexdigest()})(copy)
    noted("versions", {"torch": "9.9"})(copy)
    with pytest.raises(
        SavedError, match=r"slim\.pt2: it is no readable .*; it was written by torch 9\.9: load it with"
    ):
        load(copy, graph=True)


def test_numbers_outside_the_state_dict(tmp_path: Path) -> None:
    network, plan = slimmed(noisy())
    save(network, tmp_path, plan=plan, model=NETS + "noisy")
    with pytest.raises(
        SavedError, match="the factory gives 'noise', which is in no state dict, other values than it had"
    ):
        load(tmp_path)
    assert_same(load(tmp_path, graph=True), network)


def test_a_factory_that_would_not_give_it_back_is_refused(tmp_path: Path) -> None:
    network, plan = slimmed(shuffled())
    with pytest.raises(PlanError, match="another network"):
        save(network, tmp_path / "net", plan=plan, model=NETS + "narrower")
    with pytest.raises(SavedError, match=r"the plan make another network: stem\.weight is "):
        save(slimmed(shuffled(), share="80%")[0], tmp_path / "net", plan=plan, model=NETS + "shuffled")
    assert not (tmp_path / "net").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    network, plan = slimmed(shuffled())
    with pytest.raises(OutputError, match=r"holds other files \(mine\.txt\); name another folder"):
        save(network, tmp_path, plan=plan)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@torch.library.custom_op("curlfx_saved::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    return x / 2


@halved.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    """An op of the user's own between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.ops.curlfx_saved.halved(self.conv(x)))


def custom() -> nn.Module:
    return Custom()


def test_rules_of_ones_own(tmp_path: Path) -> None:
    rules = {"curlfx_saved::halved": pointwise}
    traced = curlfx.trace(custom(), (torch.randn(2, 3, 4, 4),))
    coupling = curlfx.couple(traced, rules=rules)
    plan = curlfx.plan(traced, coupling, curlfx.score(traced, coupling, importance="random"), round_to=1)
    assert plan.widths["conv.weight"] < 8
    network = curlfx.slim(traced, plan, coupling)
    save(network, tmp_path, plan=plan, model=NETS + "custom", rules=rules)
    assert_same(load(tmp_path, rules=rules), network)
    assert_same(load(tmp_path, graph=True), network)
    with pytest.raises(PlanError, match="this plan is for another network: it has no coupling group"):
        load(tmp_path)
