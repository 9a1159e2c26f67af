"""An exported file whose metric is not the model's fails the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnicompress.errors import JobError
from nnicompress.export.program import ProgramModel
from nnicompress.pipeline.run import run_job
from nnicompress.pipeline.run_dir import read_status
from tests.pipeline.jobs import make_job

QUICK = {"repeats": 3, "seconds": 0.1, "memory": False}


def run(folder: Path, **evaluate: Any) -> Any:
    return run_job(make_job(folder, {"train": {"max_steps": 60}, "export": {}, "evaluate": {**QUICK, **evaluate}}))


@pytest.fixture
def wrong_for_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file answers as the model does for a few samples, as the comparison at export sees it, and else at random."""
    right = ProgramModel.forward

    def forward(self: ProgramModel, x: Tensor) -> Any:
        outputs = right(self, x)
        return outputs if len(x) <= 3 else torch.roll(outputs, 1, dims=1)

    monkeypatch.setattr(ProgramModel, "forward", forward)


def test_another_accuracy_fails_the_run_in_one_line(tmp_path: Path, wrong_for_batches: None) -> None:
    with pytest.raises(JobError) as caught:
        run(tmp_path / "run")
    line = str(caught.value)
    assert "model.pt2: accuracy is 0." in line and "in torch.export" in line and "in PyTorch; they differ by 0." in line
    assert "more than stages.evaluate.max_deployed_gap (0.01)" in line and "\n" not in line
    status = read_status(tmp_path / "run")
    assert status is not None and (status.state, status.stage) == ("failed", "evaluate")
    assert not (tmp_path / "run/report.json").exists()


@pytest.mark.parametrize("bound", [1.0, None])
def test_a_wide_bound_reports_the_difference(bound: float | None, tmp_path: Path, wrong_for_batches: None) -> None:
    report = run(tmp_path / "run", max_deployed_gap=bound)
    assert abs(report.artifacts[0].accuracy - report.final.accuracy) > 0.01


def test_a_true_file_passes_the_narrowest_bound(tmp_path: Path) -> None:
    report = run(tmp_path / "run", max_deployed_gap=0.0)
    assert report.artifacts[0].accuracy == report.final.accuracy
