"""The run folder: status, whole stages, one writer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnicompress.errors import ConfigError, JobError, RunLockedError
from nnicompress.pipeline.run_dir import open_run, read_status, write_json

HOLD = """
import sys, time
from pathlib import Path
from nnicompress.pipeline.run_dir import open_run
with open_run(Path(sys.argv[1])) as run:
    run.update(stage="train")
    print("ready", flush=True)
    time.sleep(60)
"""


def held(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_run_that_ends_well_is_done_and_keeps_its_stages(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "running"
        with run.stage(1, "train") as folder:
            (folder / "weights").write_text("w")
            assert not (tmp_path / "run/stages/01_train").exists()
            assert read_status(tmp_path / "run").stage == "train"
    assert (tmp_path / "run/stages/01_train/weights").read_text() == "w"
    status = read_status(tmp_path / "run")
    assert (status.state, status.stage, status.error) == ("done", None, None)


def test_a_failed_stage_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(JobError), open_run(tmp_path) as run:
        with run.stage(1, "train") as folder:
            (folder / "weights").write_text("w")
        with run.stage(2, "prune") as folder:
            (folder / "weights").write_text("half")
            raise JobError("no gradient\nand more")
    assert [p.name for p in (tmp_path / "stages").iterdir()] == ["01_train"]
    status = read_status(tmp_path)
    assert (status.state, status.stage, status.error) == ("failed", "prune", "JobError: no gradient")


def test_an_interrupt_is_a_failure_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path):
        raise KeyboardInterrupt
    assert read_status(tmp_path).error == "interrupted"


def test_starting_over_removes_all_earlier_results_and_nothing_else(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        with run.stage(1, "train"):
            pass
        (tmp_path / "report.json").write_text("{}")
        (tmp_path / "model").mkdir()
        (tmp_path / "my-notes.txt").write_text("keep me")
    with pytest.raises(JobError), open_run(tmp_path, fresh=True):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "my-notes.txt", "status.json"]
        raise JobError("early")
    assert read_status(tmp_path).state == "failed"
    assert not (tmp_path / "report.json").exists()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/precious").write_text("!")
    with pytest.raises(ConfigError, match="'model' and is no run"), open_run(tmp_path):
        pass
    assert (tmp_path / "model/precious").exists() and not (tmp_path / "status.json").exists()


def test_a_second_process_is_told_who_writes_the_run(tmp_path: Path) -> None:
    process = held(tmp_path)
    try:
        with pytest.raises(RunLockedError, match=f"process {process.pid} is writing"), open_run(tmp_path):
            pass
        assert read_status(tmp_path).state == "running"
    finally:
        process.kill()
        process.communicate()
    status = read_status(tmp_path)
    assert (status.state, status.stage) == ("failed", "train")
    assert "ended without finishing" in status.error
    with open_run(tmp_path):
        pass
    assert read_status(tmp_path).state == "done"


def test_json_is_replaced_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    before = path.open()
    write_json(path, {"a": 2})
    assert json.load(before) == {"a": 1} and json.loads(path.read_text()) == {"a": 2}
    before.close()
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_that_is_not_ours_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds 'thesis.tex' and is no run"), open_run(tmp_path):
        raise AssertionError("opened")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is a file; give a folder"), open_run(folder):
            raise AssertionError("opened")
