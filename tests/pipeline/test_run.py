"""Whole jobs on digits: every stage, what they leave, what happens when they fail."""

import dataclasses
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nnicompress.errors import JobError
from nnicompress.events import Event, StageFinished, StageStarted
from nnicompress.export.plain import load
from nnicompress.pipeline.run import run_job
from nnicompress.pipeline.run_dir import finished_report, read_status
from nnicompress.report.record import Report
from tests.pipeline.jobs import LEVEL, WHOLE_WAY, make_job


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report, list[Event]]:
    torch.set_num_threads(1)
    folder, events = tmp_path_factory.mktemp("runs") / "small", []
    report = run_job(make_job(folder, WHOLE_WAY, expected={"macs_ratio": {"max": 0.6}}), events.append)
    return folder, report, events


def test_the_run_leaves_everything_whole(whole: tuple[Path, Report, list[Event]]) -> None:
    folder, report, events = whole
    names = ["01_train", "02_prune", "03_shrink", "04_finetune", "05_export", "06_evaluate"]
    assert sorted(p.name for p in (folder / "stages").iterdir()) == names
    files = [".lock", "manifest.json", "model", "model.pt2", "report.html", "report.json", "stages", "status.json"]
    # Where the repository around the current directory has changes, they are kept too.
    assert sorted(p.name for p in folder.iterdir() if p.name != "code.diff") == files
    assert read_status(folder).state == "done"
    assert Report.load(folder) == report
    started = [e.name for e in events if isinstance(e, StageStarted)]
    assert started == list(WHOLE_WAY) == [e.name for e in events if isinstance(e, StageFinished)]


def test_the_phases_tell_what_became_smaller(whole: tuple[Path, Report, list[Event]]) -> None:
    folder, report, _ = whole
    baseline, pruned, shrunk, finetuned = report.phases
    assert [p.name for p in report.phases] == ["baseline", "pruned", "shrunk", "finetuned"]
    assert (pruned.parameters, pruned.macs, pruned.masked) == (baseline.parameters, baseline.macs, True)
    assert pruned.zeros > 0.3 * pruned.parameters
    assert shrunk.parameters == finetuned.parameters < 0.7 * baseline.parameters
    assert shrunk.macs == finetuned.macs < 0.7 * baseline.macs
    # The proof says that shrinking changes no output, so it can't change the accuracy.
    assert pruned.accuracy == shrunk.accuracy
    assert finetuned.bytes == (folder / "stages/04_finetune/model.safetensors").stat().st_size < baseline.bytes
    assert report.proof.batch_sizes == (2, 3) and report.proof.max_relative_difference < report.proof.tolerance
    for phase in report.phases:
        assert [latency.batch_size for latency in phase.latency] == [1, 64]
        assert phase.peak_memory > sum(p.numel() * 4 for p in make_job(folder, {}).build_model.build().parameters()) / 4


def test_the_layers_are_those_of_the_compact_model(whole: tuple[Path, Report, list[Event]]) -> None:
    folder, report, _ = whole
    model = load(folder)
    kept = {layer.name: layer.after for layer in report.layers}
    assert any(layer.after < layer.before for layer in report.layers)
    for name, after in kept.items():
        assert model.get_submodule(name).out_channels == after, name


def test_the_exported_files_give_the_measured_accuracy(whole: tuple[Path, Report, list[Event]]) -> None:
    folder, report, _ = whole
    (artifact,) = report.artifacts
    assert artifact.accuracy == report.final.accuracy and artifact.baseline_accuracy == report.baseline.accuracy
    data = make_job(folder, {}).data
    batches = list(data.test_loader())
    for model in (load(folder), torch.export.load(folder / "model.pt2").module()):
        with torch.no_grad():
            hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
        assert hits / sum(len(y) for _, y in batches) == pytest.approx(artifact.accuracy, abs=1e-6)


def test_the_curves_are_the_trainings(whole: tuple[Path, Report, list[Event]]) -> None:
    _, report, _ = whole
    assert [(c.stage, c.total_steps) for c in report.curves] == [("train", 30), ("finetune", 10)]
    assert all(math.isfinite(loss) for curve in report.curves for loss in curve.losses)


def test_the_manifest_says_where_it_comes_from(whole: tuple[Path, Report, list[Event]]) -> None:
    folder, report, _ = whole
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["seed"] == 0 and manifest["versions"]["torch"] == torch.__version__
    assert manifest["data"]["fingerprint"] == make_job(folder, {}).data.fingerprint()
    assert manifest["config"]["model"]["width"] == 8


def test_two_runs_give_identical_weights(whole: tuple[Path, Report, list[Event]], tmp_path: Path) -> None:
    folder, _, _ = whole
    torch.manual_seed(123)  # what the process did before must not matter
    stages = {name: WHOLE_WAY[name] for name in ("train", "prune", "shrink", "finetune")}
    run_job(make_job(tmp_path, stages))
    for stage in ("01_train", "03_shrink", "04_finetune"):
        ours = load_file(tmp_path / "stages" / stage / "model.safetensors")
        theirs = load_file(folder / "stages" / stage / "model.safetensors")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert (tmp_path / "model/model.safetensors").exists(), "a run without an export stage keeps its model too"
    assert Report.load(tmp_path).final.accuracy is None


def test_masks_hold_through_fine_tuning_and_bring_no_speed(tmp_path: Path) -> None:
    stages = {"train": {"max_steps": 3}, "prune": {}, "finetune": {"max_steps": 5}}
    report = run_job(make_job(tmp_path, stages, pruner=LEVEL))
    pruned, finetuned = report.phases[1:]
    assert report.masked_only and finetuned.label == "fine-tuned (masked)"
    before = load_file(tmp_path / "stages/02_prune/model.safetensors")
    after = load_file(tmp_path / "stages/03_finetune/model.safetensors")
    convs = [name for name, tensor in before.items() if tensor.dim() == 4]
    zeros = sum(int((before[name] == 0).sum()) for name in convs)
    assert zeros == pytest.approx(0.5 * sum(before[name].numel() for name in convs), rel=0.01)
    assert all(bool((after[name][before[name] == 0] == 0).all()) for name in convs)
    assert any(not torch.equal(before[name], after[name]) for name in convs)
    assert {layer.unit for layer in report.layers} == {"weights"}
    assert report.pruned.startswith("pruned 50.0% of the selected weights") and report.shortfall == ()


ZEROS_ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
from load import load
weights = load().state_dict().values()
assert "nnicompress" not in sys.modules
print(sum(int((weight == 0).sum()) for weight in weights if weight.dim() == 4))
"""


def test_what_is_deployed_of_a_masked_model_has_the_zeros_and_the_size_of_the_whole(tmp_path: Path) -> None:
    report = run_job(make_job(tmp_path, {"train": {"max_steps": 3}, "prune": {}}, pruner=LEVEL))
    pruned = load_file(tmp_path / "stages/02_prune/model.safetensors")
    zeros = sum(int((tensor == 0).sum()) for tensor in pruned.values() if tensor.dim() == 4)
    command = [sys.executable, "-I", "-c", ZEROS_ALONE, str(tmp_path / "model")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(found) == zeros > 1000
    assert report.final.bytes == report.baseline.bytes and report.final.parameters == report.baseline.parameters


def test_single_weights_cannot_be_shrunk(tmp_path: Path) -> None:
    stages = {"train": {"max_steps": 1}, "prune": {}, "shrink": {}}
    with pytest.raises(JobError, match="single weights were pruned"):
        run_job(make_job(tmp_path, stages, pruner=LEVEL))
    assert read_status(tmp_path).stage == "shrink"


def test_a_failing_stage_leaves_a_failed_run_without_a_report(tmp_path: Path) -> None:
    run_job(make_job(tmp_path, {"train": {"max_steps": 1}}))
    assert (tmp_path / "report.json").exists()
    calls = []

    def broken(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise ValueError("a fault in the user's loss")
        return nn.functional.cross_entropy(predictions, targets)

    with pytest.raises(ValueError, match="user's loss"):
        run_job(make_job(tmp_path, {"train": {"max_steps": 2}, "prune": {}}, loss=broken))
    status = read_status(tmp_path)
    assert (status.state, status.stage, status.error) == ("failed", "prune", "ValueError: a fault in the user's loss")
    assert [p.name for p in (tmp_path / "stages").iterdir()] == ["01_train"]
    assert not (tmp_path / "report.json").exists() and not (tmp_path / "model").exists()
    with pytest.raises(JobError, match="failed in stage 'prune': ValueError: a fault"):
        finished_report(tmp_path)


def test_start_from_a_checkpoint_is_the_same_as_having_trained(tmp_path: Path) -> None:
    run_job(make_job(tmp_path / "a", {"train": {"max_steps": 2}}))
    weights = tmp_path / "a/stages/01_train/model.safetensors"
    run_job(make_job(tmp_path / "b", {"start": {"checkpoint": str(weights)}}, seed=9))
    ours, theirs = load_file(tmp_path / "b/stages/01_start/model.safetensors"), load_file(weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_smoke_takes_every_stage_through_two_batches(tmp_path: Path) -> None:
    stages = {**WHOLE_WAY, "train": {"max_epochs": 50}, "finetune": {"max_epochs": 50}}
    report = run_job(make_job(tmp_path, stages, smoke=True))
    assert report.smoke and [c.total_steps for c in report.curves] == [2, 2]
    assert (tmp_path / "model.pt2").exists() and len(report.stages) == 6


@pytest.mark.slow
def test_onnx_is_measured_in_its_own_runtime(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    stages = {**WHOLE_WAY, "train": {"max_steps": 5}, "export": {"formats": ["onnx"]}}
    report = run_job(make_job(tmp_path, stages))
    (artifact,) = report.artifacts
    assert artifact.runtime == "onnxruntime" and artifact.bytes == (tmp_path / "model.onnx").stat().st_size
    assert artifact.bytes < artifact.baseline_bytes
    assert artifact.accuracy == pytest.approx(report.final.accuracy, abs=0.01)
    assert [latency.batch_size for latency in artifact.baseline_latency] == [1, 64]
    assert not list((tmp_path / "stages/06_evaluate").glob("baseline*"))


def test_batch_norm_is_recalibrated_where_asked(tmp_path: Path) -> None:
    stages = {"train": {"max_steps": 3}, "prune": {}, "shrink": {}}
    run_job(make_job(tmp_path / "a", stages))
    run_job(make_job(tmp_path / "b", {**stages, "shrink": {"recalibrate_batches": 2}}))
    plain = load_file(tmp_path / "a/stages/03_shrink/model.safetensors")
    again = load_file(tmp_path / "b/stages/03_shrink/model.safetensors")
    statistics = [name for name in plain if name.endswith("running_mean")]
    assert all(not torch.equal(plain[name], again[name]) for name in statistics)
    assert all(torch.equal(plain[name], again[name]) for name in plain if name.endswith("weight"))


def test_the_callers_job_is_left_alone(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"train": {"max_steps": 1}})
    before = dataclasses.replace(job)
    run_job(job)
    assert job == before


TERMINATED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.pipeline.jobs import make_job
from nnicompress.pipeline.run import run_job
run_job(make_job(Path(sys.argv[1]), {"train": {"max_steps": 100000}}), lambda event: print(event, flush=True))
"""


@pytest.mark.slow
def test_a_terminated_run_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TERMINATED, str(tmp_path), str(Path(__file__).parents[2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert any("StepDone" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(60) == 128 + signal.SIGTERM
    status = read_status(tmp_path)
    assert (status.state, status.stage, status.error) == ("interrupted", "train", "terminated")
    left = [path.name for path in (tmp_path / "stages").rglob("*")]
    assert left == [".01_train.partial", "progress.pt"], "a later run goes on from there"
