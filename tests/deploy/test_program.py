"""The ``.pt2`` file: the same network without its class, and nothing in it that could execute code."""

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from curlfx.deploy.program import load_program, save_program
from curlfx.errors import SavedError
from curlfx.graph import TracedModel, trace
from curlfx.planning.structure import structure
from tests.networks.fixtures import FIXTURES

NAMES = ("shuffle_v2", "shared_weights", "called_twice", "dict_output", "two_head", "swin_block")


class Everything(nn.Module):
    """Batch normalisation, two kinds of dropout, tied weights, an index buffer, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.cumulative = nn.BatchNorm2d(8, momentum=None)
        self.register_buffer("order", torch.randperm(8))
        self.register_buffer("scale", torch.rand(8, 1, 1), persistent=False)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8, 5)
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.cumulative(self.bn(self.conv(x))))[:, self.order] * self.scale
        x = self.second(functional.dropout(self.first(x.flatten(2).mT), 0.3, self.training))
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def traced(dtype: torch.dtype = torch.float32) -> TracedModel:
    torch.manual_seed(0)
    return trace(Everything().to(dtype), (torch.randn(2, 3, 4, 4, dtype=dtype),))


def there_and_back(network: TracedModel, folder: Path) -> TracedModel:
    save_program(network, folder / "slim.pt2")
    return load_program((folder / "slim.pt2").read_bytes())


def outputs(network: TracedModel, inputs: tuple[object, ...]) -> list[Tensor]:
    return pytree.tree_leaves(network.module.eval()(*inputs))


def assert_same(found: TracedModel, wanted: TracedModel) -> None:
    for name, tensor in wanted.tensors().items():
        assert torch.equal(found.parameter(name), tensor), name
        assert found.parameter(name).requires_grad == tensor.requires_grad, name
    assert list(found.module.state_dict()) == list(wanted.module.state_dict())
    inputs = wanted.example_inputs
    for a, b in zip(outputs(found, inputs), outputs(wanted, inputs), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    network = traced(dtype)
    found = there_and_back(network, tmp_path)
    assert_same(found, network)
    assert structure(found) == structure(network)
    assert found.parameter("first.weight") is found.parameter("second.weight")
    assert (found.notes, found.dynamic_batch, found.module.training) == (network.notes, True, False)
    images = torch.randn(5, 3, 4, 4, dtype=dtype)
    assert torch.equal(found.module(images), network.module(images))
    assert [path.name for path in tmp_path.iterdir()] == ["slim.pt2"]


@pytest.mark.slow
def test_trains_as_the_network_that_was_saved(tmp_path: Path) -> None:
    network = traced()
    found = there_and_back(network, tmp_path)
    images, labels = torch.randn(6, 3, 4, 4), torch.arange(6) % 5
    for each in (network, found):
        each.module.train()
        optimizer = torch.optim.SGD([p for p in each.module.parameters() if p.requires_grad], lr=0.1)
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            functional.cross_entropy(each.module(images), labels).backward()
            optimizer.step()
        each.module.eval()
    assert int(found.parameter("bn.num_batches_tracked")) == 3
    assert_same(found, network)


@pytest.mark.parametrize("name", [name for name in NAMES if name in FIXTURES])
def test_fixtures_come_back(name: str, tmp_path: Path) -> None:
    case = FIXTURES[name]
    network = trace(case.build(), case.inputs(), dynamic_batch=case.dynamic)
    assert_same(there_and_back(network, tmp_path), network)


def test_is_laid_out_plainly(tmp_path: Path) -> None:
    network = traced()
    network.module.to(memory_format=torch.channels_last)
    found = there_and_back(network, tmp_path)
    assert found.parameter("conv.weight").is_contiguous()
    assert not network.parameter("conv.weight").is_contiguous()
    assert torch.equal(found.parameter("conv.weight"), network.parameter("conv.weight"))


def test_a_fixed_batch_stays_fixed(tmp_path: Path) -> None:
    network = trace(nn.Linear(3, 2), (torch.randn(4, 3),), dynamic_batch=False)
    found = there_and_back(network, tmp_path)
    assert_same(found, network)
    assert not found.dynamic_batch
    assert found.example_inputs[0].shape == (4, 3)


def test_holds_no_pickle(tmp_path: Path) -> None:
    save_program(traced(), tmp_path / "slim.pt2")
    with zipfile.ZipFile(tmp_path / "slim.pt2") as archive:
        for name in archive.namelist():
            assert not name.endswith((".pkl", ".pt")) or archive.read(name) == b"", name
            assert b'"use_pickle": true' not in archive.read(name)


def test_inputs_that_cannot_be_described(tmp_path: Path) -> None:
    network = traced()
    network.example_inputs = (network.example_inputs[0], {1, 2})
    with pytest.raises(SavedError, match="an input is a set: want tensors, numbers"):
        save_program(network, tmp_path / "slim.pt2")
    assert list(tmp_path.iterdir()) == []


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch exploded",)


def changed(content: bytes, edit: Callable[[dict[str, bytes]], None]) -> bytes:
    """The archive after its records, by name without the folder in front, were edited."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    edit(records)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, record in records.items():
            archive.writestr(f"archive/{name}", record)
    return buffer.getvalue()


def replaced(name: str, pattern: str, text: str) -> Callable[[dict[str, bytes]], None]:
    def edit(records: dict[str, bytes]) -> None:
        record, count = re.subn(pattern, text, records[name].decode(), count=1)
        assert count == 1
        records[name] = record.encode()

    return edit


def with_pickled_inputs(records: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    torch.save((Bomb(),), buffer)
    records["data/sample_inputs/model.pt"] = buffer.getvalue()


def without_notes(records: dict[str, bytes]) -> None:
    del records["extra/curlfx.json"]


def with_other_modes(records: dict[str, bytes]) -> None:
    notes = json.loads(records["extra/curlfx.json"])
    notes["modes"].pop()
    records["extra/curlfx.json"] = json.dumps(notes).encode()


GRAPH, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
EDITS = {
    "pickled inputs": (with_pickled_inputs, r"it holds a pickle, 'data/sample_inputs/model\.pt', which could execute"),
    "pickled weight": (
        replaced(WEIGHTS, '"use_pickle": false', '"use_pickle": true'),
        r"'conv\.weight' is pickled, which could execute code",
    ),
    "old weights": (
        lambda r: r.update({"data/weights/model.pt": pickle.dumps(Bomb())}),
        r"holds 'data/weights/model\.pt'",
    ),
    "old format": (lambda r: r.update({"version": b"8.20"}), r"it holds 'version', which curlfx does not write"),
    "library": (lambda r: r.update({"data/aotinductor/model/a.so": b""}), r"holds 'data/aotinductor/model/a\.so'"),
    "operator": (
        replaced(GRAPH, r"torch\.ops\.aten\.relu\.default", "torch.os.system"),
        r"'torch\.os\.system' is no operator here",
    ),
    "python operator": (
        replaced(GRAPH, r"torch\.ops\.aten\.relu\.default", "_operator.methodcaller"),
        r"'_operator\.methodcaller' is no operator here",
    ),
    "size": (
        replaced(GRAPH, r'"expr_str": "[^"]*"', "\"expr_str\": \"__import__('os').system('touch exploded')\""),
        r"the size \"__import__\('os'\).* is no arithmetic on sizes",
    ),
    "guards": (replaced(GRAPH, r'"guards_code": \[\]', '"guards_code": ["boom()"]'), "it holds guards"),
    "notes": (without_notes, "cannot read it"),
    "modes": (with_other_modes, "curlfx.json and the graph name different operators"),
    "graph": (lambda r: r.update({GRAPH: b"{"}), r"it is no readable \.pt2 file"),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "slim.pt2"
    save_program(traced(), path)
    return path.read_bytes()


@pytest.mark.parametrize("name", EDITS)
def test_what_could_execute_code_or_is_damaged_is_refused(
    saved: bytes, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edit, message = EDITS[name]
    with pytest.raises(SavedError, match=message):
        load_program(changed(saved, edit))
    assert list(tmp_path.iterdir()) == []


def test_an_archive_written_anew_is_read(saved: bytes) -> None:
    assert_same(load_program(changed(saved, lambda _: None)), load_program(saved))


@pytest.mark.parametrize("part", [0, 100, -100])
def test_a_torn_file(saved: bytes, part: int) -> None:
    with pytest.raises(SavedError, match=r"it is no readable \.pt2 file"):
        load_program(saved[:part])
