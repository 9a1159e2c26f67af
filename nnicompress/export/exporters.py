"""What the exporters have in common: kept quiet, and their refusals in one line."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_BRANCH = re.compile(r"call raised this error:\s+File \"(?P<file>[^\"]+)\", line (?P<line>\d+).*\n\s+(?P<code>.+)")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters log, warn of and print out of the run's output; what they refuse comes as an exception."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def reason(error: BaseException) -> str:
    """Why an exporter refused a model, in one line and without its advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    if "Constraints violated" in text or "specialized it to be a constant" in text:
        return "its forward works for one batch size only, a literal size or one read as a plain number"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "data-dependent expression" in first:
        first = "its forward branches on the values of a tensor"
        if (found := _BRANCH.search(text)) is not None:
            first += f" ({found['file']}:{found['line']}: {found['code'].strip()})"
    return first
