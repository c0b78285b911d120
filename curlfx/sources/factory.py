"""Objects that a user names as ``file.py:factory`` or ``package.module:factory``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn
from torch._library.custom_ops import CustomOpDef
from torch.library import Library

from curlfx.errors import UsageError, did_you_mean

NOT_THE_USERS = ("<", sysconfig.get_path("stdlib"), str(Path(__file__).resolve().parents[1]))
"""How the file names of generated code, of Python and of curlfx begin."""
OURS = "curlfx_user_"
"""How the names of the modules begin that are executed here."""
EXECUTED: dict[Path, tuple[bytes, ModuleType]] = {}
"""The files executed here that hold operators, with their bytes at that time."""


def load_attribute(spec: str, error: type[UsageError], known: Iterable[str] = ()) -> object:
    """Return what ``spec`` names; the file or module is executed, as with ``python``, its own folder importable.

    A module is executed once in a process, and a file every time: what it makes is new and follows from the seed. A
    file that holds operators of torch is executed once too, unless it has changed: registered again, they would be gone
    from the graphs that have them.

    ``known`` are the words that could stand in front of the colon in place of a file or module.
    Raises: ``error`` when the file or module does not exist, does not import, or has no such attribute; when that is a
        network made ready in a file with operators.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise error(f"{spec!r}: want file.py:factory or package.module:factory")
    if where.endswith(".py"):
        module = _import_file(Path(where), error)
    else:
        module = _import_module(where, error, did_you_mean(where, known))
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise error(f"{where} has no {name!r}{did_you_mean(name, public, 3)}")
    found: object = getattr(module, name)
    if where.endswith(".py") and isinstance(found, nn.Module) and _has_operators(module):
        raise error(f"{spec}: a file with operators is executed once; name a function that returns a new network")
    return found


def _import_file(path: Path, error: type[UsageError]) -> ModuleType:
    if not path.is_file():
        raise error(f"no file {path}")
    name, file = f"{OURS}{path.stem}", path.resolve()
    try:
        source = path.read_bytes()
    except OSError as cause:
        raise error(f"{path} cannot be read: {describe(cause)}") from cause
    known = _executed(file, source) or _imported(file)
    if known is not None:
        sys.modules[known.__name__] = known
        return known
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise error(f"{path} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and typing look a class's module up there
    with _importable(file.parent):
        try:
            module_spec.loader.exec_module(module)
        except (Exception, SystemExit) as cause:
            del sys.modules[name]
            raise error(f"{path} does not import: {describe(cause)}") from cause
    if _has_operators(module):
        EXECUTED[file] = source, module
    return module


def _executed(file: Path, source: bytes) -> ModuleType | None:
    known, module = EXECUTED.get(file, (b"", None))
    return module if known == source else None


def _imported(file: Path) -> ModuleType | None:
    """The module with operators that the program itself has read from ``file``."""
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__dict__", {}).get("__file__")  # asking the module itself would wake lazy ones
        if name.startswith(OURS) or not isinstance(origin, str) or not origin.endswith(file.name):
            continue
        if Path(origin).resolve() == file and _has_operators(module):
            return module
    return None


def _has_operators(module: ModuleType) -> bool:
    return any(issubclass(type(value), (CustomOpDef, Library)) for value in list(vars(module).values()))


def _import_module(name: str, error: type[UsageError], hint: str) -> ModuleType:
    with _importable(Path.cwd()):
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as cause:
            raise error(f"module {name!r} does not import: {describe(cause)}{hint}") from cause


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def describe(error: BaseException) -> str:
    """Return the type and the first line of the message of ``error``, and the user's line that raised it, if any."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith(NOT_THE_USERS) and "site-packages" not in file:
            place = f" ({Path(file).name}:{line})"
    return text + place
