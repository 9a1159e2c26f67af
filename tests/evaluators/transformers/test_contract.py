"""The doctor's examination of the contract, line by line."""

from __future__ import annotations

from nnicompress.doctor.evaluator import EVALUATOR_CHECKS
from nnicompress.doctor.examine import examine

CASES = "tests.evaluators.transformers.cases"


def test_the_doctor_finds_nothing_wrong() -> None:
    examination = examine(f"{CASES}.for_the_doctor", model=f"{CASES}.make_bert")
    assert examination.kind == "evaluator" and len(examination.findings) == len(EVALUATOR_CHECKS)
    assert {finding.name: finding.status for finding in examination.findings if finding.status != "ok"} == {}
