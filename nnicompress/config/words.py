"""Pydantic's errors as this project's: the full key, the reason in plain words, the nearest right name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nnicompress.config.resolve import SourceOf
from nnicompress.errors import ConfigError, did_you_mean
from nnicompress.settings import key_at_fault

MISSING_VALUE = "a value is required; pass {key}=VALUE"


def config_errors(
    error: ValidationError, model: type[BaseModel], values: Any, prefix: str, source_of: SourceOf
) -> list[ConfigError]:
    """One ConfigError for each wrong key of `values`, which were validated as `model` and lie below key `prefix`."""
    reasons: dict[str, list[str]] = {}
    for details in error.errors():
        path = [*_path_in(values, details), *key_at_fault(details)]
        key = ".".join([prefix, *path] if prefix else path)
        if details["type"] == "extra_forbidden":
            parent = ".".join(key.split(".")[:-1])
            known = _known_keys(model, path[:-1])
            text = unknown_key(path[-1], known)
            reasons.setdefault(key, []).append(f"{parent}\0{text}")
        else:
            text = _in_words(details, key)
            if text.endswith(_NO_MAPPING) and (known := _known_keys(model, path)):
                text += f"; its keys are {', '.join(known)}"
            reasons.setdefault(key, []).append(text)
    return [_as_error(key, texts, source_of) for key, texts in reasons.items()]


def unknown_key(name: str, known: Iterable[str]) -> str:
    """`unknown key 'sed'; did you mean 'seed'?`, or the keys there are where none is near."""
    names = list(known)
    listed = f"; keys: {', '.join(names)}" if names else ""
    return f"unknown key {name!r}{did_you_mean(name, names) or listed}"


def _as_error(key: str, texts: list[str], source_of: SourceOf) -> ConfigError:
    if "\0" in texts[0]:
        shown, text = texts[0].split("\0")
        return ConfigError(text, key=shown or None, source=source_of(key))
    # A value of a union is refused once for each member: 'x' is not a whole number, and is not 'auto'.
    first, *others = dict.fromkeys(texts)
    subject = first.split(" is ")[0]
    text = ", and ".join([first, *(other.removeprefix(subject).strip() for other in others)])
    return ConfigError(text, key=key or None, source=source_of(key))


def _path_in(values: Any, details: ErrorDetails) -> list[str]:
    """The part of pydantic's location that leads into `values`, without the tags of unions and validators."""
    path: list[str] = []
    node = values
    for step in details["loc"]:
        in_mapping = isinstance(node, Mapping) and step in node
        if in_mapping or (isinstance(node, list | tuple) and isinstance(step, int) and step < len(node)):
            node = node[step]
        elif isinstance(node, Mapping) and details["type"] == "missing" and step == details["loc"][-1]:
            node = None
        else:
            continue
        path.append(str(step))
    return path


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that the settings class at `path` below `model` knows; none where the path leads elsewhere."""
    current: type[BaseModel] | None = model
    inside_container = False
    for step in path:
        if inside_container:  # `step` is a key of a mapping or an index of a list
            inside_container = False
            continue
        fields = current.model_fields if current is not None else {}
        if step not in fields:
            return []
        annotation = fields[step].annotation
        current = _settings_class(annotation)
        inside_container = _is_container(annotation)
    return list(current.model_fields) if current is not None and not inside_container else []


def _is_container(annotation: Any) -> bool:
    """Whether an annotation such as `dict[str, TargetSettings] | None` is a mapping or a list."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType, Annotated):
        return any(_is_container(argument) for argument in get_args(annotation))
    return isinstance(origin, type) and issubclass(origin, Mapping | Sequence)


def _settings_class(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside an annotation such as `dict[str, TargetSettings] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_settings_class(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _in_words(details: ErrorDetails, key: str) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "missing":
        return MISSING_VALUE.format(key=key)
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    words = _WORDS.get(kind)
    return words(_shown(value), context) if words else f"{_shown(value)}: {details['msg']}"


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _choice(shown: str, context: Mapping[str, Any]) -> str:
    expected = str(context["expected"])
    names = [name.strip("'") for name in expected.replace(" or ", ", ").split(", ")]
    return f"{shown} is not {expected}{did_you_mean(shown.strip(chr(39)), names, most=1)}"


def _not(noun: str) -> Callable[[str, Mapping[str, Any]], str]:
    return lambda shown, context: f"{shown} is not {noun}"


def _not_a_list(shown: str, context: Mapping[str, Any]) -> str:
    text = shown.strip("'")
    return f"{shown} is not a list" + (f"; write [{text}]" if re.fullmatch(r"[\w.]+", text) and text != "null" else "")


def _pattern_in_words(pattern: str) -> str:
    """`^(auto|cpu|cuda(:\\d+)?)$` as `auto, cpu or cuda[:N]`."""
    *names, last = pattern.strip("^$").replace("(:\\d+)?", "[:N]").strip("()").split("|")
    return f"{', '.join(names)} or {last}" if names else last


_NO_MAPPING = "a mapping of settings"

_WORDS: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
    "literal_error": _choice,
    "enum": _choice,
    "int_parsing": _not("a whole number"),
    "int_type": _not("a whole number"),
    "int_from_float": _not("a whole number"),
    "float_parsing": _not("a number"),
    "float_type": _not("a number"),
    "finite_number": _not("a finite number"),
    "bool_parsing": _not("true or false"),
    "bool_type": _not("true or false"),
    "string_type": _not("text"),
    "none_required": _not("null"),
    "tuple_type": _not_a_list,
    "list_type": _not_a_list,
    "dict_type": _not(_NO_MAPPING),
    "mapping_type": _not(_NO_MAPPING),
    "model_type": _not(_NO_MAPPING),
    "model_attributes_type": _not(_NO_MAPPING),
    "string_pattern_mismatch": lambda shown, context: f"{shown} is not {_pattern_in_words(context['pattern'])}",
    "greater_than": lambda shown, context: f"{shown} is not greater than {context['gt']:g}",
    "greater_than_equal": lambda shown, context: f"{shown} is less than {context['ge']:g}",
    "less_than": lambda shown, context: f"{shown} is not less than {context['lt']:g}",
    "less_than_equal": lambda shown, context: f"{shown} is greater than {context['le']:g}",
    "too_short": lambda shown, context: f"{shown} needs at least {context['min_length']} entries",
}
