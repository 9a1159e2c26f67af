"""`model/README.md`: a card for whoever is handed the model, made of the run's report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nnicompress.export.inference import LABELS, PREPROCESSING, TOKENIZER
from nnicompress.export.standalone import DESCRIPTION, PACKAGES
from nnicompress.pipeline.run_dir import CARD
from nnicompress.quantization.frozen import FrozenModel
from nnicompress.report import words
from nnicompress.report.record import Report
from nnicompress.report.rows import comparison, file_table

TEMPLATE = "model_card.md.j2"


def write_model_card(report: Report, folder: Path) -> Path:
    """Write `README.md` into `folder`, a run's finished `model/`, at once; returns its path."""
    path = folder / CARD
    temporary = path.with_name(f".{CARD}.partial")
    temporary.write_text(render_card(report, folder), encoding="utf-8")
    temporary.replace(path)
    return path


def render_card(report: Report, folder: Path) -> str:
    """The card as Markdown."""
    description = _read(folder / DESCRIPTION)
    preprocessing = _read(folder / PREPROCESSING) or {}
    roots = _roots(description["build"])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown of our own numbers and the user's own names
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(TEMPLATE).render(
        report=report,
        words=words,
        headline=words.headline(report),
        model_class=_class(description),
        class_name=description["class"].rpartition(".")[2],
        frozen=description["class"].endswith(f".{FrozenModel.__name__}"),
        pruned=report.final.parameters < report.baseline.parameters,
        needs="".join(f", {root}" for root in roots if root in PACKAGES),
        own_code=", ".join(root for root in roots if root not in PACKAGES and root != "torch"),
        table=comparison(report),
        files=file_table(report),
        preprocessing=preprocessing,
        steps={name: value for name, value in preprocessing.items() if name not in ("data", "input_shape")},
        labels=_read(folder / LABELS),
        tokenizer=(folder / TOKENIZER).is_dir(),
        limits=list(_limits(report)),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _limits(report: Report) -> Iterator[str]:
    if report.final.accuracy is None:
        yield "Nothing was measured on test data: the recipe has no evaluate stage."
    else:
        yield (
            f"The {report.metric} was read from the {report.split} role of this data set, in one run with one seed; "
            "other data were not tried."
        )
    yield "Latency was measured on the machine above; on another one, and at other batch sizes, the gain differs."
    if report.masked_only:
        yield "Weights are masked, not removed: the file is as large and the model as slow as before."
    if report.shortfall:
        yield "Less was pruned than asked: " + "; ".join(report.shortfall) + "."
    for reason in report.unprunable:
        yield f"Not prunable: {reason}."
    for missed in (row for row in report.expected if not row.ok):
        found = "not measured" if missed.measured is None else f"{missed.measured:.4g}"
        yield f"The recipe expects {missed.name} {missed.bound}; it is {found}."


def _class(description: dict[str, Any]) -> str:
    """The model's class and where it is to be had: a file beside `load.py`, or an import."""
    module, _, name = description["class"].rpartition(".")
    file, beside, _ = str(description["build"].get("_target_", "")).partition(".py:")
    return f"`{name}` of `{file}.py`" if beside and module.endswith(f".{file}") else f"`{description['class']}`"


def _roots(node: Any) -> list[str]:
    """The top-level modules that building the model imports; files beside `load.py` are none."""
    found: set[str] = set()
    if isinstance(node, list):
        found.update(root for item in node for root in _roots(item))
    elif isinstance(node, dict):
        found.update(root for value in node.values() for root in _roots(value))
        target = node.get("_target_")
        if isinstance(target, str) and ".py:" not in target:
            found.add(target.partition(".")[0])
    return sorted(found)


def _read(path: Path) -> Any:
    """The JSON in `path`, None where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
