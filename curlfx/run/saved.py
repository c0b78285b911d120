"""A slim network as a folder: saved by `save` or by a run, and made again from its factory or from its graph.

    network.json        which factory, inputs and versions, and a hash of every other file
    plan.json           which channels stay
    slim.safetensors    the weights, by state-dict name
    slim.pt2            the graph with the weights, for `load(..., graph=True)`

No file holds a pickle. A run directory holds these files beside its own.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from torch import Tensor, nn

from curlfx.deploy.examples import describe_inputs, make_inputs
from curlfx.deploy.program import load_program, save_program
from curlfx.errors import ModelError, OutputError, PlanError, SavedError, TraceError
from curlfx.files import probe, sha256, unwritable, write_bytes
from curlfx.graph.trace import trace
from curlfx.graph.traced import TracedModel
from curlfx.ops.table import Rule
from curlfx.planning import SlimPlan
from curlfx.planning.apply import slim as slim_by_plan
from curlfx.planning.structure import structure
from curlfx.run.directory import STATE, write_json
from curlfx.run.job import save_tensors
from curlfx.sources import forward_for, load_model

MANIFEST = "network.json"
PLAN = "plan.json"
WEIGHTS = "slim.safetensors"
PROGRAM = "slim.pt2"
FILES = (PLAN, WEIGHTS, PROGRAM)


class Manifest(BaseModel):
    """What ``network.json`` says.

    Attributes:
        format: Of this file.
        model: The factory that makes the dense network, as MODEL; None where none was named.
        num_classes: Size of the head that the factory was asked for; None for its own.
        dtype: Floating-point type of the parameters, like ``float32``; None where they are of several.
        inputs: Shapes and types of the example inputs.
        dynamic_batch: Whether the graph takes any batch size.
        constants: Hash of every buffer that is not in the state dict, by name; the factory must make the same.
        files: SHA-256 of every file, by name.
        versions: Of curlfx and torch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    model: str | None
    num_classes: int | None
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None
    inputs: JsonValue
    dynamic_batch: bool
    constants: dict[str, str]
    files: dict[str, str]
    versions: dict[str, str]

    @classmethod
    def of(cls, network: TracedModel, model: str | None, num_classes: int | None, files: Mapping[str, str]) -> Self:
        """The description of a network. Raises: SavedError for inputs that cannot be described."""
        types = {str(p.dtype).removeprefix("torch.") for p in network.module.parameters() if p.is_floating_point()}
        return cls(
            model=model,
            num_classes=num_classes,
            dtype=types.pop() if len(types) == 1 else None,  # type: ignore[arg-type]  # pydantic checks it
            inputs=describe_inputs(network.example_inputs),
            dynamic_batch=network.dynamic_batch,
            constants=_constants(network),
            files=dict(files),
            versions={"curlfx": importlib.metadata.version("curlfx"), "torch": str(torch.__version__)},
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The description in a folder. Raises: SavedError naming the file and the field that is wrong."""
        path = folder / MANIFEST
        if not path.is_file():
            raise SavedError(f"{folder} holds no saved network: {_what_else(folder)}")
        try:
            return cls.model_validate_json(_read(path))
        except ValidationError as cause:
            first = cause.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "the file"
            raise SavedError(f"{path}: {field}: {first['msg'][:1].lower()}{first['msg'][1:]}") from cause

    def content(self, folder: Path, name: str) -> bytes:
        """The bytes of a file, as they were written. Raises: SavedError when they are missing or others."""
        content = _read(folder / name)
        if self.files.get(name) != sha256(content):
            raise SavedError(f"{folder / name} is not the file that was saved (its hash differs); restore it")
        return content


def save(
    slim: TracedModel,
    folder: str | Path,
    *,
    plan: SlimPlan,
    model: str | None = None,
    num_classes: int | None = None,
    rules: Mapping[Any, Rule] | None = None,
) -> None:
    """Write a slim network, so that `load` makes it again, bit for bit.

    Args:
        slim: From :func:`curlfx.slim` with ``plan``, trained since or not.
        folder: Made where it is missing; may hold what an earlier call wrote, and nothing else.
        plan: What was removed.
        model: The factory of the dense network, as `curlfx.load_model` takes it; none leaves naming it to `load`.
        num_classes: As for `curlfx.load_model`.
        rules: Rules of ops of one's own that the plan was made with.

    Raises: SavedError when factory and plan do not make a network like ``slim``, as after other passes than slimming,
        or a trace with options of its own;
        OutputError when the folder holds other files or cannot be written; PlanError, ModelError.
    """
    folder = Path(folder)
    if model is not None:
        _check_origin(slim, plan, model, num_classes, rules)
    require_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    write_bytes(folder / PLAN, plan.noting(**_origin(model, num_classes)).to_json().encode())
    save_tensors(slim.module, folder / WEIGHTS, plan=PLAN)
    write_graph(slim, folder, model, num_classes)


def require_free(folder: Path) -> None:
    """Refuse a folder that `save` would refuse, before the work that makes the network; nothing is made.

    Raises: OutputError when it holds other files or cannot be written.
    """
    try:
        probe(next(place for place in (folder, *folder.parents) if place.exists()))
        strangers = sorted({path.name for path in folder.iterdir()} - {MANIFEST, *FILES}) if folder.exists() else []
    except OSError as error:
        raise unwritable(folder, error) from error
    if strangers:
        raise OutputError(f"{folder} holds other files ({strangers[0]}); name another folder")


def write_graph(slim: TracedModel, folder: Path, model: str | None, num_classes: int | None) -> None:
    """Write what is still missing beside the plan and the weights: the graph, and the description of them all."""
    save_program(slim, folder / PROGRAM)
    files = {name: sha256(_read(folder / name)) for name in FILES}
    write_json(folder / MANIFEST, Manifest.of(slim, model, num_classes, files).model_dump(mode="json"))


def load(
    folder: str | Path,
    *,
    graph: bool = False,
    model: str | nn.Module | None = None,
    rules: Mapping[Any, Rule] | None = None,
) -> TracedModel:
    """A saved slim network, in eval mode on the CPU: ``.module`` trains, and computes what it did, bit for bit.

    Args:
        folder: Written by `save`, or the directory of a run.
        graph: Take the saved graph: needs no class and no factory, but a torch that reads the file. Otherwise the dense
            network is made by its factory (whose code runs), traced, slimmed by the plan, and given the saved weights.
        model: The dense network, or its factory, in place of the one on record.
        rules: Rules of ops of one's own that the plan was made with.

    Raises: SavedError naming the file that is missing, damaged, or not the one that was saved; ModelError when the
        factory is gone; PlanError when it makes another network now.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    if graph:
        return _from_graph(folder, manifest)
    return _from_factory(folder, manifest, model if model is not None else manifest.model, rules)


def _from_graph(folder: Path, manifest: Manifest) -> TracedModel:
    content = manifest.content(folder, PROGRAM)
    try:
        return load_program(content)
    except SavedError as error:
        wrote, reads = manifest.versions.get("torch"), str(torch.__version__)
        remedy = (
            f"; it was written by torch {wrote}: load it with that, or without graph=True" if wrote != reads else ""
        )
        raise SavedError(f"{folder / PROGRAM}: {error}{remedy}") from error


def _from_factory(
    folder: Path, manifest: Manifest, model: str | nn.Module | None, rules: Mapping[Any, Rule] | None
) -> TracedModel:
    if model is None:
        raise SavedError(f"{folder / MANIFEST} names no factory; give model=, or take the saved graph (graph=True)")
    text, weights = manifest.content(folder, PLAN), manifest.content(folder, WEIGHTS)
    try:
        plan = SlimPlan.from_json(text.decode())
        network = _slimmed(plan, model, manifest, rules)
    except (ModelError, PlanError, TraceError) as error:
        raise type(error)(
            f"{folder}: {error}; name the factory with model=, or take the saved graph (graph=True)"
        ) from error
    _give(network, _tensors(folder / WEIGHTS, weights), folder / WEIGHTS)
    made = _constants(network)
    for name, digest in manifest.constants.items():
        if made.get(name) != digest:
            raise SavedError(
                f"{folder}: the factory gives '{name}', which is in no state dict, other values than it had; "
                "take the saved graph (graph=True)"
            )
    network.module.eval()
    return network


def _slimmed(
    plan: SlimPlan, model: str | nn.Module, manifest: Manifest, rules: Mapping[Any, Rule] | None
) -> TracedModel:
    """What the plan leaves of the factory's network, of its own weights. Raises: ModelError, PlanError, TraceError."""
    if isinstance(model, nn.Module):
        dense = copy.deepcopy(model)
    else:
        with torch.random.fork_rng(devices=[]):
            dense = load_model(model, num_classes=manifest.num_classes)
    if manifest.dtype is not None:
        dense = dense.to(getattr(torch, manifest.dtype))
    inputs = make_inputs(manifest.inputs)
    traced = trace(dense, inputs, dynamic_batch=manifest.dynamic_batch, forward=forward_for(dense))
    return slim_by_plan(traced, plan, rules=rules)


def _give(network: TracedModel, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put saved tensors into a network. Raises: SavedError naming the first that does not fit."""
    wanted = network.module.state_dict()
    odd = next((name for name in [*wanted, *tensors] if name not in wanted or name not in tensors), None)
    if odd is not None:
        raise SavedError(
            f"{path}: '{odd}' is {'not there' if odd in wanted else 'not of this network'}; restore the file"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise SavedError(f"{path}: {name} is {tuple(tensor.shape)}, the plan leaves {tuple(wanted[name].shape)}")
    network.set_parameters({name: tensor.clone() for name, tensor in tensors.items()})


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as cause:
        raise SavedError(f"{path} is no readable safetensors file: {cause}") from cause


def _check_origin(
    slim: TracedModel, plan: SlimPlan, model: str, num_classes: int | None, rules: Mapping[Any, Rule] | None
) -> None:
    """Refuse to name a factory that would not give this network back. Raises: SavedError, ModelError, PlanError."""
    made = _slimmed(plan, model, Manifest.of(slim, model, num_classes, {}), rules)
    shapes, found = (_shapes(network) for network in (slim, made))
    name = next((name for name in [*shapes, *found] if shapes.get(name) != found.get(name)), None)
    if name is not None:
        raise SavedError(
            f"{model} and the plan make another network: {name} is {found.get(name, 'not there')}, "
            f"in the network to save {shapes.get(name, 'not there')}"
        )
    for wanted, op in zip(structure(slim).ops, structure(made).ops, strict=False):
        if wanted.text != op.text:
            raise SavedError(
                f"{model} and the plan make another network: {op.text}, in the network to save {wanted.text}"
            )


def _shapes(network: TracedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.module.state_dict().items()}


def _constants(network: TracedModel) -> dict[str, str]:
    """Hash of what the network holds beside its state dict, as index tables."""
    saved = network.module.state_dict()
    return {name: _tensor_hash(tensor) for name, tensor in network.tensors().items() if name not in saved}


def _tensor_hash(tensor: Tensor) -> str:
    return sha256(safetensors.torch.save({"": tensor.detach().cpu().clone().contiguous()}))


def _origin(model: str | None, num_classes: int | None) -> dict[str, JsonValue]:
    if model is None:
        return {}
    return {"model": model, "arguments": {} if num_classes is None else {"num_classes": num_classes}}


def _what_else(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    if (folder / STATE).is_file():
        return f"its run has not come to the export, or is of an earlier curlfx (no {MANIFEST})"
    return f"want {MANIFEST}, as curlfx.save and curlfx run write it"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as cause:
        raise SavedError(f"{path}: cannot read it: {cause.strerror or cause}; restore it") from cause
