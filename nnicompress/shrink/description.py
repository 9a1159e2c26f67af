"""A compact model on disk: safetensors plus a description that fits a freshly built model to them.

    model/
      model.safetensors      every tensor once, buffers that a state_dict lacks included
      description.json       how the model is built, ties, attributes that differ from a fresh model's
      example.safetensors    one input and its output, which loading checks

Nothing is pickled, and nothing depends on this library but the loader.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.contract import ModelInput

WEIGHTS, DESCRIPTION, EXAMPLE = "model.safetensors", "description.json", "example.safetensors"
FORMAT = 1
TOLERANCE = 1e-4
"""Relative to the largest output; another machine may sum in another order."""


def save(model: nn.Module, fresh: nn.Module, recipe: Mapping[str, Any], example: ModelInput, folder: Path) -> None:
    """Write `model` into `folder` (made if missing).

    `fresh` is the model as `recipe` (plain values, usually a `_target_` with its arguments) builds it: what differs
    from it is what gets written. Raises UserError where the example's inputs are neither tensors nor plain values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = _names_by_tensor(model)
    tensors = {aliases[0]: tensor for aliases, tensor in names}
    inputs: dict[str, Tensor] = {}
    structure = _encode(list(example), inputs)
    outputs = {f"output.{number}": leaf for number, leaf in enumerate(_outputs(model, example))}
    description = {
        "format": FORMAT,
        "model": recipe,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "frozen": [a[0] for a, t in names if isinstance(t, nn.Parameter) and not t.requires_grad],
        "ties": [aliases for aliases, _ in names if len(aliases) > 1],
        "attributes": [list(change) for change in _changed_attributes(fresh, model)],
        "example": structure,
    }
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    save_file({n: t.detach().cpu().contiguous().clone() for n, t in {**inputs, **outputs}.items()}, folder / EXAMPLE)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, build: Callable[[Mapping[str, Any]], nn.Module]) -> nn.Module:
    """The compact, trainable model of `folder`, in eval mode.

    `build` makes a fresh model from the stored recipe. Raises UserError where `folder` holds no model, JobError where
    the loaded model does not give the stored example's output.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        tensors, example = load_file(folder / WEIGHTS), load_file(folder / EXAMPLE)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no model: {Path(str(error.filename)).name} is missing") from error
    model = build(description["model"])
    fit(model, description, tensors)
    args, kwargs = _decode(description["example"], example)
    for number, actual in enumerate(_outputs(model, (tuple(args), kwargs))):
        expected = example[f"output.{number}"]
        scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-12)
        if expected.shape != actual.shape or not float((expected - actual).abs().max()) <= TOLERANCE * scale:
            raise JobError(f"{folder}: the loaded model does not give the stored output on the stored input")
    return model


def fit(model: nn.Module, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Give a freshly built model the stored tensors and attributes, whatever its widths were."""
    known = {alias for aliases, _ in _names_by_tensor(model) for alias in aliases}
    aliases = {group[0]: group for group in description["ties"]}
    expected = {alias for name in tensors for alias in aliases.get(name, [name])}
    if known != expected:
        odd = sorted(known ^ expected)[:3]
        raise JobError(f"{type(model).__name__} as built has other tensors than the stored ones, for example {odd}")
    for name, stored in tensors.items():
        group = aliases.get(name, [name])
        owner, _, leaf = group[0].rpartition(".")
        old = getattr(model.get_submodule(owner), leaf)
        new = nn.Parameter(stored, name not in description["frozen"]) if isinstance(old, nn.Parameter) else stored
        for alias in group:
            owner, _, leaf = alias.rpartition(".")
            setattr(model.get_submodule(owner), leaf, new)
    for path, attribute, value in description["attributes"]:
        setattr(model.get_submodule(path), attribute, tuple(value) if isinstance(value, list) else value)
    model.eval()


def _names_by_tensor(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Every parameter and buffer once, with all of its names."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())


def _changed_attributes(fresh: nn.Module, model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Plain attributes in which `model` differs from `fresh`: (module path, name, value)."""
    originals = dict(fresh.named_modules())
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or name == "training" or not _is_plain(value):
                continue
            if vars(originals[path]).get(name) != value:
                yield path, name, value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return type(value) in (int, float, bool, str)


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"input.{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _encode(item, tensors) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_encode(item, tensors) for item in value]
    if value is None or type(value) in (int, float, bool, str):
        return value
    raise UserError(f"the model's example input holds a {type(value).__name__}; tensors and plain values can be stored")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if isinstance(value, Mapping):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _decode(item, tensors) for key, item in value["mapping"].items()}
    return value


def _outputs(model: nn.Module, example: ModelInput) -> list[Tensor]:
    """The output's tensors, of a forward in eval mode."""
    modes = {module: module.training for module in model.modules()}
    args, kwargs = example
    try:
        with torch.no_grad():
            output = model.eval()(*args, **kwargs)
    finally:
        for module, training in modes.items():
            module.training = training
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
