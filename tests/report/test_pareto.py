"""The Pareto front against its definition, and the plot: points where their numbers say, and each with its number."""

from __future__ import annotations

import random
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nnicompress.report.comparison import Entry, compare_runs
from nnicompress.report.pareto import pareto_front, trade_offs
from tests.report.sample import PHASES, SMALL, make_report, phase
from tests.report.test_figures import dots, texts, tipped


def beats(a: tuple[float, float], b: tuple[float, float], mode: str) -> bool:
    sign = 1 if mode == "max" else -1
    no_worse = a[0] <= b[0] and sign * a[1] >= sign * b[1]
    return no_worse and a != b


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_none_beats(mode: str, seed: int) -> None:
    draw = random.Random(seed)
    points = [(draw.randint(0, 6) / 6, draw.randint(0, 6) / 6) for _ in range(draw.randint(1, 25))]
    expected = {n for n, one in enumerate(points) if not any(beats(other, one, mode) for other in points)}
    front = pareto_front(points, mode=mode)
    assert set(front) == expected and len(front) == len(expected)
    assert [points[index][0] for index in front] == sorted(points[index][0] for index in front)


def entry(label: str, accuracy: float, macs: int | None, **changes: object) -> Entry:
    changed = {**SMALL, "accuracy": accuracy, "macs": macs, **changes}
    report = make_report(phases=(PHASES[0], phase("finetuned", "fine-tuned", **changed)), artifacts=())
    return Entry(label, Path(label), "done", report=report)


def test_points_lie_where_their_numbers_say() -> None:
    entries = [entry("a", 0.97, 8_000_000), entry("b", 0.96, 4_000_000), entry("c", 0.95, 6_000_000)]
    first, second = map(ElementTree.fromstring, trade_offs(compare_runs(entries)))
    found = dots(first)
    assert list(found) == ["1. a: 97.0 % at 1.00×", "2. b: 96.0 % at 0.50×", "3. c: 95.0 % at 0.75×"]
    (ax, ay), (bx, by), (cx, cy) = found.values()
    assert ay < by < cy, "up is better"
    assert (ax - cx) == pytest.approx(cx - bx, abs=0.1)
    assert {"1", "2", "3", "accuracy (test)", "multiply-accumulates, share of the baseline"} <= set(texts(first))
    assert "latency, share of the baseline" in texts(second)
    styles = {text: ElementTree.tostring(group, encoding="unicode") for text, group in tipped(first)}
    assert "--accent" in styles["2. b: 96.0 % at 0.50×"] and "--accent" not in styles["3. c: 95.0 % at 0.75×"]
    assert "Pareto front: no run is better in both" in styles


def test_numbers_do_not_cover_each_other() -> None:
    draw = random.Random(3)
    entries = [entry(str(n), draw.uniform(0.9, 0.99), draw.randint(2_000_000, 8_000_000)) for n in range(15)]
    drawing = ElementTree.fromstring(trade_offs(compare_runs(entries))[0])
    places = [(float(t.get("x", 0)), float(t.get("y", 0))) for t in drawing.iter() if (t.text or "").isdigit()]
    assert len(places) == 15
    for number, (x, y) in enumerate(places):
        assert all(abs(x - a) > 8 or abs(y - b) > 8 for a, b in places[:number])


def test_where_nothing_can_be_plotted_there_is_no_plot() -> None:
    one = entry("a", 0.97, 4_000_000)
    assert trade_offs(compare_runs([one, Entry("b", Path("b"), "failed")])) == []
    other = make_report(metric="f1", artifacts=())
    assert trade_offs(compare_runs([one, Entry("c", Path("c"), "done", report=other)])) == []
    sizes = trade_offs(compare_runs([entry(name, 0.9, None, latency=()) for name in "ab"]))
    assert len(sizes) == 1 and "weights file, share of the baseline" in sizes[0]
