"""Weights files: every fault names the tensor, and a network is changed in full or not at all."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from curlfx.errors import WeightsError
from curlfx.sources import load_weights, read_weights
from curlfx.sources.weights import copy_weights


def network(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))


def state(classes: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: tensor.clone() for name, tensor in network(classes).state_dict().items()}


def assert_loaded(path: Path) -> None:
    model = network()
    assert load_weights(model, path) == ()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state()[name])


def test_safetensors(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.safetensors")
    assert_loaded(tmp_path / "w.safetensors")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_pickles_of_training_scripts(wrapper: str | None, prefix: str, tmp_path: Path) -> None:
    content: object = {prefix + name: tensor for name, tensor in state().items()}
    torch.save(content if wrapper is None else {wrapper: content, "epoch": 3}, tmp_path / "w.pth")
    assert_loaded(tmp_path / "w.pth")


def test_batch_counters_may_be_absent(tmp_path: Path) -> None:
    save_file({name: t for name, t in state().items() if "num_batches" not in name}, tmp_path / "w.safetensors")
    assert_loaded(tmp_path / "w.safetensors")


def test_half_precision_file(tmp_path: Path) -> None:
    save_file({name: t.half() for name, t in state().items()}, tmp_path / "w.safetensors")
    model = network()
    load_weights(model, tmp_path / "w.safetensors")
    assert next(model.parameters()).dtype == torch.float32


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_is_not_executed(save: object, tmp_path: Path) -> None:
    path, executed = tmp_path / "w.pth", tmp_path / "executed"
    save({**state(), "x": Payload(executed)}, path)  # type: ignore[operator]
    with pytest.raises(WeightsError, match=r"w.pth .* execute code.*; save model.state_dict"):
        read_weights(path)
    assert not executed.exists()


def test_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="would execute code"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}q\x00.", b"PK\x03\x04 half a zip"])
def test_damaged_file(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"w{suffix}"):
        read_weights(path)


def test_truncated_file(tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.pth"):
        path = tmp_path / name
        save_file(state(), path) if name.endswith("safetensors") else torch.save(state(), path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(WeightsError, match=name):
            read_weights(path)


def test_missing_file_and_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights file"):
        read_weights(tmp_path / "w.pth")
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"want \.safetensors"):
        read_weights(tmp_path / "w.h5")


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [torch.zeros(1)], torch.zeros(1)])
def test_no_weights_in_it(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w.pt.* want "):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    weights = state()
    weights["3.weight"][1, 2] = value
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"3.weight holds 1 values that are NaN or infinite, of 48"):
        read_weights(tmp_path / "w.safetensors")


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    both = {**state(), **changes}
    return {name: tensor for name, tensor in both.items() if tensor is not None}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (changed(**{"0.weight": None}), "F lacks '0.weight';"),
        (changed(**{"9.weight": torch.zeros(1)}), "F has '9.weight', which the network has not"),
        (
            changed(**{"0.weight": None, "0.weigth": torch.zeros(1)}),
            "lacks '0.weight' and has .* did you mean '0.weight'",
        ),
        (changed(**{"0.bias": torch.zeros(5)}), r"F: 0.bias is \(5,\), the network wants \(4,\)"),
        (state(7), r"F: 3.weight is \(7, 16\), the network wants \(3, 16\); .* new_head=true in a run"),
        (changed(**{"0.weight": torch.zeros(5, 1, 3, 3)}), r"F: 0.weight is \(5, .* weights were made for$"),
    ],
)
def test_weights_of_another_network(found: dict[str, Tensor], message: str) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        copy_weights(model, found, "F")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_new_head() -> None:
    model = network(3)
    head = model.state_dict()["3.weight"].clone()
    assert copy_weights(model, state(7), "F", new_head=True) == ("3.weight", "3.bias")
    assert torch.equal(model.state_dict()["3.weight"], head)
    assert torch.equal(model.state_dict()["0.weight"], state()["0.weight"])
