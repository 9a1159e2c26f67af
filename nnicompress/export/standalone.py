"""Loads the model that lies beside this file: `from load import load; model = load()`.

Needs torch and safetensors, and whatever library the model's own class comes from. `python load.py` loads the model
and prints how far its output on the stored example is from the stored output. Beside it lie

    model.safetensors      every tensor once
    description.json       how the model is built, ties, and what compression changed
    example.safetensors    one input and its output, which loading checks
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

HERE = Path(__file__).resolve().parent
WEIGHTS, DESCRIPTION, EXAMPLE = "model.safetensors", "description.json", "example.safetensors"
TOLERANCE = 1e-4
"""Relative to the largest output; another machine may sum in another order."""
PACKAGES = {"torchvision": "torchvision", "timm": "timm", "transformers": "transformers"}
"""Module -> what to install for it."""


class LoadError(RuntimeError):
    """The model can't be loaded; one line says why, and what to do."""


class Stored(NamedTuple):
    """The files of a model, read."""

    folder: Path
    description: dict[str, Any]
    tensors: dict[str, Tensor]
    example: dict[str, Tensor]


def load(folder: str | Path = HERE) -> nn.Module:
    """The model, in evaluation mode, on the CPU, and trainable unless it is quantized.

    Raises:
        LoadError: a file is missing or damaged, the model's class can't be imported, or the loaded model does not give
            the stored output.
    """
    stored = read(folder)
    model: nn.Module = build(stored.description["build"], stored.folder)
    fit(model, stored)
    check(model, stored)
    return model


def read(folder: str | Path) -> Stored:
    """The description, the weights and the example of `folder`."""
    folder = Path(folder)
    missing = [name for name in (DESCRIPTION, WEIGHTS, EXAMPLE) if not (folder / name).is_file()]
    if missing:
        raise LoadError(f"{folder} holds no model: {missing[0]} is missing")
    name = DESCRIPTION
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        name = WEIGHTS
        tensors = load_file(folder / WEIGHTS)
        name = EXAMPLE
        return Stored(folder, description, tensors, load_file(folder / EXAMPLE))
    except (ValueError, SafetensorError) as error:
        raise LoadError(f"{folder / name} is damaged: {error}") from error


# ------------------------------------------------------------------------------------------------ the model as built


def build(node: Any, folder: Path) -> Any:
    """What `node` describes: a mapping with `_target_` is a call, with `_args_` its positional arguments."""
    if isinstance(node, list):
        return [build(item, folder) for item in node]
    if not isinstance(node, Mapping):
        return node
    values = {name: build(value, folder) for name, value in node.items() if name not in ("_target_", "_args_")}
    if "_target_" not in node:
        return values
    positional = build(node.get("_args_", []), folder)
    target = node["_target_"]
    try:
        return find(target, folder)(*positional, **values)
    except LoadError:
        raise
    except Exception as error:  # a constructor of anybody's may raise anything
        raise LoadError(f"{target} can't be built as it was: {type(error).__name__}: {error}") from error


def find(target: str, folder: Path) -> Callable[..., Any]:
    """The class or function `resnet.py:resnet20` of a file in `folder`, or `package.module.name` of an import."""
    if ".py:" in target:
        file, _, name = target.partition(":")
        found: Callable[..., Any] = getattr(_file_as_module(folder / file), name)
        return found
    parts = target.split(".")
    value: Any = _import(parts[0], target)
    for depth, part in enumerate(parts[1:], start=2):
        if depth < len(parts) and not hasattr(value, part) and isinstance(value, ModuleType):
            _import(".".join(parts[:depth]), target)
        if not hasattr(value, part):
            raise LoadError(f"the model is built by {target}, and {'.'.join(parts[: depth - 1])} has no {part!r}")
        value = getattr(value, part)
    found = value
    return found


def _import(name: str, target: str) -> ModuleType:
    """Import a module that the model's class needs; the error says what to install, or to put on PYTHONPATH."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition(".")[0]
        root = name.partition(".")[0]
        if error.name is not None and missing != root:
            raise LoadError(f"the model is built by {target}, which needs {missing}: {error}") from error
        if "." in name:
            raise LoadError(f"the model is built by {target}, and there is no module {name!r} in {root}") from error
        if root in PACKAGES:
            raise LoadError(f"the model is built by {target}: pip install {PACKAGES[root]}") from error
        raise LoadError(
            f"the model is built by {target}, your own code, and there is no module {root!r}: put the folder that "
            f"holds {root}.py (or the package {root}) on PYTHONPATH, as in PYTHONPATH=FOLDER python load.py"
        ) from error


def _file_as_module(file: Path) -> ModuleType:
    """Import a file under a name of its own, so that models of several folders can live in one process."""
    name = f"{file.stem}_{zlib.crc32(str(file.resolve()).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise LoadError(f"{file} is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a model's folder stays as it was written
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


# ------------------------------------------------------------------------------------------- the model as compressed


def fit(model: nn.Module, stored: Stored) -> None:
    """Give a freshly built model the stored tensors and attributes, whatever its widths were."""
    description, tensors = stored.description, stored.tensors
    known = {
        name
        for found in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        for name, _ in found
    }
    names = {group[0]: group for group in description["ties"]}
    expected = {name for first in tensors for name in names.get(first, [first])}
    if known != expected:
        odd = sorted(known ^ expected)[:3]
        raise LoadError(f"{type(model).__name__} as built has other tensors than the stored ones, for example {odd}")
    for first, tensor in tensors.items():
        owner, _, leaf = first.rpartition(".")
        is_parameter = isinstance(getattr(model.get_submodule(owner), leaf), nn.Parameter)
        value = nn.Parameter(tensor, first not in description["frozen"]) if is_parameter else tensor
        for name in names.get(first, [first]):
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, value)
    for path, attribute, value in description["attributes"]:
        setattr(model.get_submodule(path), attribute, tuple(value) if isinstance(value, list) else value)
    for path, names, value in description.get("configs", ()):
        config: Any = model.get_submodule(path)
        for name in names[:-1]:
            config = getattr(config, name)
        setattr(config, names[-1], value)
    model.eval()


def check(model: nn.Module, stored: Stored) -> float:
    """The largest difference to the stored output on the stored input, relative to the largest output.

    Raises:
        LoadError: it is more than rounding can explain.
    """
    worst = 0.0
    for number, actual in enumerate(outputs(model, *example_inputs(stored))):
        difference = _relative(stored.example[f"output.{number}"], actual)
        # A NaN compares False with everything, and must not pass.
        if not difference <= TOLERANCE:
            raise LoadError(f"{stored.folder}: the loaded model does not give the stored output on the stored input")
        worst = max(worst, difference)
    return worst


def _relative(expected: Tensor, actual: Tensor) -> float:
    """The largest difference relative to the largest finite value; infinities must be equal, shapes too."""
    if expected.shape != actual.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    expected, actual = expected.double(), actual.double()
    gap = (expected - actual).abs().masked_fill(expected == actual, 0.0)
    scale = expected.abs().masked_fill(~expected.isfinite(), 0.0).max().clamp_min(1e-12)
    return float(gap.max() / scale)


def example_inputs(stored: Stored) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the forward: two samples of real data."""
    args, kwargs = _decode(stored.description["example"], stored.example)
    return tuple(args), kwargs


def outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that the model returns in evaluation mode; every module is left in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            output = model.eval()(*args, **kwargs)
    finally:
        for module, training in modes.items():
            module.training = training
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Arguments of the forward from their description, in which a tensor stands as its name."""
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if isinstance(value, Mapping):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _decode(item, tensors) for key, item in value["mapping"].items()}
    return value


def main() -> int:
    """Load the model beside this file and print what it is."""
    try:
        stored = read(HERE)
        model = build(stored.description["build"], HERE)
        fit(model, stored)
        difference = check(model, stored)
    except LoadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parameters = list(model.parameters())
    trainable = sum(parameter.requires_grad for parameter in parameters)
    if parameters:
        print(f"{type(model).__name__}: {sum(p.numel() for p in parameters):,} parameters, ", end="")
        print(f"{trainable} of {len(parameters)} tensors trainable")
    else:
        size = sum(b.numel() * b.element_size() for b in model.buffers())
        print(f"{type(model).__name__}: {size:,} bytes in tensors, none trainable")
    print(f"largest difference to the stored output, relative: {difference:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
