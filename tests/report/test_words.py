"""Numbers in words, and the first line."""

import pytest

from nnicompress.report import words
from tests.report.sample import PHASES, SMALL, latency, make_report, phase


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0"), (271_690, "271,690"), (2_554_250, "2.55 M"), (1.82e9, "1.82 G")]
)
def test_counts(value: int | None, text: str) -> None:
    assert words.count(None if value is None else int(value)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512 B"), (430_244, "430 kB"), (999_960, "1 MB"), (1_340_385, "1.34 MB")]
)
def test_sizes(value: int, text: str) -> None:
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.00183, "1.83 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (12.44, "12.4 s"), (59.97, "1 min 00 s")),
        *((119.7, "2 min 00 s"), (185.0, "3 min 05 s")),
    ],
)
def test_times(value: float, text: str) -> None:
    assert words.seconds(value) == text


def test_a_latency_keeps_three_digits() -> None:
    assert (words.latency(latency(1, 0.0019)), words.spread(latency(1, 0.002))) == ("1.90 ms", "1.90–2.10")
    assert (words.latency(latency(1, 0.15)), words.spread(None)) == ("150 ms", "")
    assert words.latency(latency(1, 0.9999)) == "1.00 s" and words.spread(latency(1, 0.99)) == "940–1040"


def test_the_first_line_names_speed_cost_and_quality() -> None:
    assert words.headline(make_report()) == (
        "2.50 times as fast at batch 32, with 50 % of the multiply-accumulates. Accuracy 98.0 % → 96.0 % (−2.0 points)."
    )


def test_the_first_line_names_the_batch_size_that_was_measured() -> None:
    slow, fast = (
        phase(name, name, **{**SMALL, "latency": (latency(64, s),)}) for name, s in (("a", 0.04), ("b", 0.02))
    )
    report = make_report(phases=(slow, fast), artifacts=())
    assert report.batch_size == 32
    assert words.headline(report).startswith("2.00 times as fast at batch 64,")


def test_the_first_words_say_that_nothing_became_faster() -> None:
    slow = phase("finetuned", "fine-tuned", **{**SMALL, "latency": (latency(32, 0.0205),)})
    line = words.headline(make_report(phases=(PHASES[0], slow), artifacts=()))
    assert line.startswith("Not faster: 0.98 times the baseline's speed at batch 32, with 50 %")
    barely = phase("finetuned", "fine-tuned", **{**SMALL, "latency": (latency(32, 0.0198),)})
    assert words.headline(make_report(phases=(PHASES[0], barely), artifacts=())).startswith("Not faster: 1.01")


def test_masks_are_called_what_they_are() -> None:
    line = words.headline(make_report(phases=PHASES[:2], artifacts=()))
    assert line.startswith("No speed-up: masks only. 60 % of the parameters are zero")


def test_nothing_is_claimed_that_was_not_measured() -> None:
    still = phase("shrunk", "shrunk", **{**SMALL, "latency": (), "accuracy": None})
    line = words.headline(make_report(phases=(PHASES[0], still), artifacts=()))
    assert line == "Speed not measured, with 50 % of the multiply-accumulates."
    assert (
        words.headline(make_report(phases=PHASES[:1], artifacts=())) == "Not compressed: a baseline. Accuracy 98.0 %."
    )


def test_a_metric_that_is_no_share_is_a_number() -> None:
    report = make_report(metric="perplexity", mode="min")
    assert words.metric(report, 12.3456) == "12.35"
    assert words.metric_change(report, 12.0, 11.5) == "−0.5"
