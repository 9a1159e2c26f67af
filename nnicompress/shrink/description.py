"""A compact model on disk: safetensors plus a description that fits a freshly built model to them.

    model/
      model.safetensors      every tensor once, buffers that a state_dict lacks included
      description.json       how the model is built, ties, attributes and configs that differ from a fresh model's
      example.safetensors    one input and its output, which loading checks

Nothing is pickled. `nnicompress/export/standalone.py` reads these files, here and, copied as `load.py`, without us.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export import standalone
from nnicompress.export.standalone import DESCRIPTION, EXAMPLE, WEIGHTS, outputs

FORMAT = 1


def save(
    model: nn.Module,
    fresh: nn.Module,
    recipe: Mapping[str, Any],
    example: ModelInput,
    folder: Path,
    build: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` into `folder` (made if missing).

    `fresh` is the model as `recipe` (plain values, usually a `_target_` with its arguments) builds it: what differs
    from it is what gets written. `build` says the same without us, for the stand-alone loader, whose files are in
    `folder` already; None: `recipe` does.

    Raises:
        UserError: the example's inputs are neither tensors nor plain values.
        JobError: `build` builds nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    originals = [fresh] if build is None else [fresh, _built_alone(build, folder)]
    names = _names_by_tensor(model)
    tensors = {aliases[0]: tensor for aliases, tensor in names}
    inputs: dict[str, Tensor] = {}
    structure = _encode(list(example), inputs)
    results = {f"output.{number}": leaf for number, leaf in enumerate(outputs(model, *example))}
    description = {
        "format": FORMAT,
        "model": recipe,
        "build": recipe if build is None else build,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "frozen": [a[0] for a, t in names if isinstance(t, nn.Parameter) and not t.requires_grad],
        "ties": [aliases for aliases, _ in names if len(aliases) > 1],
        "attributes": [list(change) for change in _changed_attributes(originals, model)],
        "configs": [list(change) for change in _changed_configs(originals, model)],
        "example": structure,
    }
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    save_file({n: t.detach().cpu().contiguous().clone() for n, t in {**inputs, **results}.items()}, folder / EXAMPLE)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, build: Callable[[Mapping[str, Any]], nn.Module]) -> nn.Module:
    """The compact, trainable model of `folder`, in eval mode.

    `build` makes a fresh model from the stored recipe. Raises UserError where `folder` holds no model, JobError where
    the loaded model does not give the stored example's output.
    """
    missing = [name for name in (DESCRIPTION, WEIGHTS, EXAMPLE) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} holds no model: {missing[0]} is missing")
    try:
        stored = standalone.read(folder)
        model = build(stored.description["model"])
        standalone.fit(model, stored)
        standalone.check(model, stored)
    except standalone.LoadError as error:
        raise JobError(str(error)) from error
    return model


def storable(example: ModelInput) -> None:
    """Raise the UserError that `save` would raise about the example's inputs."""
    _encode(list(example), {})


def _names_by_tensor(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Every parameter and buffer once, with all of its names."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())


def _built_alone(build: Mapping[str, Any], folder: Path) -> nn.Module:
    try:
        model: nn.Module = standalone.build(build, folder)
    except standalone.LoadError as error:
        raise JobError(str(error)) from error
    return model


def _changed_attributes(originals: Sequence[nn.Module], model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Plain attributes in which `model` differs from one of `originals`: (module path, name, value)."""
    before = [dict(original.named_modules()) for original in originals]
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or name == "training" or not _is_plain(value):
                continue
            if any(vars(modules[path]).get(name) != value for modules in before):
                yield path, name, value


def _changed_configs(originals: Sequence[nn.Module], model: nn.Module) -> Iterator[tuple[str, list[str], Any]]:
    """Sizes in which a config that a module holds differs from that of `originals`: (module path, names, value).

    Modules share their config, and so do those of a fresh model: each object is told once.
    """
    before = [dict(original.named_modules()) for original in originals]
    told: set[int] = set()
    for path, module in model.named_modules():
        for name, config in vars(module).items():
            if not hasattr(config, "model_type") or id(config) in told:
                continue
            told.add(id(config))
            others = [vars(modules[path]).get(name) for modules in before]
            for names, value in _sizes(config):
                if any(dict(_sizes(other)).get(names) != value for other in others):
                    yield path, [name, *names], value


def _sizes(config: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The whole numbers of a config, of its lists and of configs within it, by the names that lead there."""
    for name, value in vars(config).items() if hasattr(config, "model_type") else ():
        if hasattr(value, "model_type"):
            yield from (((name, *names), inner) for names, inner in _sizes(value))
        elif type(value) is int or (isinstance(value, list) and all(type(item) is int for item in value)):
            yield (name,), value


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
