"""Exporting the model of a finished run afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import nnicompress
from nnicompress.commands import export as command
from nnicompress.commands.export import main
from nnicompress.errors import JobError, RunLockedError, UserError
from nnicompress.export.afterwards import export_run
from nnicompress.export.formats import FORMATS
from nnicompress.export.onnx import OnnxModel
from nnicompress.pipeline.run import run_job
from tests.pipeline.jobs import make_job

pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned and shrunk run that wrote `model.pt2`."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    run_job(make_job(folder, {"train": {"max_steps": 2}, "prune": {}, "shrink": {}, "export": {}}))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "small"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_a_run_leaves_all_that_inference_needs(run: Path) -> None:
    assert names(run / "model") >= {
        "load.py",
        "resnet.py",
        "model.safetensors",
        "description.json",
        "example.safetensors",
        "preprocessing.json",
        "labels.json",
    }


def test_the_missing_format_is_written_and_is_the_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(run)
    assert main([str(run)]) == 0
    assert names(run) - before == {"model.onnx"}
    assert capsys.readouterr().out.startswith(f"{run}/model.onnx: ")
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = nnicompress.load(run)(x)
    torch.testing.assert_close(OnnxModel(run / "model.onnx")(x), expected, rtol=1e-4, atol=1e-5)


def test_another_folder_takes_all_formats(run: Path, tmp_path: Path) -> None:
    before = names(run)
    output = tmp_path / "output"
    output.mkdir()
    written = export_run(run, output=output)
    assert [one.path for one in written] == [output / "model.pt2", output / "model.onnx"]
    assert [one.runtime for one in written] == ["torch.export", "onnxruntime"]
    assert all(one.bytes == one.path.stat().st_size > 10_000 for one in written)
    assert all(one.max_relative_difference < 1e-5 for one in written)
    assert (names(output), names(run)) == ({"model.pt2", "model.onnx"}, before)


def test_a_file_that_is_there_is_not_replaced(run: Path) -> None:
    content = (run / "model.pt2").read_bytes()
    for formats in (["pt2"], ["onnx", "pt2"]):
        with pytest.raises(UserError, match="model.pt2 is there already; --output FOLDER"):
            export_run(run, formats)
    assert (run / "model.pt2").read_bytes() == content and not (run / "model.onnx").exists()


def test_a_failure_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = names(run)
    monkeypatch.setattr("nnicompress.export.onnx.OnnxModel.forward", lambda self, x: torch.zeros(len(x), 10))
    with pytest.raises(JobError, match=r"model.onnx differs from the model by"):
        export_run(run, ["onnx"])
    assert names(run) == before


@pytest.mark.parametrize("state", ["failed", "interrupted", "running"])
def test_an_unfinished_run_is_refused_in_one_line(state: str, run: Path) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": state, "stage": "prune"}))
    with pytest.raises(JobError, match="the run is .* in stage 'prune'") as caught:
        export_run(run, ["onnx"])
    assert "\n" not in str(caught.value)
    assert not (run / "model.onnx").exists()


def test_a_run_that_is_being_written_is_left_alone(run: Path) -> None:
    with FileLock(run / ".lock"), pytest.raises(RunLockedError, match="another process is writing this run"):
        export_run(run, ["onnx"])


def test_a_missing_package_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnicompress.export.onnx.PACKAGES", ("no_such_package",))
    with pytest.raises(UserError, match="^format 'onnx' needs no_such_package: pip install"):
        export_run(run, ["onnx"])


WRONG = {
    "": "export takes one run, as in 'nnicompress export runs/NAME'",
    "nothing": "no run 'nothing'; give the folder of a finished run",
    "RUN onnx": "export takes one run, .*; formats are given as --format onnx",
    "RUN RUN": "export takes one run",
    "RUN --format": "--format needs a value",
    "RUN --format --trust x": "--format needs a value",
    "RUN --format onx": "there is no format 'onx'; did you mean 'onnx'",
    "RUN --format=tflite": "there is no format 'tflite'; formats: pt2, onnx",
    "RUN --format onnx,": "there is no format ''; formats: pt2, onnx",
    "RUN --formats onnx": "nnicompress export has no option '--formats'; did you mean '--format'",
    "RUN --output nowhere": "--output: no folder 'nowhere'; create it first",
    "RUN --output": "--output needs a value",
    "RUN/model": "no such report; give the folder of a finished run",
    "RUN --smoke": "nnicompress export has no option '--smoke'",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words_are_told(words: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = names(run)
    with pytest.raises(UserError, match=WRONG[words]):
        main(words.replace("RUN", str(run)).split())
    assert names(run) == before


def test_the_command_knows_the_formats() -> None:
    assert tuple(FORMATS) == command.FORMATS
