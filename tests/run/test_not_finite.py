"""Weights and statistics that are not finite are neither written nor read back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import safetensors.torch
import torch

from curlfx.errors import CheckError, ModelError, OutputError, VerificationError
from curlfx.run import deployment
from curlfx.run.job import Job, load_tensors, save_tensors
from curlfx.run.verify import Check
from curlfx.sources import check_fit, load_data
from tests.run.tiny_networks import Residual


@pytest.mark.parametrize("name", ["inner.weight", "bn.running_var"])
def test_not_finite(name: str, tmp_path: Path) -> None:
    network = Residual()
    network.state_dict()[name].view(-1)[3] = float("inf")
    with pytest.raises(ModelError, match=rf"the network's {name} holds NaN or infinite values \(1 of \d+\); mend it"):
        check_fit(network, load_data("digits"))
    with pytest.raises(CheckError, match=rf"a\.safetensors: not written: {name} holds NaN or infinite values"):
        save_tensors(network, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
    safetensors.torch.save_file(network.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(OutputError, match=rf"a\.safetensors: cannot read what an earlier stage wrote \({name} holds"):
        load_tensors(Residual(), tmp_path / "a.safetensors")


def test_infinity_in_a_table_is_meant(tmp_path: Path) -> None:
    """Masks of attention hold -inf; only what is learned or measured must be finite."""
    network = Residual()
    network.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    save_tensors(network, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").is_file()


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_a_verification_that_gives_no_number(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "torch_vs_onnx", lambda name, *_: [Check(f"torch vs onnx, {name}", error, 1e-4)])
    job = SimpleNamespace(traced=None, slim=None, test_images=lambda _: None, file=Path, say=lambda _: None)
    with pytest.raises(VerificationError, match=r"torch vs onnx, dense: off by (nan|inf), want at most 1e-04; .*slim"):
        deployment.verify(cast("Job", job))
