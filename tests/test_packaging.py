"""What is shipped is what is there: packages, the passes, names, dependencies, and the commands of the README."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import curlfx

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ALONG = {"google": "protobuf, which onnx is made of", "pydantic_core": "the errors of pydantic"}
"""Modules that come with a declared dependency and are part of its interface."""
OTHER_NAMES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
"""Distributions whose module has another name."""


def packages() -> set[str]:
    inside = {path.parent.relative_to(ROOT) for path in (ROOT / "curlfx").rglob("__init__.py")}
    passes = {Path("curlfx") / path.parent.relative_to(ROOT) for path in (ROOT / "passes").rglob("__init__.py")}
    return {".".join(path.parts) for path in inside | passes}


def sources() -> list[Path]:
    return [*(ROOT / "curlfx").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]


def test_every_package_is_listed() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == listed
    assert set(listed) == packages()


def test_every_folder_with_code_is_a_package() -> None:
    assert {path.parent for path in sources()} == {path.parent for path in sources() if path.name == "__init__.py"}


def test_link_leads_to_the_passes() -> None:
    link = ROOT / "curlfx" / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")


def test_passes_have_one_name() -> None:
    spec = importlib.util.spec_from_file_location("passes", ROOT / "passes" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"imports as 'curlfx\.passes', not as 'passes'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this checkout as a clone would have them, with room for what building leaves behind."""
    pytest.importorskip("setuptools", reason="the wheel is built in this environment, without a network")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=False
    )
    if tracked.returncode != 0:
        pytest.skip("no git checkout to copy from")
    place = tmp_path_factory.mktemp("checkout") / "curlfx"
    for name in tracked.stdout.decode().splitlines():
        source, target = ROOT / name, place / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    (place / "curlfx" / "passes").symlink_to("../passes")
    return place


def build(source: Path, folder: Path) -> Path:
    """The wheel of a source tree, made without a network."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy, tmp_path_factory.mktemp("wheel"))


def held(wheel: Path) -> dict[str, bytes]:
    """What a wheel holds of the package."""
    archive = zipfile.ZipFile(wheel)
    return {name: archive.read(name) for name in archive.namelist() if name.startswith("curlfx/")}


def test_wheel_holds_everything(wheel: Path) -> None:
    shipped = {path for path in (ROOT / "curlfx").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    passes = {f"curlfx/passes/{path.relative_to(ROOT / 'passes')}" for path in (ROOT / "passes").rglob("*.py")}
    assert set(held(wheel)) == {str(path.relative_to(ROOT)) for path in shipped} | passes
    assert "curlfx/py.typed" in held(wheel)


def test_sdist_makes_the_same_wheel(copy: Path, wheel: Path, tmp_path: Path) -> None:
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    again = build(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path)
    assert held(again) == held(wheel)


def test_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "elsewhere"
    folder.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    code = "import curlfx, importlib.metadata as m; print(curlfx.__file__, m.version('curlfx') == curlfx.__version__)"
    inside = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    assert inside.stdout.split() == [str(site / "curlfx" / "__init__.py"), "True"]
    command = [str(site / "bin" / "curlfx"), "inspect", "curlfx:digits", "--drawing", "net.svg"]
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    assert "coupling groups" in done.stdout
    assert (folder / "net.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("name", sorted(curlfx.EXPORTS))
def test_public_name_exists(name: str) -> None:
    assert callable(getattr(curlfx, name))
    assert name in dir(curlfx)


def test_public_names_are_typed() -> None:
    tree = ast.parse((ROOT / "curlfx" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname for node in imports for alias in node.names} == set(curlfx.EXPORTS)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'curlfx' has no attribute 'prune'"):
        curlfx.prune  # noqa: B018


HEAVY = (
    "PIL", "jinja2", "lightning", "matplotlib", "networkx", "numpy", "onnx", "onnxruntime", "onnxscript", "pydantic",
    "ray", "rich", "safetensors", "scipy", "sklearn", "timm", "torch", "torchvision", "transformers", "typer", "yaml",
)  # fmt: skip
"""What takes long to import, and is imported when it is needed."""


def loaded(code: str) -> set[str]:
    """Which of `HEAVY` are there after a program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], check=True, capture_output=True, text=True
    )
    return set(HEAVY) & set(done.stdout.split())


def test_import_is_light() -> None:
    assert loaded("import curlfx, curlfx.errors") == set()


@pytest.mark.slow
def test_tracing_and_planning_need_no_runtime() -> None:
    names = "trace, couple, score, plan, slim, slim_"
    late = {"PIL", "lightning", "matplotlib", "onnx", "onnxruntime", "onnxscript", "ray", "sklearn", "timm"}
    late |= {"torchvision", "transformers", "typer"}
    assert loaded(f"from curlfx import {names}") & late == set()


@pytest.mark.slow
def test_run_can_be_called_whatever_was_imported_first() -> None:
    code = "import curlfx.run.config, curlfx; assert callable(curlfx.run); assert curlfx.run.config.RunConfig"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version() -> None:
    assert importlib.metadata.version("curlfx") == curlfx.__version__


def declared() -> set[str]:
    core = PROJECT["project"]["dependencies"]
    return {re.split(r"[<>=!~\[; ]", line)[0].lower() for line in core}


def imported() -> set[str]:
    """Top-level modules that our files import, other than Python's and ours."""
    names = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"curlfx"}


@pytest.mark.slow
def test_dependencies_are_those_that_are_used() -> None:
    used = {OTHER_NAMES.get(name, name) for name in declared()}
    extra = {"lightning", "onnxslim", "pytorch_lightning", "ray", "timm", "transformers"}
    assert imported() - used - extra == set(ALONG)
    assert used - imported() == set()


@pytest.mark.parametrize("name", ["main", "tests"])
def test_readme_has_one_line_to_set_up_and(name: str) -> None:
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(rf"<!-- command: {name} -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert block.count("\n") == 1
    assert block.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
