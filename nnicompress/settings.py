"""The base of every typed settings class: unknown keys are refused, instances are frozen.

Each settings class lives beside what it configures (`pruning/settings.py`, `pipeline/settings.py` ...) and
imports neither torch nor hydra, so that a recipe is checked before anything heavy is loaded.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings with a fixed set of keys; pydantic collects every error before raising."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)
