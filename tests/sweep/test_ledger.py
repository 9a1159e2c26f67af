"""The ledger of a sweep: points as their processes write them, and the folder's name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nnicompress.errors import JobError
from nnicompress.sweep.conclusion import conclude
from nnicompress.sweep.ledger import Ledger, Point, is_sweep, sweep_folder
from tests.report.sample import make_report
from tests.report.test_comparison import write_run


def test_points_are_read_back_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "sweep")
    assert ledger.points() == [] and not is_sweep(ledger.folder)
    points = [Point(number, ("recipe=a", f"seed={number}"), f"/runs/{number}") for number in range(12)]
    for point in reversed(points):
        ledger.write(point)
    ended = replace(points[3], ended=True, error="out of luck")
    ledger.write(ended)
    assert ledger.points() == [*points[:3], ended, *points[4:]] and is_sweep(ledger.folder)
    ledger.start_over()
    assert ledger.points() == []


def test_the_folder_is_that_of_the_sweep_however_it_is_carried_out() -> None:
    words = ["recipe=a", "seed=0,1"]
    folder = sweep_folder(words, smoke=False)
    assert folder == sweep_folder([*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], smoke=False)
    others = [sweep_folder(["recipe=a", "seed=0,2"], smoke=False), sweep_folder(words, smoke=True)]
    others.append(sweep_folder([*words, "hydra/sweeper=nnicompress_optuna"], smoke=False))
    assert len({folder, *others}) == 4 and folder.parent == Path("runs")


def test_the_end_names_failed_and_dead_points_and_hides_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ledger = Ledger(tmp_path / "sweep")
    good = write_run(tmp_path / "good", make_report())
    # A result that an earlier run left is none of a point that failed, or died before it could say so.
    stale = write_run(tmp_path / "stale", make_report())
    killed = write_run(tmp_path / "killed", state="running")
    ledger.write(Point(0, ("recipe=a", "seed=0"), str(stale), ended=True, error="ConfigError: no"))
    ledger.write(Point(1, ("recipe=a", "seed=1"), str(good), ended=True))
    ledger.write(Point(2, ("recipe=a", "seed=2"), str(killed)))
    with pytest.raises(JobError) as caught:
        conclude(ledger)
    assert str(caught.value).splitlines() == [
        "2 of 3 runs of the sweep failed:",
        "  recipe=a seed=0: ConfigError: no",
        "  recipe=a seed=2: its process (1) ended without finishing",
    ]
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert [row[1] for row in rows if row[0] in "123" and row[1].startswith("seed")] == ["seed=1", "seed=0", "seed=2"]
    assert (ledger.folder / "compare.html").is_file()
