"""Stages are reused while nothing that they depend on has changed, and only then."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nnicompress
from nnicompress.errors import JobError
from nnicompress.events import Event, Note, StageStarted
from nnicompress.export.plain import load
from nnicompress.pipeline.job import Job
from nnicompress.pipeline.run import run_job
from nnicompress.pipeline.run_dir import read_status
from nnicompress.pruning.storage import load_pruning
from nnicompress.report.record import Report
from tests.pipeline.jobs import WHOLE_WAY, make_job

STAGES = {**WHOLE_WAY, "train": {"max_steps": 12}, "finetune": {"max_steps": 4}}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "first"
    return folder, run_job(make_job(folder, STAGES))


@pytest.fixture
def again(first: tuple[Path, Report], tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(first[0], tmp_path / "run"))


def run(job: Job, **options: Any) -> tuple[Report, list[str], list[str]]:
    """The report, the stages that ran, and the notes."""
    events: list[Event] = []
    report = run_job(job, events.append, **options)
    notes = [event.text for event in events if isinstance(event, Note)]
    return report, [event.name for event in events if isinstance(event, StageStarted)], notes


def test_an_unchanged_run_reuses_every_stage_and_reports_the_same(first: tuple[Path, Report], again: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in again.glob("stages/*/*")}
    report, ran, notes = run(make_job(again, STAGES))
    assert ran == [] and notes == [f"{name}: reused, nothing that it depends on has changed" for name in STAGES]
    assert all(stage.reused for stage in report.stages)
    assert report.phases == first[1].phases and report.artifacts == first[1].artifacts
    assert (report.curves, report.layers, report.proof) == (first[1].curves, first[1].layers, first[1].proof)
    assert {file: file.stat().st_mtime_ns for file in again.glob("stages/*/*")} == before
    assert read_status(again).state == "done" and load(again) is not None


def config(job: Job, **changes: Any) -> Job:
    return dataclasses.replace(job, resolved_config={**job.resolved_config, **changes})


@pytest.mark.parametrize(
    ("change", "first_to_run", "reason"),
    [
        (lambda job: dataclasses.replace(job, seed=1), "train", "seed was 0, is 1"),
        (lambda job: config(job, optimizer={"lr": 0.1}), "train", "optimizer.lr was absent, is 0.1"),
        (lambda job: config(job, compressor={"kind": "x"}), "prune", "compressor.kind was absent, is x"),
        (lambda job: config(job, stages={"finetune": {"max_steps": 5}}), "finetune", "max_steps was 4, is 5"),
        (lambda job: config(job, expected={"accuracy": {"min": 0.1}}), None, ""),
    ],
)
def test_a_change_runs_the_stages_that_read_it_and_says_why(
    again: Path, change: Callable[[Job], Job], first_to_run: str | None, reason: str
) -> None:
    _, ran, notes = run(change(make_job(again, STAGES)), explain=True)
    names = list(STAGES)
    assert ran[:1] == ([] if first_to_run is None else [first_to_run])
    if first_to_run is not None:
        assert set(names[: names.index(first_to_run)]).isdisjoint(ran)
        assert any(note.startswith(f"{first_to_run}: runs, because") and reason in note for note in notes), notes


def test_fresh_reuses_nothing_and_gives_the_same_weights(first: tuple[Path, Report], again: Path) -> None:
    _, ran, _ = run(make_job(again, STAGES), fresh=True)
    assert ran == list(STAGES)
    for stage in ("01_train", "04_finetune"):
        ours, theirs = (load_file(run / "stages" / stage / "model.safetensors") for run in (first[0], again))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_later_stages_continue_from_reused_ones_to_the_same_bits(first: tuple[Path, Report], again: Path) -> None:
    import shutil

    for name in ("03_shrink", "04_finetune", "05_export", "06_evaluate"):
        shutil.rmtree(again / "stages" / name)
    report, ran, _ = run(make_job(again, STAGES))
    assert ran == ["shrink", "finetune", "export", "evaluate"]
    ours, theirs = (load_file(run / "stages/04_finetune/model.safetensors") for run in (first[0], again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert report.final.accuracy == first[1].final.accuracy and report.layers == first[1].layers


def test_a_shorter_recipe_leaves_no_file_of_the_longer_one(again: Path) -> None:
    short = {name: STAGES[name] for name in ("train", "prune", "shrink")}
    _, ran, _ = run(make_job(again, short))
    assert ran == [] and sorted(p.name for p in (again / "stages").iterdir()) == ["01_train", "02_prune", "03_shrink"]
    assert not (again / "model.pt2").exists() and (again / "model").is_dir()
    assert sum(p.numel() for p in load(again).parameters()) == Report.load(again).final.parameters


def test_a_damaged_stage_is_refused_in_one_line_and_nothing_is_lost(again: Path) -> None:
    weights = again / "stages/04_finetune/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(JobError, match=r"04_finetune/model.safetensors is damaged.*--fresh") as caught:
        run(make_job(again, STAGES))
    assert "\n" not in str(caught.value)
    assert len(list((again / "stages").iterdir())) == 6 and weights.read_bytes() == content
    assert read_status(again).state == "failed"


def test_a_missing_export_is_made_again(again: Path) -> None:
    (again / "model.pt2").unlink()
    _, ran, notes = run(make_job(again, STAGES), explain=True)
    assert "export: runs, because model.pt2 is gone" in notes and (again / "model.pt2").exists()
    assert ran[0] == "export" and "train" not in ran


def test_what_was_pruned_survives_the_disk(first: tuple[Path, Report]) -> None:
    found = load_pruning(first[0] / "stages/02_prune")
    assert {row.name: row.kept for row in found.rows} == {
        layer.name: layer.after for layer in first[1].layers if layer.asked is not None
    }
    assert found.groups is not None and found.removal.keys() <= {width.name for width in found.groups.widths}
    weights = load_file(first[0] / "stages/02_prune/model.safetensors")
    for name, keep in found.masks.keep.items():
        assert bool((weights[name][~keep] == 0).all()), name


MODULE = """
from torch import nn
import widths

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, widths.HIDDEN), nn.ReLU(), nn.Linear(widths.HIDDEN, 10))
"""
RECIPE = """
model: {_target_: own_net.Net}
stages: {train: {max_steps: 2}}
"""


def test_a_change_of_the_users_code_runs_the_stage_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_net.py").write_text(MODULE)
    (tmp_path / "widths.py").write_text("HIDDEN = 8\n")
    (tmp_path / "own.yaml").write_text(RECIPE)
    recipe = ["run_dir=run"]
    first = nnicompress.run("own.yaml", recipe)
    assert [stage.reused for stage in nnicompress.run("own.yaml", recipe).stages] == [True]
    (tmp_path / "widths.py").write_text("HIDDEN = 16  # a module that the model's own imports\n")
    for name in ("widths", "own_net"):
        del sys.modules[name]
    importlib.invalidate_caches()
    third = nnicompress.run("own.yaml", recipe)
    assert [stage.reused for stage in third.stages] == [False]
    assert third.baseline.parameters > first.baseline.parameters
    code = json.loads((tmp_path / "run/stages/01_train/record.json").read_text())["parts"]["code"]
    assert code.keys() == {"own_net", "widths"}
    for name in ("widths", "own_net"):
        del sys.modules[name]
