"""The measurements of an analysis, one after the other; those that an earlier process has made are not made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence

from nnicompress.evaluators.contract import Evaluator
from nnicompress.events import Listener, Measured, silent
from nnicompress.sensitivity.probe import Probe, Subject

Point = tuple[str, str]
"""(subject, level); `("", "")` is the model as it is, `("", level)` all subjects compressed."""
Values = MutableMapping[Point, float]


def measure(
    evaluator: Evaluator,
    probe: Probe,
    mode: str,
    values: Values,
    *,
    measured: Callable[[Point], None],
    listener: Listener = silent,
) -> None:
    """Fill `values` with the metric at every point that it lacks; the model, which must be bound, ends as it was.

    `mode` is that of `SensitivitySettings`. `measured` is called after each point, for whoever stores it.
    """
    points = list(_points(probe.subjects, probe.levels, mode))
    for number, (point, compressed) in enumerate(points, start=1):
        if point not in values:
            values[point] = _value(evaluator, probe, compressed, point, values)
            measured(point)
        listener(Measured(number, len(points), " at ".join(filter(None, point)) or "the model as it is"))


def _points(subjects: Sequence[Subject], levels: Sequence[str], mode: str) -> Iterator[tuple[Point, list[Subject]]]:
    """Every point with the subjects that are compressed for it; those that others fall back on come first."""
    yield ("", ""), []
    for level in levels:
        if mode == "all_but_one":
            yield ("", level), list(subjects)
        for subject in subjects:
            others = [other for other in subjects if other is not subject]
            yield (subject.name, level), [subject] if mode == "one" else others


def _value(evaluator: Evaluator, probe: Probe, compressed: list[Subject], point: Point, values: Values) -> float:
    if not compressed:
        return evaluator.evaluate("validation")["default"] if point == ("", "") else values["", ""]
    with probe.applied(compressed, point[1]) as changed:
        return evaluator.evaluate("validation")["default"] if changed else values["", ""]
