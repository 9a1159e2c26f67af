"""Settings of a compressor with a list of targets, as Python users write them; wrong keys get the nearest right one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from nnicompress.errors import ConfigError, InputErrors, UserError, did_you_mean
from nnicompress.settings import Settings, key_at_fault

S = TypeVar("S", bound=Settings)
Targets = Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]

_EXAMPLE = '{"op_types": ["Conv2d"]}'


def with_targets(model: type[S], targets: Targets, settings: Mapping[str, Any], groups: Iterable[type[Settings]]) -> S:
    """`model` with these targets, named `0`, `1` ... where they are a list; `groups` have the keys that it knows.

    Raises:
        InputErrors: every wrong key or value, each with its dotted key.
    """
    given: object = targets
    if isinstance(given, str) or not isinstance(given, Sequence | Mapping):
        raise InputErrors([ConfigError(f"{given!r} is no list of targets; give [{_EXAMPLE}]", key="targets")])
    named = targets if isinstance(targets, Mapping) else {str(i): target for i, target in enumerate(targets)}
    try:
        return model.model_validate({"targets": named, **settings})
    except ValidationError as error:
        known = {key for group in groups for key in group.model_fields}
        raise InputErrors(_config_errors(error, known)) from error


def _config_errors(error: ValidationError, known: set[str]) -> list[UserError]:
    errors: list[UserError] = []
    for detail in error.errors():
        *parents, last = [*map(str, detail["loc"]), *key_at_fault(detail)] or [""]
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = f"unknown key{did_you_mean(last, known)}"
        elif detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
            hint = f"; give {_EXAMPLE}" if parents == ["targets"] else ""
            message = f"{detail['input']!r} is no dict of settings{hint}"
        errors.append(ConfigError(message, key=".".join([*parents, last]) or None))
    return errors
