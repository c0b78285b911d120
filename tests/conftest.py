"""What every test gets: a fixed seed, one thread per process, and the shared weights where they are to be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("fast", max_examples=20, deadline=None, derandomize=True)
hypothesis.settings.register_profile("thorough", max_examples=500, deadline=None, print_blob=True)
hypothesis.settings.register_profile("nightly", max_examples=1000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run also the tests that take seconds, as CI does")
    parser.addoption("--nightly", action="store_true", help="run all tests, those that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    nightly = config.getoption("--nightly")
    left_out = {"slow": not (nightly or config.getoption("--slow")), "nightly": not nightly}
    for item in items:
        for mark, out in left_out.items():
            if out and item.get_closest_marker(mark) is not None:
                item.add_marker(pytest.mark.skip(reason=f"{mark}; run with --{mark}"))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small networks do not gain from threads, and parallel test processes lose by them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the pretrained CIFAR weights, from CURLFX_DATA or beside the checkout; skips without it."""
    folder = Path(os.environ.get("CURLFX_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "resnet20-cifar10-jpeg.safetensors").is_file():
        pytest.skip("the pretrained CIFAR weights do not ship with curlfx; set CURLFX_DATA to a folder that has them")
    return folder
