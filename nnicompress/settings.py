"""The base of every typed settings class: unknown keys are refused, instances are frozen.

Each settings class lives beside what it configures (`pruning/settings.py`, `pipeline/settings.py` ...) and
imports neither torch nor hydra, so that a recipe is checked before anything heavy is loaded.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails


class Settings(BaseModel):
    """Settings with a fixed set of keys; pydantic collects every error before raising."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)


class SettingError(ValueError):
    """What a validator of several settings raises where one is at fault: that at key `at`, below what it validates."""

    def __init__(self, message: str, *, at: str) -> None:
        super().__init__(message)
        self.at = at


def key_at_fault(details: ErrorDetails) -> list[str]:
    """The key below pydantic's own location that a SettingError blames, in parts."""
    cause = details.get("ctx", {}).get("error")
    return cause.at.split(".") if isinstance(cause, SettingError) else []
