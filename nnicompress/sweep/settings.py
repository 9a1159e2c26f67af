"""The settings of a search, `hydra.sweeper.*` on the command line; Optuna itself is not imported here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Sweep
from pydantic import BeforeValidator, Field, ValidationError

from nnicompress.config.locate import COMMAND_LINE
from nnicompress.config.messages import explained
from nnicompress.config.words import config_errors
from nnicompress.errors import ConfigError, InputErrors, JobError
from nnicompress.settings import Settings

if TYPE_CHECKING:
    from nnicompress.report.record import Report

SWEEPER = "nnicompress_optuna"
KEY = "hydra.sweeper"
Objective = Literal[
    "validation", "accuracy", "accuracy_drop", "params_ratio", "macs_ratio", "latency_ratio", "size_ratio"
]
MEASURED_BY_EVALUATE: frozenset[str] = frozenset({"validation", "accuracy", "accuracy_drop", "latency_ratio"})
"""Objectives that a recipe without `evaluate` never has."""


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class SearchSettings(Settings):
    """A search with Optuna's ask-and-tell interface."""

    n_trials: int = Field(default=20, ge=1)
    """Finished trials in all, those of an earlier search in the same storage included."""
    n_jobs: int = Field(default=1, ge=1)
    """Trials that the launcher is given at a time."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    seed: int | None = Field(default=0, ge=0, lt=2**31)
    objective: Annotated[tuple[Objective, ...], BeforeValidator(_as_list), Field(min_length=1)] = ("validation",)
    """`validation` is the final model's metric on the validation data; the others are named as in `expected:`."""
    storage: str | None = Field(default=None, min_length=1)
    """A file or an SQLAlchemy URL; null: in memory."""
    study_name: str | None = Field(default=None, min_length=1)

    @property
    def storage_url(self) -> str | None:
        """`search.db` as `sqlite:///search.db`."""
        return self.storage if self.storage is None or "://" in self.storage else f"sqlite:///{self.storage}"


def from_mapping(values: Mapping[str, Any]) -> SearchSettings:
    """Settings as Hydra composed them; raises InputErrors."""
    given = {name: value for name, value in values.items() if name != "_target_"}
    try:
        return SearchSettings.model_validate(given)
    except ValidationError as error:
        raise InputErrors(config_errors(error, SearchSettings, given, KEY, lambda key: COMMAND_LINE)) from error


def from_overrides(overrides: Sequence[str]) -> SearchSettings:
    """The settings that the command line gives; raises InputErrors."""
    texts = [text for text in overrides if text.lstrip("+").startswith(f"{KEY}.")]
    with explained(texts):
        parsed = OverridesParser.create().parse_overrides(texts)
    values = {}
    for override in parsed:
        value = override.value()
        if isinstance(value, Sweep):
            raise ConfigError("is a setting of the search, and can't be searched over", key=override.key_or_group)
        values[override.key_or_group.removeprefix(f"{KEY}.")] = value
    return from_mapping(values)


def objective_values(report: Report, names: Sequence[str]) -> tuple[float, ...]:
    """What a sweeper is told of a run, in the order of `names`.

    Raises:
        JobError: the run did not measure it, or it is no number.
    """
    from nnicompress.report import words

    numbers = {**words.numbers(report), "validation": report.final.validation}
    values = []
    for name in names:
        value = numbers[name]
        if value is None or not math.isfinite(value):
            found = "was not measured" if value is None else f"is {value}"
            raise JobError(f"the run is done, and its {name}, the objective of the search, {found}")
        values.append(value)
    return tuple(values)


def directions(names: Sequence[str], mode: str) -> list[Literal["minimize", "maximize"]]:
    """`maximize` or `minimize` for each objective: the recipe's metric as its `mode` says, ratios and drops down."""
    metric: Literal["minimize", "maximize"] = "maximize" if mode == "max" else "minimize"
    return [metric if name in ("validation", "accuracy") else "minimize" for name in names]
