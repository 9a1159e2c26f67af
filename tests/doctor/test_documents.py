"""The tables of checks in the documents are the checks that there are, in their order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nnicompress.doctor.compressor import COMPRESSOR_CHECKS
from nnicompress.doctor.evaluator import EVALUATOR_CHECKS
from nnicompress.doctor.importance import IMPORTANCE_CHECKS
from nnicompress.doctor.model import MODEL_CHECKS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    ("file", "kind", "checks"),
    [
        ("evaluators.md", "evaluator", EVALUATOR_CHECKS),
        ("compressors.md", "compressor", COMPRESSOR_CHECKS),
        ("compressors.md", "importance", IMPORTANCE_CHECKS),
        ("compressors.md", "model", MODEL_CHECKS),
    ],
)
def test_each_check_has_its_row(file: str, kind: str, checks: tuple[Any, ...]) -> None:
    pattern = rf"^<!-- doctor: {kind} -->\n\|.*\n\|.*\n((?:\|.*\n)+)"
    (table,) = re.findall(pattern, (DOCS / file).read_text(), re.MULTILINE)
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) == [check.name for check in checks]
    assert all(set(check.after) <= {other.name for other in checks} for check in checks)
