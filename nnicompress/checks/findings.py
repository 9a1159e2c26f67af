"""What a check finds wrong, collected: all of it is told at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from nnicompress.config.resolve import SourceOf
from nnicompress.errors import ConfigError, InputErrors, UserError

T = TypeVar("T")
P = ParamSpec("P")


class Findings:
    """The errors so far, each with the place in a file where its key was given."""

    def __init__(self, source_of: SourceOf, errors: Sequence[UserError] = ()) -> None:
        self.source_of = source_of
        self.errors: list[UserError] = [*errors]

    def attempt(self, key: str, action: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """`action(...)`, or None where the user's input makes it fail, which is recorded as about `key`."""
        try:
            return action(*args, **kwargs)
        except InputErrors as several:
            self.errors += several.errors
        except ConfigError as error:
            own_key = error.key or key
            self.errors.append(ConfigError(error.message, key=own_key, source=error.source or self.source_of(own_key)))
        except UserError as error:
            self.errors.append(ConfigError(str(error), key=key, source=self.source_of(key)))
        return None

    def fail(self, text: str, key: str) -> None:
        """Record `text` as about `key`."""
        self.errors.append(ConfigError(text, key=key, source=self.source_of(key)))
