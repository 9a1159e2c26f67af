"""Every error a user can meet, as one tree; each says what is at fault and the way out.

    NNICompressError
    ├── UserError               the user's input is wrong            exit code 2
    │   ├── ConfigError         one key of a recipe or override
    │   ├── TrustError          a `_target_` that may not be called
    │   └── InputErrors         several of the above, shown together
    ├── JobError                the job failed                       exit code 1
    │   ├── ProofError          the compact model is not the masked model
    │   ├── NothingPrunedError  a pruner that removed nothing
    │   └── RunLockedError      another process writes this run
    └── ExpectationError        measured numbers miss `expected:`    exit code 3

Invariants of our own code are asserts, not members of this tree.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class NNICompressError(Exception):
    """Root of the tree; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(NNICompressError):
    """The user's input is wrong: one line, no traceback."""

    exit_code = 2


class ConfigError(UserError):
    """One key is wrong.

    `key` is the full dotted key (`compressor.targets.convs.sparse_ratio`), `source` says where it was
    written (`recipes/mine.yaml:14` or `command line`).
    """

    def __init__(self, message: str, *, key: str | None = None, source: str | None = None) -> None:
        self.message, self.key, self.source = message, key, source
        super().__init__(message)

    def __str__(self) -> str:
        line = f"{self.key}: {self.message}" if self.key else self.message
        return f"{line} ({self.source})" if self.source else line


class TrustError(ConfigError):
    """A `_target_` outside the allow-list and outside what the user trusts."""


class InputErrors(UserError):
    """Several wrong inputs, collected so that one run shows them all."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        assert errors, "InputErrors without an error"
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in errors))


class JobError(NNICompressError):
    """The input was right and the job failed all the same."""


class ProofError(JobError):
    """After shrinking, the compact model does not give the masked model's outputs."""


class NothingPrunedError(JobError):
    """A pruner finished without removing anything."""


class RunLockedError(JobError):
    """Another live process is writing this run's folder."""


class RunInterrupted(KeyboardInterrupt):
    """Somebody stopped the run: its state is saved, and the message says how to go on. No Exception, like its base."""


class ExpectationError(NNICompressError):
    """The run is complete, and its numbers miss the recipe's `expected:` block."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """`"; did you mean 'a' or 'b'?"`, or an empty string where nothing is near."""
    near = difflib.get_close_matches(name, sorted(set(known)), n=most, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
