"""What torch's tracers and exporters have in common: kept quiet, and their refusals in one line."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).parent
_TRACERS = (Path(torch.__file__).parent, _PACKAGE / "graph", _PACKAGE / "export", Path(contextlib.__file__))
"""Their frames lie between a forward and what raised in it."""


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
    """Why a tracer or an exporter refused a model, in one line, with the line of the forward and without its advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    if "Constraints violated" in text or "specialized it to be a constant" in text:
        return "its forward works for one batch size only, a literal size or one read as a plain number"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "data-dependent expression" in first:
        first = "its forward branches on the values of a tensor"
    return first + _place(error)


def _place(error: BaseException) -> str:
    """Where the model's code was when the error arose: ` (file:line: code)`, or nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if not any(Path(frame.filename).is_relative_to(folder) for folder in _TRACERS):
            within = any(Path(f.filename).name == "module.py" and f.name == "_call_impl" for f in frames)
            return f" ({frame.filename}:{frame.lineno}: {frame.line})" if within and frame.line else ""
    return ""


def forget_code(model: Any) -> None:
    """Take out of an ONNX model (of onnxscript.ir) what its nodes have of their author: folders, lines, classes."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
