"""The pictures: the right numbers at the right places, in the page's colours."""

import math
import re
from collections.abc import Callable, Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
import pytest

from nnicompress.report import figures
from nnicompress.report.drawing import HALF
from nnicompress.report.record import CurveRecord, LayerRecord, Report
from tests.report.sample import PHASES, make_report, phase

SVG = "{http://www.w3.org/2000/svg}"
FIGURES = [figures.training_curves, figures.quality_against_cost, figures.channels]
Draw = Callable[[Report], str | None]


def drawn(draw: Draw, report: Report) -> Element:
    return ElementTree.fromstring(draw(report) or "")


def texts(drawing: Element) -> list[str]:
    return [text.text or "" for text in drawing.iter(f"{SVG}text")]


def tipped(drawing: Element) -> Iterator[tuple[str, Element]]:
    """What shows a text while the pointer rests on it, with that text."""
    for group in drawing.iter(f"{SVG}g"):
        for title in group.findall(f"{SVG}title"):
            yield title.text or "", group


def dots(drawing: Element) -> dict[str, tuple[float, float]]:
    uses = {text: use for text, group in tipped(drawing) for use in group.iter(f"{SVG}use")}
    return {text: (float(use.attrib["x"]), float(use.attrib["y"])) for text, use in uses.items()}


def paths(drawing: Element, tip: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """Style and corners of every path that shows `tip`."""
    found = [path.attrib for text, group in tipped(drawing) if text == tip for path in group.iter(f"{SVG}path")]
    pairs = [(p["style"], re.findall(r"[ML] (\S+) (\S+)", p["d"])) for p in found]
    return [(style, [(float(x), float(y)) for x, y in corners]) for style, corners in pairs]


def x_of(drawing: Element, text: str) -> float:
    return next(float(t.attrib["x"]) for t in drawing.iter(f"{SVG}text") if t.text == text)


def boxes(drawing: Element, names: list[str]) -> list[tuple[float, float, float, float]]:
    """Left, right, top and bottom of the labels that begin with one of `names`; a character is 7 units wide."""
    found = []
    for text in drawing.iter(f"{SVG}text"):
        content, x, y = text.text or "", float(text.get("x", "0")), float(text.get("y", "0"))
        if any(content.startswith(f"{name}  ") for name in names):
            left = x - 7 * len(content) if "text-anchor: end" in text.attrib["style"] else x
            found.append((left, left + 7 * len(content), y - 10, y + 2))
    return found


@pytest.mark.parametrize("draw", FIGURES)
def test_a_figure_takes_everything_from_its_page_and_is_the_same_each_time(draw: Draw) -> None:
    before = dict(matplotlib.rcParams)
    text = draw(make_report()) or ""
    assert dict(matplotlib.rcParams) == before and draw(make_report()) == text
    root = ElementTree.fromstring(text)
    assert root.attrib["role"] == "img" and root.attrib["aria-label"]
    styles = " ".join(element.get("style", "") for element in root.iter())
    assert "var(--soft)" in styles and "#" not in re.sub(r"url\(#\w+\)", "", styles)
    assert not re.search("<style|<metadata|<image", text)


def test_what_the_user_has_set_does_not_show() -> None:
    plain = figures.channels(make_report())
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert figures.channels(make_report()) == plain


def test_bars_are_as_long_as_the_channels() -> None:
    drawing = drawn(figures.channels, make_report())
    widths = {}
    for tip in ("conv1: 8 of 16 channels kept.", "conv2: 32 of 32 channels kept. its width <is> fixed"):
        for style, corners in paths(drawing, tip):
            xs = [x for x, _ in corners]
            widths[tip[:5], "accent" in style] = max(xs) - min(xs)
    assert widths["conv2", False] == pytest.approx(2 * widths["conv1", False], rel=1e-3)
    assert widths["conv1", True] == pytest.approx(0.5 * widths["conv1", False], rel=1e-3)
    assert widths["conv2", True] == pytest.approx(widths["conv2", False], rel=1e-3)
    assert {"conv1", "8 of 16", "50 %", "conv2", "32 of 32"} <= set(texts(drawing)) and "100 %" not in texts(drawing)


HEADS = LayerRecord(name="query", before=4, after=1, asked=3, unit="heads")
FEED_FORWARD = LayerRecord(name="dense", before=256, after=64, asked=192, unit="feed-forward channels")


def test_bars_of_another_unit_have_another_scale() -> None:
    drawing = drawn(figures.channels, make_report(layers=(HEADS, FEED_FORWARD)))
    tips = ("query: 1 of 4 heads kept.", "dense: 64 of 256 feed-forward channels kept.")
    kept = [[x for x, _ in corners] for tip in tips for style, corners in paths(drawing, tip) if "accent" in style]
    heads, feed_forward = (max(xs) - min(xs) for xs in kept)
    assert heads == pytest.approx(feed_forward, rel=1e-3)
    assert {"1 of 4 heads", "64 of 256 feed-forward channels"} <= set(texts(drawing))
    assert drawing.attrib["aria-label"].startswith("Heads and feed-forward channels kept")


def test_many_layers_with_long_names_each_have_their_row() -> None:
    layers = [LayerRecord(name=f"{'block.' * 9}{n}", before=10_000, after=1 + n, unit="weights") for n in range(60)]
    drawing = drawn(figures.channels, make_report(layers=layers))
    rows = [float(t.attrib["y"]) for t in drawing.iter(f"{SVG}text") if (t.text or "").endswith(" of 10000")]
    assert len(rows) == 60 and min(b - a for a, b in zip(rows, rows[1:], strict=False)) > 14
    assert max(len(text) for text in texts(drawing)) <= 32 and drawing.attrib["aria-label"].startswith("Weights kept")


def test_points_lie_where_their_numbers_say() -> None:
    drawing = drawn(figures.quality_against_cost, make_report())
    found = dots(drawing)
    baseline, pruned = found["baseline: 98.0 % at 8 M"], found["pruned (masked): 50.0 % at 8 M"]
    shrunk, finetuned = found["shrunk: 50.0 % at 4 M"], found["fine-tuned: 96.0 % at 4 M"]
    assert len(found) == 4 and baseline[0] == pruned[0] > shrunk[0] == finetuned[0]
    zero = x_of(drawing, "0")
    assert (finetuned[0] - zero) / (baseline[0] - zero) == pytest.approx(0.5, abs=0.01)
    assert pruned[1] == shrunk[1] > finetuned[1] > baseline[1], "up is better"
    assert {"fine-tuned  96.0 %", "accuracy (test)", "multiply-accumulates of one sample"} <= set(texts(drawing))


@pytest.mark.parametrize("step", [0.0, 0.0004, 0.01, 0.1])
def test_labels_of_close_points_do_not_cover_each_other(step: float) -> None:
    names = ["baseline", "pruned (masked)", "shrunk", "fine-tuned", "pruned again", "fine-tuned again"]
    costs = [8_000_000, 8_000_000, 7_900_000, 7_900_000, 7_900_000, 4_000_000]
    phases = [
        phase(name, name, macs=macs, accuracy=1 - step * (number % 3))
        for number, (name, macs) in enumerate(zip(names, costs, strict=True))
    ]
    drawing = drawn(figures.quality_against_cost, make_report(phases=phases, artifacts=()))
    placed = boxes(drawing, names)
    assert len(placed) == 6 and len(dots(drawing)) == 6
    for number, (left, right, top, bottom) in enumerate(placed):
        assert left >= 0 and right <= HALF
        for other in placed[:number]:
            assert right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top


def test_every_point_lies_inside_the_axes() -> None:
    phases = [phase("a", "a", accuracy=3.2, macs=8), phase("b", "b", accuracy=-40.0, macs=4)]
    drawing = drawn(figures.quality_against_cost, make_report(metric="r2", phases=phases, artifacts=()))
    _, _, width, height = map(float, drawing.attrib["viewBox"].split())
    found = dots(drawing)
    assert set(found) == {"a: 3.2 at 8", "b: -40 at 4"}
    assert all(0 < x < width and 0 < y < height - 40 for x, y in found.values())
    assert "−40" in texts(drawing) and not any("%" in text for text in texts(drawing))


def test_the_curve_has_all_trainings_after_each_other() -> None:
    drawing = drawn(figures.training_curves, make_report())
    (_, first), (_, second) = paths(drawing, "train: training loss") + paths(drawing, "finetune: training loss")
    assert (len(first), len(second)) == (4, 2)
    zero = x_of(drawing, "0")
    assert (first[-1][0] - zero) / (second[-1][0] - zero) == pytest.approx(4 / 6, abs=0.01)
    gaps = [b[1] - a[1] for a, b in zip(first, first[1:], strict=False)]
    assert gaps[0] == pytest.approx(gaps[1], abs=0.1), "2, 1 and 0.5 are equally far apart on a logarithmic axis"
    assert set(dots(drawing)) == {"train, epoch 1: 60.0 %", "train, epoch 2: 97.0 %"}
    assert {"train", "finetune", "training loss", "validation accuracy", "optimizer steps"} <= set(texts(drawing))


def test_names_of_short_stages_do_not_cover_each_other() -> None:
    curves = [
        CurveRecord(stage=f"stage {n}", total_steps=steps, steps=(1, steps), losses=(1.0, 0.9))
        for n, steps in enumerate((500, 3, 3, 500))
    ]
    drawing = drawn(figures.training_curves, make_report(curves=curves))
    heights = [float(t.attrib["y"]) for t in drawing.iter(f"{SVG}text") if (t.text or "").startswith("stage")]
    assert heights[0] == heights[3] and len(heights) == 4
    assert abs(heights[1] - heights[2]) > 14, "next to each other, hence one above the other"


def test_what_is_not_finite_is_left_out() -> None:
    broken = CurveRecord(stage="train", total_steps=3, steps=(1, 2, 3), losses=(1.0, math.inf, math.nan))
    assert "training loss" in texts(drawn(figures.training_curves, make_report(curves=(broken,))))
    lost = broken.model_copy(update={"losses": (math.nan,) * 3})
    assert figures.training_curves(make_report(curves=(lost,))) is None
    phases = [p.model_copy(update={"accuracy": math.nan}) for p in PHASES[:1]] + list(PHASES[1:])
    report = make_report().model_copy(update={"phases": tuple(phases)})
    assert len(dots(drawn(figures.quality_against_cost, report))) == 3


def test_names_are_text_whatever_they_hold() -> None:
    curve = CurveRecord(stage="a $x^2$ <b> & 量子化", total_steps=2, steps=(1, 2), losses=(1.0, 0.9))
    assert "a $x^2$ <b> & 量子化" in texts(drawn(figures.training_curves, make_report(curves=(curve,))))
