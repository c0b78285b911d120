"""The exporter's operators are read once per process, and nothing else changes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curlfx.deploy import export_onnx, operators

HOME = importlib.import_module(operators._REGISTRATION)
EXAMPLE = (torch.zeros(2, 3),)


class Counting:
    """The owner of the list, counting who reads it."""

    def __init__(self, apis: Any) -> None:
        self.apis, self.reads = apis, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.apis, name)

    def get_torchlib_ops(self) -> list[Any]:
        self.reads += 1
        return list(self.apis.get_torchlib_ops())


@pytest.mark.slow
def test_two_exports_read_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(HOME.onnxscript_apis)
    monkeypatch.setattr(HOME, "onnxscript_apis", counting)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()
    files = [tmp_path / name for name in ("first.onnx", "second.onnx")]
    for file in files:
        export_onnx(network, EXAMPLE, file)
    assert counting.reads == 1
    assert HOME.onnxscript_apis is counting
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_another_layout_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(3, 4).eval()
    export_onnx(network, EXAMPLE, tmp_path / "here.onnx")
    monkeypatch.setattr(operators, "_REGISTRATION", "torch.onnx.no_such_module")
    assert operators._home() == (None, None)
    export_onnx(network, EXAMPLE, tmp_path / "there.onnx")
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "there.onnx").read_bytes()
