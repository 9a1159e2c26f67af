"""Schedules as pure functions."""

import pytest

from nnicompress.pruning.schedule import fractions
from nnicompress.pruning.settings import ScheduleSettings


def test_fractions_of_the_final_ratio():
    assert fractions(ScheduleSettings()) == (1.0,)
    assert fractions(ScheduleSettings(name="linear", total_times=4, interval_steps=1)) == (0.25, 0.5, 0.75, 1.0)
    agp = fractions(ScheduleSettings(name="agp", total_times=4, interval_steps=1))
    assert agp == pytest.approx((1 - 27 / 64, 1 - 8 / 64, 1 - 1 / 64, 1))
    assert agp[-1] == 1.0
