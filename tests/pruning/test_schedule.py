"""Schedules as pure functions."""

import pytest

from nnicompress.pruning.schedule import growths
from nnicompress.pruning.settings import ScheduleSettings


def reached(name, ratio, **lengths):
    return [grow(ratio) for grow in growths(ScheduleSettings(name=name, **lengths))]


def test_how_far_each_removal_goes():
    assert reached("one_shot", 0.7) == [0.7]
    assert reached("linear", 0.5, total_times=4, interval_steps=1) == [0.125, 0.25, 0.375, 0.5]
    agp = reached("agp", 0.8, total_times=4, interval_steps=1)
    assert agp == pytest.approx([0.8 * (1 - 27 / 64), 0.8 * (1 - 8 / 64), 0.8 * (1 - 1 / 64), 0.8])
    assert agp[-1] == 0.8


def test_a_lottery_removes_the_same_share_of_what_is_left():
    """20 % five times leave 80 %, 64 %, 51.2 %, 40.96 %, 32.768 % (Frankle and Carbin 2019, section 2)."""
    kept = [1 - ratio for ratio in reached("lottery_ticket", 1 - 0.8**5, total_times=5, interval_steps=1)]
    assert kept == pytest.approx([0.8, 0.64, 0.512, 0.4096, 0.32768])
