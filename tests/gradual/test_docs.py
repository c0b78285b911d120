"""The examples of docs/gradual.md do what they say, word for word."""

import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import curlfx
from curlfx.gradual import GradualPruner

PAGE = Path(__file__).parents[2] / "docs" / "gradual.md"
IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 4


def example(name: str) -> str:
    found = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def names() -> dict[str, Any]:
    """What the examples take for granted."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 8)
    return {
        "curlfx": curlfx, "torch": torch, "model": model, "images": IMAGES[:2], "loader": loader,
        "proxy": [(IMAGES[:8], LABELS[:8])], "traced": curlfx.trace(model, (IMAGES[:2],)),
    }  # fmt: skip


def done(found: dict[str, Any]) -> None:
    pruner: GradualPruner = found["pruner"]
    assert [step.epoch for step in pruner.history] == [1, 2, 3]
    assert pruner.reached
    assert len(pruner.epoch_macs) == 4
    assert sum(p.numel() for p in found["traced"].module.parameters()) == pruner.cost.params < pruner.dense_cost.params


def installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def test_loop() -> None:
    found = names()
    exec(example("loop"), found)  # noqa: S102 — the point of this test
    done(found)
    assert found["plan"].after == found["pruner"].cost
    assert found["slim"].module(IMAGES).shape == (24, 4)


@pytest.mark.slow
@pytest.mark.skipif(not installed("lightning"), reason="wants lightning")
@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    import lightning

    options = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "default_root_dir": tmp_path,
    }  # fmt: skip
    found = {**names(), "lightning": lightning, "options": options}
    exec(example("lightning"), found)  # noqa: S102
    done(found)


@pytest.mark.skipif(not installed("lightning"), reason="wants lightning")
@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_a_masked_training(tmp_path: Path) -> None:
    import lightning

    options = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }  # fmt: skip
    text = example("lightning").replace("physical=True", "physical=False")
    whole = {**names(), "lightning": lightning, "options": options}
    exec(text, whole)  # noqa: S102
    part = {**names(), "lightning": lightning, "options": options}
    exec(text.replace("max_epochs=4", "max_epochs=2"), part)  # noqa: S102
    part["trainer"].save_checkpoint(tmp_path / "part.ckpt")
    again = {**names(), "lightning": lightning, "options": options}
    exec(text.replace("loader)", f"loader, ckpt_path={str(tmp_path / 'part.ckpt')!r})"), again)  # noqa: S102
    assert again["pruner"].keep == whole["pruner"].keep
    state = again["traced"].module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole["traced"].module.state_dict().items())


class Endless(IterableDataset[dict[str, torch.Tensor]]):
    """Images without a length."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for image, label in zip(IMAGES, LABELS, strict=True):
            yield {"pixel_values": image, "labels": label}


def trainer_names(folder: Path, **changed: Any) -> dict[str, Any]:
    """What the example of Hugging Face's Trainer takes for granted."""
    import transformers

    options = {
        "use_cpu": True, "report_to": [], "save_strategy": "epoch", "per_device_train_batch_size": 8,
        "disable_tqdm": True, **changed,
    }  # fmt: skip
    dataset = [{"pixel_values": image, "labels": label} for image, label in zip(IMAGES, LABELS, strict=True)]
    return {"transformers": transformers, "options": options, "folder": str(folder), "dataset": dataset}


@pytest.mark.slow
@pytest.mark.skipif(not installed("transformers", "accelerate"), reason="wants transformers and accelerate")
@pytest.mark.filterwarnings("ignore")
def test_hugging_face(tmp_path: Path) -> None:
    import transformers

    found = {**names(), **trainer_names(tmp_path)}
    exec(example("huggingface"), found)  # noqa: S102
    done(found)
    again = {**names(), **trainer_names(tmp_path)}
    text = example("huggingface").replace("callbacks=[GradualPruning(pruner)]", "callbacks=[callback]")
    text = text.replace("arguments = ", "callback = GradualPruning(pruner)\narguments = ")
    exec(text.replace("trainer.train()", ""), again)  # noqa: S102
    half = tmp_path / "checkpoint-6"
    with pytest.raises(curlfx.CurlfxError, match=r"after epoch 2, the pruning after epoch 0: call load\(folder\)"):
        again["callback"].on_train_begin(again["arguments"], transformers.TrainerState(epoch=2.0), None)
    again["callback"].load(half)
    assert again["pruner"].epoch == 2
    again["trainer"].train(resume_from_checkpoint=str(half))
    done(again)
    assert again["pruner"].keep == found["pruner"].keep
    state = again["traced"].module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found["traced"].module.state_dict().items())


@pytest.mark.slow
@pytest.mark.skipif(not installed("transformers", "accelerate"), reason="wants transformers and accelerate")
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_stops_within_an_epoch(tmp_path: Path) -> None:
    found = {**names(), **trainer_names(tmp_path, max_steps=8)}  # 2 2/3 epochs
    exec(example("huggingface"), found)  # noqa: S102
    assert [step.epoch for step in found["pruner"].history] == [1, 2]
    assert found["pruner"].epoch == 2


@pytest.mark.slow
@pytest.mark.skipif(not installed("transformers", "accelerate"), reason="wants transformers and accelerate")
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_refuses_what_it_cannot_follow(tmp_path: Path) -> None:
    found = {**names(), **trainer_names(tmp_path, eval_strategy="epoch", load_best_model_at_end=True)}
    text = example("huggingface").replace("train_dataset=dataset", "train_dataset=dataset, eval_dataset=dataset")
    with pytest.raises(curlfx.CurlfxError, match="load_best_model_at_end=True"):
        exec(text, found)  # noqa: S102
    endless = {**names(), **trainer_names(tmp_path, max_steps=8), "dataset": Endless()}
    with pytest.raises(curlfx.CurlfxError, match="has no length"):
        exec(example("huggingface"), endless)  # noqa: S102
    assert found["pruner"].epoch == endless["pruner"].epoch == 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    for name, wanted in (("lightning", "pip install lightning"), ("huggingface", "pip install transformers")):
        monkeypatch.delitem(sys.modules, f"curlfx.gradual.{name}", raising=False)
        with pytest.raises(curlfx.CurlfxError, match=wanted):
            importlib.import_module(f"curlfx.gradual.{name}")
