"""Progress on a terminal and elsewhere."""

import io

from rich.console import Console

from nnicompress.events import EpochDone, Event, Measured, Note, StageFinished, StageStarted, StepDone, TrainingStarted
from nnicompress.report.progress import LINE_INTERVAL, PlainLines, progress

EVENTS: list[Event] = [
    StageStarted("train", 1, 2),
    TrainingStarted(100),
    StepDone(1, 2.5, 0.1),
    StepDone(50, 0.25, 0.1),
    EpochDone(1, {"default": 0.9}),
    Note("a [bold] remark", warning=True),
    StageFinished("train", 12.0),
]


def test_plain_lines_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    with progress(Console(file=file, width=200)) as listener:
        for event in EVENTS:
            listener(event)
    assert file.getvalue().splitlines() == [
        "[1/2] train",
        "  train  step 50/100  loss 0.2500  epoch 1  metric 0.9",
        "  warning: a [bold] remark",
        "  train: done in 12.0 s",
    ]


def test_long_epochs_show_steps_and_the_time_left() -> None:
    now, lines = [0.0], []
    listener = PlainLines(lines.append, lambda: now[0])
    listener(TrainingStarted(100))
    for step in range(1, 26):
        now[0] += 0.5 * LINE_INTERVAL
        listener(StepDone(step, 1.0, 0.1))
    assert len(lines) == 12
    assert lines[0].split("  ")[2:] == ["step 2/100", "loss 1.0000", "4 min 05 s left"]


def test_an_analysis_shows_what_it_has_measured() -> None:
    now, lines = [0.0], []
    listener = PlainLines(lines.append, lambda: now[0])
    listener(StageStarted("sensitivity", 2, 2))
    for number in range(1, 6):
        now[0] += 0.5 * LINE_INTERVAL
        listener(Measured(number, 31, f"conv{number} at 0.5"))
    assert lines[1:] == [f"  sensitivity  measured {n} of 31: conv{n} at 0.5" for n in (2, 4)]
    file = io.StringIO()
    with progress(Console(file=file, force_terminal=True, width=120)) as bars:
        bars(StageStarted("sensitivity", 2, 2))
        bars(Measured(7, 31, "conv1 at 0.5"))
    assert "2/2 sensitivity" in file.getvalue() and "7/31" in file.getvalue() and "conv1 at 0.5" in file.getvalue()


def test_bars_on_a_terminal_show_step_loss_and_metric() -> None:
    file = io.StringIO()
    with progress(Console(file=file, force_terminal=True, width=120)) as listener:
        for event in EVENTS[:5]:
            listener(event)
        listener(StepDone(60, 0.125, 0.1))
        listener(Note("a [bold] remark"))
        listener(StageFinished("train", 12.0))
    text = file.getvalue()
    assert "1/2 train" in text and "a [bold] remark" in text and "metric 0.9" in text and "12.0 s" in text
