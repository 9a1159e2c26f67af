"""`report.json` and back."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from nnicompress.errors import JobError, UserError
from nnicompress.pipeline.run_dir import finished_report, open_run
from nnicompress.report.record import Report
from tests.report.sample import PHASES, make_report


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    report = make_report({"accuracy": {"min": 0.9}})
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report == Report.load(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["phases"][3]["macs"] == 4_000_000
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_what_is_not_finite_survives_too(tmp_path: Path) -> None:
    broken = PHASES[0].model_copy(update={"accuracy": math.nan, "validation": math.inf})
    make_report(phases=(broken,), artifacts=()).save(tmp_path / "report.json")
    again = Report.load(tmp_path).baseline
    assert math.isnan(again.accuracy) and again.validation == math.inf


def test_unknown_keys_are_not_lost_in_silence() -> None:
    values = json.loads(make_report().model_dump_json())
    with pytest.raises(ValidationError, match="colour"):
        Report.model_validate({**values, "colour": "blue"})


def test_a_run_without_a_report_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such report"):
        finished_report(tmp_path)
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path) as run:
        run.update(stage="train")
        raise KeyboardInterrupt
    with pytest.raises(JobError, match="the run is interrupted in stage 'train'; it has no report; run the same"):
        finished_report(tmp_path)


def test_showing_a_report_imports_no_torch(tmp_path: Path) -> None:
    make_report().save(tmp_path / "report.json")
    code = (
        "import sys; from pathlib import Path; from nnicompress.pipeline.run_dir import finished_report;"
        "from nnicompress.report.terminal import print_report; print_report(finished_report(Path(sys.argv[1])));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "2.50 times as fast" in done.stdout


def test_a_file_that_is_no_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("print('hello')")
    with pytest.raises(UserError, match="is no report of this version"):
        finished_report(tmp_path)
