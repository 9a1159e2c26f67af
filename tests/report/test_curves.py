"""Curves from events."""

import pytest

from nnicompress.events import EpochDone, StageStarted, StepDone, TrainingFinished, TrainingStarted
from nnicompress.report.curves import MOST_POINTS, CurveRecorder


def test_short_trainings_are_kept_whole() -> None:
    recorder = CurveRecorder()
    recorder(StageStarted("train", 1, 2))
    recorder(TrainingStarted(4))
    for step, loss in enumerate([4.0, 3.0, 2.0, 1.0], start=1):
        recorder(StepDone(step, loss, 0.1))
        if step % 2 == 0:
            recorder(EpochDone(step // 2, {"default": step / 10}))
    recorder(TrainingFinished(4))
    recorder(StageStarted("prune", 2, 2))
    recorder(TrainingStarted(3))
    (curve,) = recorder.curves()
    assert (curve.stage, curve.steps, curve.losses) == ("train", (1, 2, 3, 4), (4.0, 3.0, 2.0, 1.0))
    assert curve.epoch_steps == (2, 4) and curve.metrics == ({"default": 0.2}, {"default": 0.4})


def test_long_trainings_are_averaged_not_sampled() -> None:
    recorder = CurveRecorder()
    recorder(TrainingStarted(None))
    count = 7 * MOST_POINTS
    for step in range(1, count + 1):
        recorder(StepDone(step, float(step), 0.1))
    (curve,) = recorder.curves()
    assert len(curve.losses) == MOST_POINTS and curve.steps[-1] == count == curve.total_steps
    assert curve.losses[0] == pytest.approx(4.0)  # the mean of 1 ... 7
    assert sum(curve.losses) / MOST_POINTS == pytest.approx((count + 1) / 2)
