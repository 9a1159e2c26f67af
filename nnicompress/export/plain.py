"""`model/`: the compact model for Python, with a loader that needs no nnicompress; written here and loaded again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export import standalone
from nnicompress.export.build_node import without_us
from nnicompress.quantization import frozen
from nnicompress.quantization.frozen import FrozenModel
from nnicompress.shrink import description
from nnicompress.trace import Traced

FOLDER, LOADER = "model", "load.py"


def save_plain(model: nn.Module, build: Traced, recipe: Mapping[str, Any], example: ModelInput, folder: Path) -> None:
    """Write `model` (on the CPU) and its loader into `folder`, and check what was written by loading it.

    `build` makes the model as it was before compression, `recipe` is the same as plain values (a `_target_` and its
    arguments), `example` a real input. A frozen model is built of its own program in place of these.

    Raises:
        JobError: the model as loaded does not give the outputs of the model that was saved.
    """
    if isinstance(model, FrozenModel):
        recipe = {"_target_": f"{frozen.__name__}.FrozenModel", "program": model.frozen_program}
        fresh: nn.Module = FrozenModel(model.frozen_program)
    else:
        fresh = build.build()
    node, files = without_us(recipe, fresh)
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in [(Path(standalone.__file__), LOADER), *((file, file.name) for file in files)]:
        shutil.copyfile(source, folder / name)
    description.save(model, fresh, recipe, example, folder, node)
    try:
        standalone.load(folder)
    except standalone.LoadError as error:
        raise JobError(str(error)) from error


def load(run: str | Path, *, trust: Iterable[str] = ()) -> nn.Module:
    """The compact model of a run, trainable, in evaluation mode, on the CPU.

    Args:
        run: a finished run's folder, or its `model/`.
        trust: packages whose objects may be built, where the recipe named a model of the user's own.

    Raises:
        UserError: there is no model, or its class may not be built (TrustError).
        JobError: the loaded model does not give the stored example's output.
    """
    from nnicompress.trust import allow

    folder = Path(run).expanduser()
    if (folder / FOLDER).is_dir():
        folder = folder / FOLDER
    if not folder.is_dir():
        raise UserError(f"no run {str(run)!r}; give the folder of a run, as in nnicompress.load('runs/NAME')")
    with allow(trust):
        return description.load(folder, _build)


def _build(node: Any) -> Any:
    """Objects from plain values: mappings with `_target_`, innermost first, each name checked before it is called."""
    from nnicompress.trust import resolve

    if isinstance(node, list):
        return [_build(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    values = {name: _build(value) for name, value in node.items() if name not in ("_target_", "_args_")}
    if "_target_" not in node:
        return values
    return resolve(node["_target_"], key="model._target_")(*_build(node.get("_args_", [])), **values)
