"""The numbers of `expected:` and their bounds."""

import pytest

from nnicompress.errors import ExpectationError
from nnicompress.report.expected import require_expected, summary_numbers
from tests.report.sample import ARTIFACT, PHASES, make_report, phase


def test_the_exported_file_comes_before_eager() -> None:
    numbers = summary_numbers(PHASES, (ARTIFACT,), batch_size=32, mode="max")
    assert numbers == pytest.approx(
        {
            "accuracy": 0.96,
            "accuracy_drop": 0.02,
            "params_ratio": 0.4,
            "macs_ratio": 0.5,
            "latency_ratio": 0.4,
            "size_ratio": 0.4,
            "deployed_gap": 0.0,
        }
    )
    further = ARTIFACT.model_copy(update={"accuracy": 0.953})
    assert summary_numbers(PHASES, (further,), batch_size=1, mode="max")["deployed_gap"] == pytest.approx(0.007)
    assert summary_numbers(PHASES, (), batch_size=1, mode="max")["deployed_gap"] is None
    assert summary_numbers(PHASES, (), batch_size=32, mode="max")["latency_ratio"] == pytest.approx(0.5)
    assert summary_numbers(PHASES, (), batch_size=1, mode="max")["latency_ratio"] == pytest.approx(0.8)


def test_a_lower_metric_may_be_better() -> None:
    phases = (phase("baseline", "baseline", accuracy=3.0), phase("finetuned", "fine-tuned", accuracy=3.5))
    assert summary_numbers(phases, (), batch_size=1, mode="min")["accuracy_drop"] == pytest.approx(0.5)


def test_what_was_not_measured_misses_its_bound() -> None:
    phases = (phase("baseline", "b", accuracy=None, latency=()), phase("shrunk", "s", accuracy=None, latency=()))
    report = make_report(
        {"accuracy": {"min": 0.0}, "latency_ratio": {"max": 9}, "macs_ratio": {"max": 1}}, phases=phases, artifacts=()
    )
    assert [(row.name, row.measured, row.ok) for row in report.expected] == [
        ("accuracy", None, False),
        ("macs_ratio", 1.0, True),
        ("latency_ratio", None, False),
    ]
    assert not report.met
    with pytest.raises(ExpectationError, match="accuracy is not measured, expected at least 0; latency_ratio"):
        require_expected(report)


@pytest.mark.parametrize(
    ("bounds", "ok"),
    [({"min": 0.95}, True), ({"min": 0.97}, False), ({"max": 0.96}, True), ({"min": 0.9, "max": 0.95}, False)],
)
def test_bounds_are_inclusive(bounds: dict[str, float], ok: bool) -> None:
    report = make_report({"accuracy": bounds})
    assert report.met is ok
    if ok:
        require_expected(report)
    else:
        with pytest.raises(ExpectationError) as caught:
            require_expected(report)
        assert caught.value.exit_code == 3


def test_a_nan_holds_no_bound() -> None:
    last = phase("finetuned", "f", accuracy=float("nan"))
    assert not make_report({"accuracy": {"min": 0, "max": 1}}, phases=(PHASES[0], last), artifacts=()).met
