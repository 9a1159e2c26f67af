"""`torchrun ... -m nnicompress run`: the whole way in two processes, beside one; reused, killed, resumed, failed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import load_file

from nnicompress.pipeline.run_dir import read_status
from nnicompress.report.record import Report
from tests.distributed.launch import REPOSITORY, environment, torchrun

STEP = """
import ctypes
import os
import signal
import time
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

calls = 0


def step(batch, model):
    global calls
    images, labels = batch
    loss = nn.functional.cross_entropy(model(images), labels)
    calls += loss.requires_grad
    if calls == 12 and os.environ.get("WHO", "") in (os.environ.get("RANK", "0"), "all"):
        how = os.environ["HOW"]
        if how == "stuck" and os.environ["RANK"] == "0":  # as one that waits for a GPU: no signal ends this
            lock = ctypes.create_string_buffer(64)
            while True:
                ctypes.CDLL(None).pthread_mutex_lock(lock)
        if how in ("raise", "stuck"):
            raise ValueError("a bad batch")
        if how == "nan":
            return loss * float("nan")
        if how == "kill_all":
            os.kill(os.getppid(), signal.SIGKILL)
        if how.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "terminate":
            os.kill(os.getppid(), signal.SIGTERM)
            os.environ["WHO"] = ""
            time.sleep(1)
    return loss


def loop(model, optimizer, training_step, scheduler, max_steps, max_epochs):
    # Of a user who wraps the model, or has forgotten to; each process has data of its own.
    generator = torch.Generator().manual_seed(int(os.environ["RANK"]))
    trained = DistributedDataParallel(model) if os.environ["HOW"] == "wrapped" else model
    for _ in range(max_steps):
        optimizer.zero_grad()
        images = torch.randn(8, 1, 8, 8, generator=generator)
        training_step((images, torch.arange(8)), trained).backward()
        optimizer.step()
        scheduler.step()
"""
RECIPE = """\
# Every stage, small: an uneven last batch, masks by Taylor scores, a model whose statistics nothing measures
defaults:
  - override /model: mlp
  - override /data: digits
  - override /optimizer: sgd
  - override /scheduler: onecycle
  - override /compressor: taylorfo
model: {hidden: [32, 16], dropout: 0.0}
runtime: {device: cpu, threads: 1}
evaluator: {training_step: stepping.step, clip_norm: 1.0, accumulate: 2}
save_every: 5
compressor:
  importance: {training_steps: 4}
  targets: {convs: null, linears: {op_types: [Linear], sparse_ratio: 0.4}}
stages:
  train: {max_epochs: 2}
  prune: {}
  shrink: {}
  finetune: {max_epochs: 1}
  export: {}
  evaluate: {repeats: 3, seconds: 0.05}
"""
RUN = ["-m", "nnicompress", "run", "recipe=small.yaml", "--trust", "stepping"]
STAGES = ["01_train", "02_prune", "03_shrink", "04_finetune", "05_export", "06_evaluate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "stepping.py").write_text(STEP)
    (folder / "small.yaml").write_text(RECIPE)
    return folder


def run(folder: Path, name: str, *more: str, **variables: str) -> CompletedProcess[str]:
    """In two processes."""
    scratch = folder / f"tmp-{name}"
    scratch.mkdir(exist_ok=True)
    return torchrun(folder, *RUN, f"run_dir={name}", *more, TMPDIR=str(scratch), **variables)


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    """The run of one process."""
    variables = environment(PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(folder)]))
    done = subprocess.run(
        [sys.executable, *RUN, "run_dir=one"], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder: Path) -> tuple[Path, CompletedProcess[str]]:
    """The run of two, and what they printed."""
    done = run(folder, "two")
    assert done.returncode == 0, done.stderr
    return folder / "two", done


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run / "stages" / stage / "model.safetensors")


def assert_same_bits(found: Path, expected: Path) -> None:
    for stage in STAGES[:4]:
        for name, tensor in weights(expected, stage).items():
            assert torch.equal(weights(found, stage)[name], tensor), (stage, name)


def test_two_processes_make_the_model_of_one(one: Path, two: tuple[Path, object]) -> None:
    for stage in STAGES[:4]:
        expected, found = weights(one, stage), weights(two[0], stage)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
    masks = [load_file(run / "stages/02_prune/pruning.safetensors") for run in (one, two[0])]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(masks[1][name], array) for name, array in masks[0].items())


def test_their_report_tells_the_same(one: Path, two: tuple[Path, object]) -> None:
    expected, found = Report.load(one), Report.load(two[0])
    assert found.pruned == expected.pruned and [s.name for s in found.stages] == [s.name for s in expected.stages]
    for ours, theirs in zip(found.phases, expected.phases, strict=True):
        assert (ours.parameters, ours.zeros, ours.macs) == (theirs.parameters, theirs.zeros, theirs.macs)
        assert ours.accuracy == pytest.approx(theirs.accuracy, abs=0.006)  # two images of 360
        assert ours.latency and ours.peak_memory
    for ours, theirs in zip(found.curves, expected.curves, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, abs=1e-5)


def test_the_main_process_alone_writes_and_prints(folder: Path, two: tuple[Path, CompletedProcess[str]]) -> None:
    path, done = two
    printed = done.stdout + done.stderr
    assert printed.count("[1/6] train") == 1 and printed.count("two: report.html") == 1
    assert "Warning" not in printed
    assert sorted(p.name for p in (path / "stages").iterdir()) == STAGES
    assert list((folder / "tmp-two").glob("nnicompress-*")) == []
    assert read_status(path).state == "done"


@pytest.mark.slow
def test_what_has_not_changed_is_reused_in_all_processes(two: tuple[Path, object], folder: Path) -> None:
    shutil.copytree(two[0], folder / "again")
    again = run(folder, "again", "stages.finetune.max_epochs=2", "--explain")
    assert again.returncode == 0, again.stderr
    report = Report.load(folder / "again")
    assert [stage.reused for stage in report.stages] == [True, True, True, False, False, False]
    assert (again.stdout + again.stderr).count("stages.finetune.max_epochs was 1, is 2") == 1
    other = run(folder, "fresh", "stages.finetune.max_epochs=2")
    assert other.returncode == 0, other.stderr
    assert_same_bits(folder / "again", folder / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill_all", "terminate"])
def test_a_job_that_was_ended_goes_on_and_ends_with_the_same_bits(
    how: str, folder: Path, two: tuple[Path, object]
) -> None:
    ended = run(folder, how, HOW=how, WHO="0")
    assert ended.returncode != 0
    wait_until_unlocked(folder / how)
    status = read_status(folder / how)
    assert (status.state, status.stage) == ({"kill_all": "failed", "terminate": "interrupted"}[how], "train")
    resumed = run(folder, how)
    assert resumed.returncode == 0, resumed.stderr
    assert f"goes on after step {5 if how == 'kill_all' else 6}" in resumed.stdout + resumed.stderr
    assert_same_bits(folder / how, two[0])


def wait_until_unlocked(path: Path) -> None:
    """The processes of a launcher that was killed end by themselves."""
    deadline = time.monotonic() + 20
    while read_status(path).state == "running" and time.monotonic() < deadline:
        time.sleep(0.1)


def test_an_error_of_another_process_is_told_with_its_number(folder: Path) -> None:
    begin = time.monotonic()
    done = run(folder, "raised", HOW="raise", WHO="1")
    assert done.returncode == 1 and time.monotonic() - begin < 60
    assert "error: process 1 failed: ValueError: a bad batch" in done.stderr
    assert "[process 1] ValueError: a bad batch" in done.stderr and "stepping.py" in done.stderr
    status = read_status(folder / "raised")
    assert (status.state, status.stage) == ("failed", "train")
    assert status.error == "JobError: process 1 failed: ValueError: a bad batch"
    assert ended_after(folder / "raised") < 15


@pytest.mark.slow
def test_a_process_that_is_killed_fails_the_job(folder: Path) -> None:
    done = run(folder, "killed", HOW="kill", WHO="1")
    assert done.returncode == 1
    assert "error: process 1 was killed; look at the memory" in done.stderr
    status = read_status(folder / "killed")
    assert status.state == "failed" and status.error.startswith("JobError: process 1 was killed")
    assert ended_after(folder / "killed") < 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "who", "line"),
    [
        ("raise", "all", "ValueError: a bad batch"),
        ("raise", "0", "ValueError: a bad batch"),
        ("nan", "0", "error: the loss is nan at step 6"),
        ("nan", "1", "error: process 1 failed: the loss is nan at step 6"),
        ("kill", "0", "error: process 0 was killed"),
        ("stuck", "all", "error: process 1 failed: ValueError: a bad batch"),
    ],
)
def test_each_failure_is_told_once(how: str, who: str, line: str, folder: Path) -> None:
    name = f"{how}-{who}"
    done = run(folder, name, HOW=how, WHO=who)
    assert done.returncode == 1
    assert [text for text in done.stderr.splitlines() if text.startswith(line)] and done.stderr.count(line) == 1
    assert read_status(folder / name).state == "failed"
    assert how == "kill" or ended_after(folder / name) < 20


OWN_LOOP = [
    "evaluator.training_func=stepping.loop",
    *("evaluator.clip_norm=null", "evaluator.accumulate=1"),
    *(f"stages.{stage}.{key}" for stage in ("train", "finetune") for key in ("max_epochs=null", "max_steps=6")),
]


@pytest.mark.slow
def test_a_loop_of_the_users_own_must_keep_the_processes_together(folder: Path) -> None:
    apart = run(folder, "apart", *OWN_LOOP, HOW="apart")
    assert apart.returncode == 1
    line = "error: the weights of layers.0.weight and 5 more differ between process 0 and process 1: the training kept"
    assert apart.stderr.count(line) == 1, apart.stderr
    wrapped = run(folder, "wrapped", *OWN_LOOP, HOW="wrapped")
    assert wrapped.returncode == 0, wrapped.stderr


def ended_after(path: Path) -> float:
    """Seconds that the run took to its end, as its status says."""
    status = json.loads((path / "status.json").read_text())
    return (datetime.fromisoformat(status["finished"]) - datetime.fromisoformat(status["started"])).total_seconds()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["stages.train.max_epoch=3"], "error: stages.train: unknown key 'max_epoch'"),
        (["runtime.device=mps"], "error: runtime.device: 'mps' is one device, and each of 2 processes needs its own"),
    ],
)
def test_wrong_input_is_told_once_and_nothing_is_written(arguments: list[str], line: str, folder: Path) -> None:
    done = run(folder, "wrong", *arguments)
    assert done.returncode == 1
    assert [text.startswith(line) for text in done.stderr.splitlines() if text.startswith("error: ")] == [True]
    assert not (folder / "wrong" / "status.json").exists()


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["-m"], "a sweep (-m) runs one point after the other"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, [], "RANK and WORLD_SIZE are set, and the other processes can't be found"),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, [], "torchrun --nproc-per-node 2 -m nnicompress run"),
    ],
)
def test_half_a_launch_is_refused(
    variables: dict[str, str],
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from nnicompress.cli import main

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "recipe=level_mlp", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_signals_are_the_main_processs_to_act_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnicompress import distributed
    from nnicompress.pipeline.stopping import Stop

    monkeypatch.setattr(distributed, "is_main", lambda: False)
    stop = Stop()
    stop(signal.SIGTERM, None)
    assert stop.requested is None
    with pytest.raises(SystemExit):
        stop(signal.SIGTERM, None)
