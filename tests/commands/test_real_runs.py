"""Whole runs of a tiny recipe: in Python, on the command line, shown again, reproduced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from transformers import BertForSequenceClassification

import nnicompress
from nnicompress.cli import main
from nnicompress.config.compose import compose
from nnicompress.errors import InputErrors, TrustError, UserError
from nnicompress.events import Event, Note, StageFinished, StageStarted, StepDone

REPOSITORY = Path(nnicompress.__file__).resolve().parents[1]


GRADUAL = [f"compressor.schedule.{word}" for word in ("name=agp", "total_times=3", "interval_steps=4")]
OWN_RATE = "+stages.prune.optimizer.lr=0.003"


def rates_of(recipe: str, *overrides: str) -> tuple[dict[str, list[float | None]], list[str]]:
    """The learning rate of each step of each stage, and the warnings of the run."""
    heard: list[Event] = []
    nnicompress.run(recipe, [*overrides], listener=heard.append)
    stage, rates = "", dict[str, list[float | None]]()
    for event in heard:
        if isinstance(event, StageStarted):
            stage = event.name
        elif isinstance(event, StepDone):
            rates.setdefault(stage, []).append(event.learning_rate)
    return rates, [event.text for event in heard if isinstance(event, Note) and event.warning]


def test_a_prune_stage_trains_at_its_own_rate_and_the_others_at_the_recipes(tiny: str) -> None:
    rates, _ = rates_of(tiny, *GRADUAL, OWN_RATE, "+stages.prune.scheduler=null", "scheduler=constant")
    assert rates == {"train": [0.1] * 2, "prune": [0.003] * 8}  # two intervals of 4 steps between three removals


def test_the_schedulers_of_a_prune_stage_follow_its_own_rate(tiny: str) -> None:
    rates, _ = rates_of(tiny, *GRADUAL, OWN_RATE)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.003)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, total_steps=4, pct_start=0.3)
    cycle = []
    for _ in range(4):
        cycle.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates["prune"] == cycle * 2  # each interval is a training of its own


def test_an_optimizer_of_a_prune_stage_that_trains_nothing_is_told(tiny: str) -> None:
    _, warnings = rates_of(tiny, "+stages.prune.scheduler=null", OWN_RATE)
    assert warnings == [
        "stages.prune.optimizer changes nothing: level importance with a one_shot schedule trains nothing"
    ]
    _, warnings = rates_of(tiny, *GRADUAL, OWN_RATE)
    assert warnings == []


def test_run_in_python_returns_the_report_of_the_run_and_can_be_called_again(tiny: str) -> None:
    heard: list[Event] = []
    first = nnicompress.run(tiny, listener=heard.append)
    assert first.name == "tiny"
    assert first.run_dir == compose(["recipe=tiny"]).run_dir
    assert [event.name for event in heard if isinstance(event, StageFinished)] == ["train", "prune", "evaluate"]
    second = nnicompress.run(Path("recipes/tiny.yaml"), ["seed=1"])
    assert second.run_dir != first.run_dir
    assert (first.seed, second.seed) == (0, 1)
    assert not GlobalHydra.instance().is_initialized()


def test_run_works_inside_another_hydra_application(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text("value: 3\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        nnicompress.run(tiny, smoke=True)
        assert hydra.compose("app").value == 3


def test_a_smoke_run_leaves_the_result_alone(tiny: str) -> None:
    report = nnicompress.run(tiny)
    before = Path(report.run_dir, "report.json").read_bytes()
    smoke = nnicompress.run(tiny, smoke=True)
    assert smoke.smoke and smoke.run_dir == f"{report.run_dir}-smoke"
    assert Path(report.run_dir, "report.json").read_bytes() == before


def test_run_again_reuses_explains_and_starts_over_as_asked(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    def words(*options: str) -> list[str]:
        assert main(["run", tiny, "run_dir=run", *options]) == 0
        return [line.strip() for line in capsys.readouterr().err.splitlines() if "loss" not in line]

    first = words("--explain")
    assert "train: runs, because it has not run before" in first and "[1/3] train" in first
    again = words()
    assert again == [f"{n}: reused, nothing that it depends on has changed" for n in ("train", "prune", "evaluate")]
    changed = words("--explain", "compressor.targets.weights.sparse_ratio=0.25")
    assert changed[0] == "train: reused, nothing that it depends on has changed"
    assert changed[1] == "prune: runs, because compressor.targets.weights.sparse_ratio was 0.5, is 0.25"
    assert words("--fresh")[0] == "[1/3] train"


def test_wrong_input_raises_before_anything_is_written(tiny: str) -> None:
    with pytest.raises(UserError, match="no folder 'nowhere'"):
        nnicompress.run(tiny, config_dir="nowhere")
    with pytest.raises(InputErrors, match="unknown key 'sed'"):
        nnicompress.run(tiny, ["sed=1", "optimizer.lrr=2"])
    assert not Path("runs").exists()


def test_trust_opens_a_package_for_one_run_alone(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    site = tmp_path_factory.mktemp("site")
    (site / "their_models.py").write_text(
        "from torch import nn\n\ndef net(**settings):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    sys.path.insert(0, str(site))
    own = ["model={_target_: their_models.net}", "stages.train.max_steps=1"]
    try:
        with pytest.raises((TrustError, InputErrors), match="--trust their_models"):
            nnicompress.run(tiny, own)
        assert nnicompress.run(tiny, own, trust=["their_models"]).baseline.parameters > 0
        with pytest.raises((TrustError, InputErrors), match="--trust their_models"):
            nnicompress.run(tiny, own)
    finally:
        sys.path.remove(str(site))


def test_run_prints_the_report_and_show_prints_it_again(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", tiny]) == 0
    printed = capsys.readouterr().out
    (run,) = Path("runs").iterdir()
    assert main(["show", str(run)]) == 0
    assert capsys.readouterr().out == printed
    assert "masks" in printed
    assert main(["show", str(run / "report.json")]) == 0


def test_show_tells_runs_without_a_report_apart(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", tiny]) == 0
    (run,) = Path("runs").iterdir()
    capsys.readouterr()
    Path("empty").mkdir()
    status = json.loads((run / "status.json").read_text())
    failed = Path("runs/failed")
    failed.mkdir()
    (failed / "status.json").write_text(json.dumps({**status, "state": "failed", "stage": "prune", "error": "boom"}))
    for arguments, code, line in [
        ([], 2, f"error: show takes one run, as in 'nnicompress show {run}'"),
        ([str(run)[:-1]], 2, f"error: no run '{str(run)[:-1]}'; did you mean '{run}'?"),
        (["empty"], 2, "error: empty"),
        (["runs/failed"], 1, "error: runs/failed: the run is failed in stage 'prune': boom"),
    ]:
        assert main(["show", *arguments]) == code
        printed = capsys.readouterr().err
        assert printed.startswith(line) and printed.count("\n") == 1


def test_reproduce_compares_with_the_expected_numbers(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", tiny]) == 2
    assert capsys.readouterr().err.startswith("error: expected: the recipe states no numbers to reproduce")
    assert not Path("runs").exists()
    assert main(["reproduce", tiny, "+expected.macs_ratio={max: 1.0}"]) == 0
    assert main(["reproduce", tiny, "+expected.macs_ratio={max: 0.5}", "+expected.accuracy={min: 0.0}"]) == 3
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == (
        "error: tiny misses its expected numbers: macs_ratio is 1, expected at most 0.5"
    )
    assert "macs_ratio" in printed.out


def test_the_exit_code_of_a_process_is_the_error_s(tiny: str) -> None:
    command = [sys.executable, "-m", "nnicompress", "run", tiny, "sed=1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: unknown key 'sed'; did you mean 'seed'? (command line)\n")


def test_only_what_the_recipe_names_is_imported(tiny: str) -> None:
    optional = ("pytorch_lightning", "timm", "torchvision", "onnx", "onnxruntime", "torch_pruning", "IPython")
    script = (
        "import sys; from nnicompress.cli import main; code = main(['run', 'tiny', '--smoke']); "
        f"print(code, *[name for name in {optional} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0", done.stderr


ALONE = """
import sys
import torch
from transformers import GPT2LMHeadModel
model, example = GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval(), torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    difference = (model(example["input_ids"]).logits - example["logits"]).abs().max()
assert "nnicompress" not in sys.modules
print(model.config.n_head, model.config.n_embd, model.config.n_inner, float(difference))
"""


def test_what_a_recipe_shrinks_evenly_is_a_model_of_transformers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = nnicompress.run(
        "taylorfo_gpt2_text",
        ["model.config.n_layer=1", "data.batch_size=4", "data.block_size=16", "~stages.export", "~stages.evaluate"],
        smoke=True,
    )
    (shrink,) = Path(report.run_dir).glob("stages/*_shrink/record.json")
    facts = json.loads(shrink.read_text())["facts"]
    assert (facts["config"], facts["config_reason"]) == ({"n_head": 3, "n_embd": 48, "n_inner": 80}, "")
    compact = nnicompress.load(report.run_dir).model
    compact.save_pretrained("gpt2")
    tokens = torch.randint(512, (2, 9))
    with torch.no_grad():
        torch.save({"input_ids": tokens, "logits": compact(tokens).logits}, "example.pt")
    done = subprocess.run([sys.executable, "-c", ALONE, "gpt2", "example.pt"], capture_output=True, text=True)
    assert done.stdout.split()[:3] == ["3", "48", "80"], done.stderr
    assert float(done.stdout.split()[3]) < 1e-5


@pytest.mark.slow
def test_minilm_is_pruned_on_a_table_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretrained model comes from an installed package, the sentences from a CSV; two batches of everything."""
    monkeypatch.chdir(tmp_path)
    rows = [
        f"a {word} film number {number},{label}" for number in range(24) for label, word in enumerate(["dull", "fine"])
    ]
    Path("reviews.csv").write_text("\n".join(["sentence,label", *rows]) + "\n")
    report = nnicompress.run(
        "taylorfo_bert_glue",
        ["data.source.train=reviews.csv", "data.num_classes=2", "data.batch_size=4", "data.max_length=16"],
        smoke=True,
    )
    assert report.baseline.parameters == pytest.approx(22.7e6, rel=0.01)
    layers = {layer.name: layer for layer in report.layers if "intermediate" in layer.name}
    assert len(layers) == 6 and {layer.after for layer in layers.values()} == {1536 // 2}
    heads = [layer for layer in report.layers if layer.unit == "heads"]
    assert len(heads) == 6 and {(layer.before, layer.after) for layer in heads} == {(12, 9)}
    assert report.proof is not None and report.proof.max_relative_difference < 1e-9
    model = nnicompress.load(report.run_dir)
    assert sum(p.numel() for p in model.parameters()) == report.final.parameters
    model.model.save_pretrained("pruned")
    again = BertForSequenceClassification.from_pretrained("pruned")
    assert (again.config.hidden_size, again.config.num_attention_heads) == (288, 9)
    assert (Path(report.run_dir) / "model" / "tokenizer" / "tokenizer.json").is_file()
