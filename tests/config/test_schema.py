"""Every key and type of a recipe is checked, and all that is wrong is said at once, in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnicompress.config.compose import compose_with_origin
from nnicompress.config.resolve import resolve
from nnicompress.config.schema import RecipeSettings, validate
from nnicompress.errors import InputErrors
from nnicompress.evaluators.settings import LightningSettings
from nnicompress.pipeline.settings import ExportSettings, FinetuneSettings, QuantizeSettings

BASE = "recipe=taylorfo_resnet"


def settings_of(*overrides: str, config_dir: Path | None = None) -> RecipeSettings:
    composed = compose_with_origin([*overrides], config_dir=config_dir)
    return validate(resolve(composed.config, composed.origin.source_of), composed.origin.source_of)


def lines_of(*overrides: str, config_dir: Path | None = None) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        settings_of(*overrides, config_dir=config_dir)
    return [str(error) for error in caught.value.errors]


def recipe(folder: Path, text: str) -> str:
    file = folder / "mine.yaml"
    file.write_text(text)
    return f"recipe={file}"


def test_a_shipped_recipe_becomes_typed_settings_in_its_order() -> None:
    settings = settings_of(BASE)
    assert [stage.name for stage in settings.stages] == ["train", "prune", "shrink", "finetune", "export", "evaluate"]
    assert settings.head.name == "taylorfo_resnet"
    assert settings.model == {
        "_target_": "nnicompress.models.resnet.resnet20",
        "num_classes": 10,
        "in_channels": 1,
        "width": 16,
    }
    prune = settings.stages[1]
    assert prune.compressor is not None
    assert prune.compressor_key == "compressor"
    assert prune.compressor.targets["convs"].sparse_ratio == 0.4


def test_a_stage_changes_the_optimizer_and_the_scheduler_follows() -> None:
    stages = {stage.name: stage for stage in settings_of(BASE).stages}
    assert (stages["train"].optimizer["lr"], stages["train"].scheduler["max_lr"]) == (0.1, 0.1)
    assert (stages["finetune"].optimizer["lr"], stages["finetune"].scheduler["max_lr"]) == (0.005, 0.005)
    assert stages["finetune"].optimizer["momentum"] == 0.9
    assert isinstance(stages["finetune"].settings, FinetuneSettings)


def test_a_stage_may_take_another_optimizer_or_no_scheduler(tmp_path: Path) -> None:
    text = (
        "stages:\n  train: {max_epochs: 1}\n"
        "  finetune: {max_steps: 3, optimizer: {_target_: torch.optim.Adam, lr: 0.003}, scheduler: null}\n"
    )
    train, finetune = settings_of(recipe(tmp_path, text)).stages
    assert finetune.optimizer == {"_target_": "torch.optim.Adam", "lr": 0.003}
    assert finetune.scheduler is None
    assert train.scheduler is not None


def test_a_prune_stage_changes_its_optimizer_and_is_not_told_how_long(tmp_path: Path) -> None:
    own = "+stages.prune.optimizer.lr=0.02"
    stages = {stage.name: stage for stage in settings_of(BASE, own).stages}
    assert (stages["prune"].optimizer["lr"], stages["prune"].scheduler["max_lr"]) == (0.02, 0.02)
    assert stages["train"].optimizer["lr"] == 0.1
    (line,) = lines_of(BASE, own, "+stages.prune.max_epochs=2")
    assert line.startswith("stages.prune: unknown key 'max_epochs'; keys: optimizer, scheduler, compressor")


def test_the_export_group_is_the_default_of_the_export_stage() -> None:
    def formats(*overrides: str) -> tuple[str, ...]:
        export = next(stage.settings for stage in settings_of(BASE, *overrides).stages if stage.name == "export")
        assert isinstance(export, ExportSettings)
        return export.formats

    assert formats() == ("pt2",)
    assert formats("export=all") == ("pt2", "onnx")
    assert formats("export=all", "+stages.export.formats=[onnx]") == ("onnx",)


def test_null_drops_a_target_of_a_preset_and_an_empty_stage_has_no_settings(tmp_path: Path) -> None:
    text = (
        "defaults:\n  - override /compressor: l1\n"
        "compressor:\n  targets:\n    convs: null\n    linears: {op_types: [Linear], sparse_ratio: 0.1}\n"
        "stages:\n  train: {max_epochs: 1}\n  prune:\n  shrink:\n"
    )
    _, prune, shrink = settings_of(recipe(tmp_path, text)).stages
    assert prune.compressor is not None
    assert list(prune.compressor.targets) == ["linears"]
    assert shrink.name == "shrink"


def test_a_stage_may_have_a_compressor_of_its_own(tmp_path: Path) -> None:
    text = (
        "stages:\n  train: {max_epochs: 1}\n"
        "  prune: {compressor: {importance: random, targets: {convs: {op_types: [Conv2d], sparse_ratio: 0.25}}}}\n"
    )
    stages = {stage.name: stage for stage in settings_of(recipe(tmp_path, text)).stages}
    assert stages["prune"].compressor is not None
    assert stages["prune"].compressor_key == "stages.prune.compressor"
    assert stages["prune"].compressor.importance.name == "random"
    assert stages["prune"].compressor.targets["convs"].sparse_ratio == 0.25


def test_a_compressor_that_no_stage_uses_is_an_error(tmp_path: Path) -> None:
    text = "defaults:\n  - override /compressor: l1\nstages:\n  train: {max_epochs: 1}\n"
    own = "  prune: {compressor: {targets: {convs: {op_types: [Conv2d], sparse_ratio: 0.25}}}}\n"
    assert lines_of(recipe(tmp_path, text))[0].startswith("compressor: no stage uses it: add prune: {}")
    (line,) = lines_of(recipe(tmp_path, text + own))
    assert line.startswith("compressor: no stage uses it: stages.prune.compressor is used in its place")


WRONG = {
    "compressor.targets.convs.sparse_ratio=7.5": (
        "compressor.targets.convs.sparse_ratio: 7.5 is outside [0, 1) (command line)"
    ),
    "compressor.targets.convs.sparse_ratio=half": (
        "compressor.targets.convs.sparse_ratio: 'half' is not a number (command line)"
    ),
    "+compressor.targets.convs.sparse_ration=0.4": (
        "compressor.targets.convs: unknown key 'sparse_ration'; did you mean 'sparse_ratio'"
    ),
    "+sed=1": "unknown key 'sed'; did you mean 'seed'? (command line)",
    "seed=-1": "seed: -1 is less than 0 (command line)",
    "seed=1.5": "seed: 1.5 is not a whole number (command line)",
    "stages.train.max_epochs=twelve": "stages.train.max_epochs: 'twelve' is not a whole number (command line)",
    "stages.train.max_epochs=0": "stages.train.max_epochs: 0 is not greater than 0 (command line)",
    "+stages.train.max_steps=5": (
        "stages.train: exactly one of max_epochs and max_steps says how long to train; both are given "
        "(recipes/taylorfo_resnet.yaml:12)"
    ),
    "stages.train.max_epochs=null": (
        "stages.train: exactly one of max_epochs and max_steps says how long to train; neither is given "
        "(recipes/taylorfo_resnet.yaml:12)"
    ),
    "+stages.prun={}": "stages.prun: no stage named 'prun'; did you mean 'prune'? (command line)",
    "~stages.prune": "stages.shrink: 'shrink' needs 'prune' before it (recipes/taylorfo_resnet.yaml:14)",
    "~stages.train": "stages.prune: 'prune' needs 'train' or 'start' before it (recipes/taylorfo_resnet.yaml:13)",
    "stages.shrink=often": "stages.shrink: 'often' is not a mapping of settings; write {} for a stage without any",
    "stages=5": "stages: the stages are a mapping: {train: {max_epochs: 12}, prune: {}, ...} (command line)",
    "runtime.device=gpu": "runtime.device: 'gpu' is not auto, cpu, mps or cuda[:N] (command line)",
    "runtime.threads=0": "runtime.threads: 0 is not greater than 0 (command line)",
    "runtime.deterministic=maybe": "runtime.deterministic: 'maybe' is not true or false (command line)",
    "runtime.precision=bfloat61": (
        "runtime.precision: 'bfloat61' is not 'float32' or 'bfloat16'; did you mean 'bfloat16'? (command line)"
    ),
    "evaluator.mode=maxi": "evaluator.mode: 'maxi' is not 'min' or 'max'; did you mean 'max'? (command line)",
    "+evaluator.acumulate=4": "evaluator: unknown key 'acumulate'; did you mean 'accumulate'? (command line)",
    "export.formats=pt2": "export.formats: 'pt2' is not a list; write [pt2] (command line)",
    "export.formats=[pt3]": "export.formats.0: 'pt3' is not 'pt2' or 'onnx'; did you mean 'pt2'? (command line)",
    "expected.accuracy=0.9": (
        "expected.accuracy: 0.9 is not a mapping of settings; its keys are min, max (command line)"
    ),
    "+expected.accurcy={min: 0.9}": "expected: unknown key 'accurcy'; did you mean 'accuracy'",
    "+expected.macs_ratio={min: 0.9}": "expected.macs_ratio: min 0.9 is above max 0.62",
    "compressor.importance.name=tailor": "compressor.importance: no importance named 'tailor'; did you mean 'taylor'",
    "compressor.allocation.round_to=half": (
        "compressor.allocation.round_to: 'half' is not a whole number, and is not 'auto' (command line)"
    ),
    "compressor.kind=prunner": (
        "compressor.kind: no compressor of kind 'prunner'; did you mean 'pruner'? (command line)"
    ),
    "~compressor": (
        "stages.prune: prune needs a compressor: add compressor=NAME (ls compressor lists them) "
        "(recipes/taylorfo_resnet.yaml:13)"
    ),
    "data=cifar10": "data.root: a value is required; pass data.root=VALUE (conf/data/cifar10.yaml:3)",
    "model.width=${data.wdith}": (
        "model.width: '${data.wdith}' can't be resolved: Interpolation key 'data.wdith' not found (command line)"
    ),
    "~model._target_": "model._target_: a class or function is required: model: {_target_: module.Name, ...}",
    "~model": "model: null is not a mapping with a _target_; choose an option of the group 'model'",
    "run_dir=5": "run_dir: 5 is not text (command line)",
}


@pytest.mark.parametrize("override", WRONG)
def test_one_mistake_is_one_line_that_names_key_reason_and_source(override: str) -> None:
    (line,) = lines_of(BASE, override)
    assert line.startswith(WRONG[override])


def test_all_mistakes_are_shown_at_once() -> None:
    wrong = ["seed=-1", "+sed=1", "runtime.device=gpu", "compressor.targets.convs.sparse_ratio=7.5", "data=cifar10"]
    assert sorted(lines_of(BASE, *wrong)) == sorted(line for override in wrong for line in [WRONG[override]])


def test_a_wrong_key_of_a_file_is_shown_with_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "stages:\n  train: {max_epochs: 1}\n  evaluate:\n    warmpu: 3\nruntime:\n  threads: many\nsede: 1\n"
    assert sorted(lines_of(recipe(tmp_path, text))) == [
        "runtime.threads: 'many' is not a whole number (mine.yaml:6)",
        "stages.evaluate: unknown key 'warmpu'; did you mean 'warmup'? (mine.yaml:4)",
        "unknown key 'sede'; did you mean 'seed' or 'scheduler'? (mine.yaml:7)",
    ]


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ("{}", "stages: a recipe needs at least one stage"),
        ("{train: {max_epochs: 1}, shrink: {}}", "stages.shrink: 'shrink' needs 'prune' before it"),
        ("{finetune: {max_epochs: 1}}", "stages.finetune: 'finetune' needs 'train' or 'start' before it"),
        ("{prune: {}, train: {max_epochs: 1}}", "stages.prune: 'prune' needs 'train' or 'start' before it"),
        ("{start: {}}", "stages.start.checkpoint: a value is required; pass stages.start.checkpoint=VALUE"),
        ("{train: {max_epochs: 1}, evaluate: {}, export: {}}", "stages.export: 'export' must come before 'evaluate'"),
    ],
)
def test_stages_in_an_impossible_order(stages: str, line: str, tmp_path: Path) -> None:
    lines = lines_of(recipe(tmp_path, f"defaults:\n  - override /compressor: l1\nstages: {stages}\n"))
    assert lines[0].startswith(line)


def test_an_engine_of_another_kind_has_settings_of_its_own_and_no_optimizer() -> None:
    settings = settings_of(BASE, "evaluator=lightning", "evaluator.metric=val_acc", "evaluator.mode=min")
    assert isinstance(settings.evaluator, LightningSettings)
    assert (settings.evaluator.metric, settings.evaluator.mode) == ("val_acc", "min")
    # A recipe's own choice of an optimizer stands; only the default gives way to the engine's.
    assert settings.stages[0].optimizer is not None


def test_without_a_choice_a_trainer_keeps_its_own_optimizer(tmp_path: Path) -> None:
    text = (
        "# A recipe of a Trainer\ndefaults:\n  - override /evaluator: transformers\nstages:\n  train: {max_epochs: 1}\n"
    )
    stage = settings_of(recipe(tmp_path, text)).stages[0]
    assert (stage.optimizer, stage.scheduler) == (None, None)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["evaluator.name=lightening"], "evaluator.name: no engine 'lightening'; did you mean 'lightning'?"),
        (["evaluator.name=jax"], "evaluator.name: no engine 'jax'; engines: torch, lightning, transformers"),
        (["~optimizer"], "optimizer: null is not a mapping with a _target_"),
        (
            ["evaluator=lightning", "~optimizer"],
            "scheduler: it sets the rate of a recipe's optimizer, and there is",
        ),
        (["evaluator=lightning", "evaluator.trainer=null"], "evaluator.trainer: "),
        (["evaluator=lightning", "+evaluator.loss.x=1"], "evaluator: unknown key 'loss'"),
        (["evaluator=transformers", "evaluator.args._target_=null"], "evaluator: args needs a _target_"),
        (["evaluator=transformers", "evaluator.mode=best"], "evaluator.mode: "),
    ],
)
def test_a_wrong_engine_is_told_in_one_line(overrides: list[str], line: str) -> None:
    found = lines_of(BASE, *overrides)
    assert any(one.startswith(line) for one in found), found


QUANTIZED = """\
defaults:
  - override /model: mlp
  - override /compressor: {quantizer}
stages:
  train: {{max_steps: 10}}
  quantize: {{max_steps: 5, max_accuracy_drop: {drop}}}
  evaluate: {{}}
"""


@pytest.mark.parametrize(
    ("quantizer", "drop", "line"),
    [
        ("qat", "-0.1", "stages.quantize.max_accuracy_drop: "),
        ("qat", ".nan", "stages.quantize.max_accuracy_drop: "),
        ("qat", "one", "stages.quantize.max_accuracy_drop: "),
        (
            "dorefa",
            "0.01",
            "stages.quantize.max_accuracy_drop: dorefa changes the weights themselves, so no layer can return to "
            "float; methods that leave them: observed, lsq, lsq_plus",
        ),
    ],
)
def test_a_bound_on_quantization_that_makes_no_sense(tmp_path: Path, quantizer: str, drop: str, line: str) -> None:
    (told,) = lines_of(recipe(tmp_path, QUANTIZED.format(quantizer=quantizer, drop=drop)))
    assert line in told


def test_a_bound_on_quantization_is_a_setting_of_the_stage(tmp_path: Path) -> None:
    stage = settings_of(recipe(tmp_path, QUANTIZED.format(quantizer="qat", drop=0.01))).stages[1]
    assert isinstance(stage.settings, QuantizeSettings) and stage.settings.max_accuracy_drop == 0.01
