"""What the machine does to a run: each ends in one line that says what to do, and leaves the last good state."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nnicompress
from nnicompress.errors import JobError
from nnicompress.pipeline import checkpoint
from nnicompress.pipeline.checkpoint import Checkpoint
from nnicompress.pipeline.run import run_job
from nnicompress.pipeline.run_dir import read_status
from tests.pipeline.jobs import make_job

REPOSITORY = Path(nnicompress.__file__).resolve().parents[1]
AGAIN = "run the same command again: it goes on from the last saved state"


def fails(job: Any) -> str:
    with pytest.raises(JobError) as caught:
        run_job(job)
    line = str(caught.value)
    assert "\n" not in line
    return line


def at_step(number: int, error: Exception) -> Any:
    """A loss that raises in its `number`-th call."""
    calls = []

    def loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == number:
            raise error
        return nn.functional.cross_entropy(predictions, targets)

    return loss


def test_out_of_memory_says_what_to_lower_and_the_run_goes_on_from_the_saved_state(tmp_path: Path) -> None:
    stages = {"train": {"max_steps": 30}}
    real: Exception
    try:
        torch.empty(2**46)
    except RuntimeError as error:
        real = error
    job = make_job(tmp_path, stages, loss=at_step(25, real), save_every=10)
    line = fails(job)
    assert "not enough memory in stage 'train'" in line and "lower data.batch_size" in line and AGAIN in line
    assert read_status(tmp_path).state == "failed"
    assert [p.name for p in (tmp_path / "stages").rglob("*")] == [".01_train.partial", "progress.pt"]
    calls = []

    def counted(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return nn.functional.cross_entropy(predictions, targets)

    run_job(make_job(tmp_path, stages, loss=counted, save_every=10))
    # Ten steps are left, and no evaluation takes the loss.
    assert len(calls) == 10


def test_a_disk_that_becomes_read_only_in_the_middle_keeps_the_saved_state(tmp_path: Path) -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "stages"))
    line = fails(make_job(tmp_path, {"train": {"max_steps": 30}}, loss=at_step(25, error), save_every=10))
    assert (
        line.startswith(f"{tmp_path}/stages can't be written to in stage 'train'; make it writable") and AGAIN in line
    )
    assert [p.name for p in (tmp_path / "stages").rglob("*")] == [".01_train.partial", "progress.pt"]


def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_and_keeps_earlier_stages(tmp_path: Path) -> None:
    def nan_later(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(predictions, targets) * (float("nan") if nan else 1)

    nan = False
    run_job(make_job(tmp_path, {"train": {"max_steps": 3}}, loss=nan_later))
    nan = True
    stages = {"train": {"max_steps": 3}, "finetune": {"max_steps": 3}}
    line = fails(make_job(tmp_path, stages, loss=nan_later))
    assert line.startswith("the loss is nan at step 1 (epoch 1); lower the learning rate")
    assert [p.name for p in (tmp_path / "stages").iterdir()] == ["01_train"]


def test_a_worker_that_dies_is_named(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"train": {"max_steps": 3}})

    class Dies(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            os._exit(3)

    loader = torch.utils.data.DataLoader(Dies(), batch_size=2, num_workers=1)
    job.data.train_loader = lambda seed: loader
    line = fails(job)
    assert "a data loading worker died in stage 'train'" in line and AGAIN in line


def test_a_damaged_progress_file_is_told_and_not_used(tmp_path: Path) -> None:
    state = Checkpoint(tmp_path, "key")
    state.save({"steps": 3, "tensors": {"w": torch.ones(100)}})
    assert Checkpoint(tmp_path, "another key").load() is None
    loaded = Checkpoint(tmp_path, "key").load()
    assert loaded is not None and loaded["steps"] == 3
    content = bytearray(state.path.read_bytes())
    for damage in (content[:-40], content[:200] + b"x" + content[201:]):
        state.path.write_bytes(bytes(damage))
        with pytest.raises(JobError, match="is damaged, so the stage can't go on from it; remove this file"):
            Checkpoint(tmp_path, "key").load()


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = Checkpoint(tmp_path, "key")
    state.save({"steps": 10})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nnicompress.pipeline.run_dir.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        state.save({"steps": 20})
    loaded = state.load()
    assert loaded is not None and loaded["steps"] == 10 and [p.name for p in tmp_path.iterdir()] == ["progress.pt"]
    assert checkpoint.PROGRESS == "progress.pt"


ON_SMALL_DISK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from nnicompress.errors import JobError
from nnicompress.pipeline.run import run_job
from tests.pipeline.jobs import WHOLE_WAY, make_job
stages = {**WHOLE_WAY, "train": {"max_steps": 12}}
try:
    run_job(make_job(Path(sys.argv[2]), stages, save_every=5))
except JobError as error:
    print("JobError:", error)
else:
    print("done")
"""


def mounted(folder: Path, script: str) -> str:
    """A shell in a mount namespace of its own, where `folder` is a tmpfs."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def can_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("this system lets no user mount a file system")
    (tmp_path / "run.py").write_text(ON_SMALL_DISK)
    python = f"{sys.executable} {tmp_path}/run.py {REPOSITORY} {disk}/run"
    # The ballast leaves room for a training of this model, and not for a whole run.
    script = f"""
        mount -t tmpfs -o size=6m tmpfs {disk}
        head -c 4700000 /dev/zero > {disk}/ballast
        {python}
        cat {disk}/run/status.json
        find {disk}/run -name '*.partial' -type f
        rm {disk}/ballast
        {python}
    """
    first, *status, last = mounted(disk, script).splitlines()
    assert first.startswith("JobError: no space left on the disk of") and AGAIN in first
    assert json.loads("".join(status))["state"] in ("failed", "running"), "no half-written file is left either"
    assert last == "done"


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_ends_the_run_in_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("this system lets no user mount a file system")
    (tmp_path / "run.py").write_text(ON_SMALL_DISK)
    script = f"""
        mount -t tmpfs -o size=32m tmpfs {disk}
        mkdir {disk}/run
        mount -o remount,ro {disk}
        {sys.executable} -m nnicompress run recipe=taylorfo_resnet run_dir={disk}/run 2>&1 || echo "exit code $?"
    """
    line, code = mounted(disk, script).splitlines()
    assert line == f"error: run_dir: {disk}/run can't be written to; give another folder (command line)"
    assert code == "exit code 2"
