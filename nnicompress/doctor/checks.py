"""What an examination is made of: checks that say what they found, or what is missing or wrong and what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from nnicompress.errors import NNICompressError

S = TypeVar("S")

Status = Literal["ok", "missing", "wrong", "skipped"]


class Missing(Exception):
    """Something that the contract asks for is not there."""


class Wrong(Exception):
    """Something does other than the contract says."""


@dataclass(frozen=True)
class Check(Generic[S]):
    """One line of the contract: `run(subject)` returns what it found, or raises Missing or Wrong.

    `advice` is what to do where it fails; `after` names the checks without which this one says nothing.
    """

    name: str
    run: Callable[[S], str]
    advice: str
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Examination:
    """All findings about one object, with lines that are worth knowing besides."""

    subject: str
    kind: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing is missing and nothing is wrong."""
        return all(finding.status in ("ok", "skipped") for finding in self.findings)


def quiet(name: str) -> None:
    """Hears the name of each check, and says nothing."""


def perform(checks: Sequence[Check[S]], subject: S, tell: Callable[[str], None] = quiet) -> tuple[Finding, ...]:
    """Run the checks in order; one whose precondition failed is skipped. `tell` hears the name of each that begins."""
    findings: dict[str, Finding] = {}
    for check in checks:
        failed = next((name for name in check.after if findings[name].status != "ok"), None)
        if failed is not None:
            findings[check.name] = Finding(check.name, "skipped", f"waits for {failed!r}")
        else:
            tell(check.name)
            findings[check.name] = _perform(check, subject)
    return tuple(findings.values())


def _perform(check: Check[S], subject: S) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Finding(check.name, "ok", check.run(subject))
    except Missing as error:
        return Finding(check.name, "missing", str(error), check.advice)
    except Wrong as error:
        return Finding(check.name, "wrong", str(error), check.advice)
    except NotImplementedError as error:
        return Finding(check.name, "missing", f"not implemented{_detail(error)}", check.advice)
    except NNICompressError as error:
        return Finding(check.name, "wrong", first_line(error), check.advice)
    except Exception as error:  # the user's code may raise anything
        return Finding(check.name, "wrong", f"raises {type(error).__name__}{_detail(error)}", check.advice)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; its class where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _detail(error: BaseException) -> str:
    return f": {first_line(error)}" if str(error).strip() else ""
