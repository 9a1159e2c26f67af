"""Pruning configurations of NNI as targets of a pruner: the keys of NNI 3 and of the versions before it.

Nothing of the file is run: a Python file is searched for a list that is written out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nnicompress.errors import ConfigError, UserError, did_you_mean

SELECTORS = ("op_types", "op_names", "op_names_re")
_KEPT = (*SELECTORS, *(f"exclude_{name}" for name in SELECTORS), "sparse_ratio", "sparse_threshold", "min_sparse_ratio",
         "max_sparse_ratio", "global_group_id", "dependency_group_id")  # fmt: skip
_RENAMED = {"sparsity": "sparse_ratio", "sparsity_per_layer": "sparse_ratio", "total_sparsity": "sparse_ratio",
            "max_sparsity_per_layer": "max_sparse_ratio"}  # fmt: skip
_GRANULARITIES = {"default": None, "out_channel": "output_channel", "in_channel": "input_channel"}
_OTHERS = ("granularity", "target_names", "target_settings", "op_partial_names", "exclude", "align", "apply_method")
_KNOWN = (*_KEPT, *_RENAMED, *_OTHERS)
_NOT_HERE = {
    "internal_metric_block": "a block of scores inside a granularity has no counterpart; choose a block as granularity",
    "quant_dtype": "this is a configuration of a quantizer, and not of a pruner",
    "quant_scheme": "this is a configuration of a quantizer, and not of a pruner",
}


@dataclass(frozen=True)
class Imported:
    """The targets by name, whether they compete, and what was left out because it is not needed."""

    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    competes: bool = False
    notes: tuple[str, ...] = ()


def read_config_list(file: Path) -> list[Any]:
    """The list in a YAML or JSON file (alone, or under `config_list`), or written out in a Python file.

    Raises:
        UserError: the file can't be read, or has no such list.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"{file} can't be read: {reason}") from error
    found = _from_python(text, file) if file.suffix == ".py" else _from_yaml(text, file)
    if not isinstance(found, list) or not found:
        raise UserError(f"{file} has no list of settings: NNI's config_list is a list of dicts, one a target")
    return found


def import_config_list(entries: Sequence[Any]) -> Imported:
    """What the entries of a config list are here.

    Raises:
        ConfigError: a key that NNI doesn't have or that has no counterpart, named with its entry.
    """
    targets: dict[str, dict[str, Any]] = {}
    notes: dict[str, None] = {}
    competing: dict[str, bool] = {}
    for number, entry in enumerate(entries):
        key = f"config_list[{number}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(f"is a {type(entry).__name__}, not a dict", key=key)
        for name in entry:
            _check_known(name, key)
        selected = _selectors(entry, key)
        if entry.get("exclude"):
            if not targets:
                raise ConfigError("excludes modules, and no entry before it selects any", key=key)
            for target in targets.values():
                for name, values in selected.items():
                    # Names and types of one entry hold together; a name says it alone.
                    if name != "op_types" or len(selected) == 1:
                        target.setdefault(f"exclude_{name}", []).extend(values)
            continue
        target = {**selected, **_amounts(entry, key), **_tensors(entry, key, notes)}
        targets[f"target_{len(targets)}"] = target
        competing[key] = "total_sparsity" in entry or entry.get("global_group_id") is not None
    if len(set(competing.values())) > 1:
        one, other = (next(key for key, value in competing.items() if value is wanted) for wanted in (True, False))
        raise ConfigError(f"lets its layers compete and {other} does not; make two recipes of them", key=one)
    return Imported(targets, any(competing.values()), tuple(notes))


def _check_known(name: object, key: str) -> None:
    where = f"{key}.{name}"
    if name in _NOT_HERE:
        raise ConfigError(_NOT_HERE[str(name)], key=where)
    if name not in _KNOWN:
        raise ConfigError(f"unknown key{did_you_mean(str(name), _KNOWN)}", key=where)


def _selectors(entry: Mapping[str, Any], key: str) -> dict[str, list[str]]:
    found = {name: _texts(entry[name], f"{key}.{name}") for name in SELECTORS if entry.get(name)}
    if "default" in found.get("op_types", ()):
        raise ConfigError("'default' stands for all layers with weights: write their types, [Conv2d, Linear]", key=key)
    if entry.get("op_partial_names"):
        parts = _texts(entry["op_partial_names"], f"{key}.op_partial_names")
        found.setdefault("op_names_re", []).extend(f".*{re.escape(part)}" for part in parts)
    if not found:
        raise ConfigError("selects nothing: it has no op_types, op_names, op_names_re or op_partial_names", key=key)
    return found


def _amounts(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    kept = {name: entry[name] for name in _KEPT if name not in SELECTORS and entry.get(name) is not None}
    for old, new in _RENAMED.items():
        if entry.get(old) is None:
            continue
        if new in kept:
            raise ConfigError(f"says the same as another key of this entry: both are {new}", key=f"{key}.{old}")
        if not isinstance(entry[old], int | float):
            raise ConfigError(f"is a {type(entry[old]).__name__}; one number for all layers", key=f"{key}.{old}")
        kept[new] = entry[old]
    return kept


def _tensors(entry: Mapping[str, Any], key: str, notes: dict[str, None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "align" in entry:
        notes["align is left out: biases and norms follow their channels"] = None
    if entry.get("apply_method", "mul") != "mul":
        raise ConfigError("only 'mul' is here: what is removed is zero", key=f"{key}.apply_method")
    granularity = entry.get("granularity", "default")
    if granularity != "default":
        found["granularity"] = _granularity(granularity, f"{key}.granularity")
    names = _texts(entry.get("target_names", []), f"{key}.target_names")
    settings = dict(entry.get("target_settings") or {})
    for name in (*names, *settings):
        if name.startswith("_"):
            raise ConfigError(f"{name} is no parameter: masks lie on weights here", key=f"{key}.target_names")
    weights = [name for name in names if name != "bias"]
    if "bias" in (*names, *settings):
        notes["bias is left out: biases follow their channels"] = None
        settings.pop("bias", None)
    if weights and weights != ["weight"]:
        found["target_names"] = weights
    own: dict[str, Any] = {}
    for name, special in settings.items():
        where = f"{key}.target_settings.{name}"
        for inner in special:
            _check_known(inner, where)
        own[name] = {**_amounts(special, where), **_tensors(special, where, notes)}
    if own := {name: special for name, special in own.items() if special}:
        found["target_settings"] = own
    return found


def _granularity(value: Any, key: str) -> Any:
    if isinstance(value, str):
        if value not in _GRANULARITIES:
            raise ConfigError(f"no granularity named {value!r}{did_you_mean(value, _GRANULARITIES)}", key=key)
        return _GRANULARITIES[value]
    return "element" if value == [1] or (isinstance(value, list) and set(value) == {1}) else value


def _texts(value: Any, key: str) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise ConfigError("is not a list of names", key=key)
    return texts


def _from_yaml(text: str, file: Path) -> Any:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise UserError(f"{file}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
    return found.get("config_list") if isinstance(found, dict) else found


def _from_python(text: str, file: Path) -> Any:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: not Python: {error.msg}") from error
    lists: dict[str, ast.expr] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            lists |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    chosen = lists.get("config_list") or next((value for name, value in lists.items() if "config" in name), None)
    if chosen is None:
        raise UserError(f"{file} assigns no list to a name like config_list")
    try:
        return ast.literal_eval(chosen)
    except ValueError as error:
        raise UserError(
            f"{file}, line {chosen.lineno}: the list is computed, not written out; save it as JSON and import that"
        ) from error
