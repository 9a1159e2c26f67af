"""How `load.py` builds the model: the recipe's node, in names that lead to no part of this library."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nnicompress.models import libraries, outputs
from nnicompress.trust import resolve
from nnicompress.user_code import user_code

MODELS, FROZEN = "nnicompress.models", "nnicompress.quantization.frozen"


def without_us(node: Mapping[str, Any], fresh: nn.Module) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The node that builds the same model, and the files that it needs beside it.

    Shipped models become `resnet.py:resnet20`, of a copy of the file, and so does a user's own class whose module is
    one file that uses no other of theirs; else it stays as it is. The doors to other libraries become calls of those,
    without weights to download. `fresh` is what `node` builds.
    """
    translation = _Translation()
    built: dict[str, Any] = translation.node(node, fresh)
    return built, tuple(sorted(translation.files))


class _Translation:
    def __init__(self) -> None:
        self.files: set[Path] = set()

    def value(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        if isinstance(value, Mapping):
            return self.node(value, None)
        return value

    def node(self, node: Mapping[str, Any], fresh: nn.Module | None) -> dict[str, Any]:
        """A mapping, with `_target_` or without; `fresh` is what it builds, where that is known."""
        target = node.get("_target_", "")
        ours = str(target).startswith((f"{MODELS}.", f"{FROZEN}."))
        if not ours and not (target and _in_one_file(target)):
            return {name: self.value(value) for name, value in node.items()}
        function = resolve(target, key="model._target_")
        keywords = {name: value for name, value in node.items() if name not in ("_target_", "_args_")}
        if function is libraries.transformers_model:
            return self.transformers(function(*node.get("_args_", []), **keywords) if fresh is None else fresh)
        if function in (libraries.torchvision_model, libraries.timm_model):
            given = inspect.signature(function).bind(*node.get("_args_", []), **keywords)
            name, settings = given.arguments["name"], given.arguments.get("settings", {})
            return _torchvision(name, settings) if function is libraries.torchvision_model else _timm(name, settings)
        rest = {name: self.value(value) for name, value in node.items() if name != "_target_"}
        return {"_target_": self.beside(function), **rest}

    def beside(self, function: Callable[..., Any]) -> str:
        """`resnet.py:resnet20`, and the file is noted."""
        file = Path(str(sys.modules[function.__module__].__file__))
        self.files.add(file)
        return f"{file.name}:{function.__qualname__}"

    def transformers(self, model: nn.Module) -> dict[str, Any]:
        """The model's class on its own configuration, as it came out: nothing is read from a hub or a folder again."""
        if isinstance(model, outputs.OneOutput):
            inner = self.transformers(model.model)
            return {"_target_": self.beside(outputs.OneOutput), "model": inner, "field": model.field}
        config: Any = model.config
        return {
            "_target_": _public(type(model)),
            "_args_": [
                {
                    "_target_": f"{_public(type(config))}.from_dict",
                    "_args_": [json.loads(config.to_json_string(use_diff=False))],
                }
            ],
        }


def _in_one_file(target: str) -> bool:
    """Whether `target` is code of the user's that lies in one file, of a module that is no part of a package."""
    files = user_code({"_target_": target})
    return list(files) == [target.partition(".")[0]]


def _torchvision(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key not in ("weights", "weights_backbone")}
    return {"_target_": "torchvision.models.get_model", "_args_": [name], "weights": None, **kept}


def _timm(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"_target_": "timm.create_model", "_args_": [name], **settings, "pretrained": False}


def _public(cls: type) -> str:
    """`transformers.ResNetConfig` where the class is to be had by that name, else by its module."""
    root = cls.__module__.partition(".")[0]
    short = getattr(importlib.import_module(root), cls.__name__, None)
    return f"{root}.{cls.__name__}" if short is cls else f"{cls.__module__}.{cls.__qualname__}"
