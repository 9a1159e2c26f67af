"""`check` finds whatever is wrong with a recipe without training it, and says what a right one will do."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nnicompress.checks.outcome import CheckReport
from nnicompress.checks.recipe import check, check_recipe
from nnicompress.commands.display import print_check
from nnicompress.config.compose import compose_with_origin
from nnicompress.errors import InputErrors
from nnicompress.models.resnet import resnet20

BASE = "recipe=taylorfo_resnet"
SMALL = ("model.width=4",)


def checked(*overrides: str) -> CheckReport:
    composed = compose_with_origin([*overrides])
    return check(composed.config, composed.origin)


def lines_of(*overrides: str) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        checked(*overrides)
    return [str(error) for error in caught.value.errors]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_right_recipe_is_described() -> None:
    report = checked(BASE)
    model = resnet20(10, 1)
    assert report.recipe == "taylorfo_resnet"
    assert (report.model, report.num_parameters) == ("ResNet", sum(p.numel() for p in model.parameters()))
    assert report.data == "Digits"
    assert [stage.name for stage in report.stages] == ["train", "prune", "shrink", "finetune", "export", "evaluate"]
    assert [capability for capability, _ in report.stages[1].needs] == ["example_inputs", "iterate"]
    (match,) = report.targets
    assert (match.key, match.what) == ("compressor.targets.convs", "output_channel, sparse_ratio 0.4")
    assert match.modules == tuple(n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d))


def test_a_check_writes_nothing_and_draws_nothing(here: Path) -> None:
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    checked(BASE, *SMALL)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert list(here.iterdir()) == []


WRONG = {
    "compressor.targets.convs.op_types=[Conv2D]": (
        "compressor.targets.convs.op_types: no module of type 'Conv2D' in ResNet; did you mean 'Conv2d'"
    ),
    "compressor.targets.convs.op_types=Conv3d": (
        "compressor.targets.convs.op_types: no module of type 'Conv3d' in ResNet; did you mean 'Conv2d'"
    ),
    "+compressor.targets.convs.exclude_op_names=[con1]": (
        "compressor.targets.convs.exclude_op_names: no module named 'con1' in ResNet; did you mean 'conv1'"
    ),
    "+compressor.targets.convs.op_names_re=['stem.*']": (
        "compressor.targets.convs.op_names_re: no module name of ResNet matches 'stem.*'"
    ),
    "+compressor.targets.convs.target_names=[wieght]": (
        "compressor.targets.convs.target_names: none of the 21 selected modules has a parameter 'wieght'; "
        "did you mean 'weight'"
    ),
    "+model.wdith=8": (
        "model: nnicompress.models.resnet.resnet20 takes no 'wdith'; did you mean 'width'? (command line)"
    ),
    "model.width=wide": "model.width: 'wide' is not a whole number (command line)",
    "model.width=-4": "model: resnet20 raises ",
    "model._target_=nnicompress.models.resnet.resnet21": (
        "model._target_: nnicompress.models.resnet has no 'resnet21'; did you mean 'resnet20'"
    ),
    "model._target_=torch.nn.ReLU": "model: torch.nn.ReLU takes no 'num_classes'; it takes inplace",
    "model._target_=torch.hub.load": "model._target_: torch.hub.load may not be called from a config; write a function",
    "model._target_=torch.nn.init.torch.hub.load": (
        "model._target_: torch.nn.init.torch.hub.load (it is torch.hub.load) may not be called from a config"
    ),
    "model._target_=mine.Net": (
        "model._target_: mine.Net: there is no module 'mine', neither installed nor in the current directory"
    ),
    "model=timm": "model: this model needs timm, which is not installed: pip install 'nnicompress[vision]'",
    "data.fold=5": "data.fold: 5 is outside 0 ... 4 (num_folds is 5) (command line)",
    "data.num_classes=7": "data.num_classes: 7 is given, but the digits have 10; write num_classes: 10 (command line)",
    "data.batch_size=big": "data.batch_size: 'big' is not a whole number (command line)",
    "model.in_channels=3": "model: on the first batch it raises RuntimeError: Given groups=1, weight of size",
    "model.num_classes=7": "evaluator.metric: on the first batch it raises ",
    "optimizer.lr=fast": "optimizer.lr: 'fast' is not a number or a tensor (command line)",
    "optimizer.lr=-1": "optimizer: SGD: Invalid learning rate: -1 (",
    "+optimizer.momentm=0.5": "optimizer: torch.optim.SGD takes no 'momentm'; did you mean 'momentum'? (command line)",
    "optimizer._target_=torch.optim.LBFGS": "optimizer: torch.optim.LBFGS takes no 'momentum'",
    "optimizer._target_=torch.nn.Linear": "optimizer: torch.nn.Linear takes no 'lr'",
    "optimizer.param_groups=[{params_re: bais, weight_decay: 0}]": (
        "optimizer: SGD (optimizer 0), param_groups[0]: params_re 'bais' matches no parameter"
    ),
    "optimizer.param_groups=5": "optimizer.param_groups: 5 is not a list of {params_re: REGEX, ...} (command line)",
    "scheduler.interval=batch": "scheduler.interval: 'batch' is not 'step' or 'epoch' (command line)",
    "scheduler.pct_start=3": "scheduler: OneCycleLR: Expected float between 0 and 1 pct_start, but got 3",
    "+stages.train.optimizer={momentm: 0.5}": (
        "stages.train.optimizer: torch.optim.SGD takes no 'momentm'; did you mean 'momentum'? (command line)"
    ),
    "evaluator.loss._target_=torch.nn.CrossEntropLoss": (
        "evaluator.loss._target_: torch.nn has no 'CrossEntropLoss'; did you mean 'CrossEntropyLoss'"
    ),
    "evaluator.loss=null": "evaluator.loss: stage 'train' needs it, or your own training_step, to train the model",
    "evaluator.metric=null": (
        "evaluator.metric: stage 'evaluate' needs it, or your own evaluating_func, to measure the model"
    ),
    "evaluator.metric.average=mikro": "evaluator.metric: MulticlassAccuracy raises ValueError",
    "evaluator.training_step=my_steps.step": (
        "evaluator.training_step: my_steps.step: there is no module 'my_steps', neither installed nor in the current "
    ),
    "evaluator.training_func=os.system": "evaluator.training_func: os.system may not be called from a config",
    "runtime.device=cuda:99": "runtime.device: device 'cuda:99' is not available here; use auto or cpu (command line)",
    "compressor=level": "stages.shrink: there is nothing to remove: the compressor's granularity is element",
}


@pytest.mark.parametrize("override", WRONG)
def test_one_mistake_is_one_line(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    first, *_ = lines_of(BASE, *SMALL, override) if "model=" not in override else lines_of(BASE, override)
    assert first.startswith(WRONG[override])
    assert "\n" not in first


QUANTIZED = ("recipe=qat_resnet", *SMALL)
WEIGHT = "+compressor.targets.all.target_settings={weight: "


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            [WEIGHT + "{granularity: {axis: 1, block_size: 4}}}", "compressor.backend=none"],
            "stages.export.formats: conv1 has one scale a block, which model.onnx can't hold",
        ),
        (
            [WEIGHT + "{granularity: {axis: 1}}}"],
            "compressor.targets.all.target_settings.weight.granularity: onnxruntime_x86 runs conv1 in integers with "
            "one scale an output channel, axis 0",
        ),
        (
            ["~stages.quantize.max_epochs", "+stages.quantize.max_steps=9", "compressor.schedule.simulate_from=9"],
            "compressor.schedule.simulate_from: simulated from step 9, a training of 9 steps (stages.",
        ),
        (
            ["stages.quantize.max_epochs=2", "data.batch_size=100", "compressor.schedule.simulate_from=100"],
            "compressor.schedule.simulate_from: simulated from step 100, a training of",
        ),
        (
            ["compressor=dorefa", "compressor.targets.all.target_settings.weight.quant_dtype=int8"],
            "compressor.targets.all.target_settings.weight.quant_dtype: dorefa's weights need a quant_dtype of 2 to 7",
        ),
        (["compressor=lsq", "+compressor.observer=mse"], "compressor.observer: observer belongs to method observed"),
        (
            ["compressor.observer={name: min_max, momentum: 0.5}"],
            "compressor.observer.momentum: it belongs to moving_average, and the observer is min_max (command line)",
        ),
        (
            ["compressor=ptq", "~stages.quantize.max_epochs", "compressor.schedule.freeze_batch_norm_at=5"],
            "compressor.schedule: it counts steps of a training, and there is none: trains is false (command line)",
        ),
        (
            ["compressor=ptq", "~stages.quantize.max_epochs", "compressor.kernel=compiled"],
            "compressor.kernel: it serves a training, and there is none: trains is false (command line)",
        ),
        (
            ["compressor.method=lsqq"],
            "compressor.method: no method named 'lsqq'; did you mean 'lsq'?; known: observed, lsq, lsq_plus, dorefa, "
            "bnn (command line)",
        ),
        (
            ["compressor.targets.all={target_settings: {_input_: {granularity: channel}}}"],
            "compressor.targets.all.target_settings._input_.granularity: onnxruntime_x86 runs activations in integers",
        ),
        (
            ["compressor.targets.all={target_names: [weight, gamma]}"],
            "compressor.targets.all.target_names: no tensor 'gamma'; there are _input_, weight, bias, _output_, and "
            "one of several is _input_0 (command line)",
        ),
    ],
)
def test_what_a_runtime_or_a_file_can_not_hold_of_a_quantizer_is_one_line(overrides: list[str], line: str) -> None:
    (found,) = lines_of(*QUANTIZED, *overrides)
    assert line in found, found


def test_a_hidden_width_is_not_left_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    (line,) = lines_of(BASE, *SMALL, "compressor.granularity=hidden", "~stages.shrink")
    assert line.startswith("stages.prune.compressor.granularity: granularity hidden needs a shrink stage")


WRONG_BLOCKS = {
    "layer": "compressor.importance.blocks: no module named 'layer' in ResNet; did you mean 'layer3'",
    "conv1": "compressor.importance.blocks: conv1 is Conv2d, no sequence of blocks (a ModuleList or a Sequential)",
    "[layer2, layer1]": "",
    "[]": "compressor.importance.blocks: names no sequence of blocks; auto finds them, null goes without",
}


@pytest.mark.parametrize("blocks", WRONG_BLOCKS)
def test_blocks_are_tried_before_anything_is_trained(blocks: str) -> None:
    overrides = [BASE, *SMALL, "compressor=wanda", "~stages.shrink", f"compressor.importance.blocks={blocks}"]
    if not WRONG_BLOCKS[blocks]:
        assert checked(*overrides).model == "ResNet"
        return
    (line,) = lines_of(*overrides)
    assert line.startswith(WRONG_BLOCKS[blocks])


VIT = ("recipe=taylorfo_vit_transformers", "model.config.num_hidden_layers=1", "data.batch_size=4")
KINDS = {
    "a kind that the network has not": (
        [BASE, *SMALL, "compressor.targets.convs.granularity=heads"],
        "compressor.targets.convs.granularity: the selected modules produce no heads; they produce channels (",
    ),
    "a kind that the selected modules have not": (
        [*VIT, "+compressor.targets.attention.op_names_re=['.*fc1']"],
        "compressor.targets.attention.granularity: the selected modules produce no heads; they produce ffn (",
    ),
    "both ways to prune attention": (
        [*VIT, "compressor.targets.hidden.granularity=head_dim"],
        "compressor: heads and head_dim can't be pruned at once; prune one, shrink, then prune the other (",
    ),
    "a misspelt kind": (
        [*VIT, "compressor.targets.attention.granularity=head"],
        "compressor.targets.attention.granularity: no granularity named 'head'; did you mean 'heads'",
    ),
    "all heads": (
        [*VIT, "compressor.targets.attention.sparse_ratio=1.0"],
        "compressor.targets.attention.sparse_ratio: 1 is outside [0, 1) (command line)",
    ),
    "less than one head": (
        [*VIT, "compressor.targets.attention.sparse_ratio=0.1"],
        "compressor.targets.attention.sparse_ratio: 0.1 is too little to remove anything: "
        "model.vit.layers.0.attention.q_proj has 4 heads, and loses at least 1 or none (command line)",
    ),
    "an unknown output": (
        [*VIT, "model.output=null", "+compressor.outputs=[logit]"],
        "compressor.outputs: ViTForImageClassification returns no 'logit'; did you mean 'logits'? (command line)",
    ),
    "an output where there is but one": (
        [*VIT, "+compressor.outputs=[logits]"],
        "compressor.outputs: ViTForImageClassification returns no 'logits': what it returns has no named entries (",
    ),
    "what can't be pruned at all": (
        [BASE, *SMALL, "compressor.targets.convs.op_types=[Linear]"],
        "compressor.targets: nothing of what is selected can be pruned: fc: it is an output of the model (",
    ),
    "an importance of norms that are not there": (
        [*VIT, "compressor.importance.name=slim"],
        "compressor: slim scores the norm behind a layer, and model.vit.layers.0.attention.q_proj (and 2 more) has ",
    ),
    "blocks that don't fit": (
        [BASE, *SMALL, "~stages.shrink", "compressor.targets.convs.granularity=[3, 3]"],
        "compressor.targets.convs.granularity: a block length of 3 does not divide dimension 0 of conv1.weight, ",
    ),
    "two ratios for one width": (
        [*VIT, "compressor.targets.feed_forward.granularity=heads"],
        "compressor.targets.feed_forward.sparse_ratio: asks for 0.8 of model.vit.layers.0.attention.q_proj, ",
    ),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_a_pruner_can_not_find_is_told_before_any_training(case: str) -> None:
    overrides, start = KINDS[case]
    (line,) = lines_of(*overrides)
    assert line.startswith(start)


def test_a_check_tells_which_widths_of_a_kind_a_target_comes_to() -> None:
    report = checked(*VIT)
    assert report.model == "ViTForImageClassification"
    heads, feed_forward, hidden = report.targets
    attention = "model.vit.layers.0.attention"
    assert heads.modules == tuple(f"{attention}.{name}" for name in ("q_proj", "k_proj", "v_proj"))
    assert heads.widths == (f"4 heads: {attention}.q_proj",)
    assert feed_forward.widths == ("256 feed-forward channels: model.vit.layers.0.mlp.fc1",)
    assert hidden.modules == (f"{attention}.o_proj", "model.vit.layers.0.mlp.fc2")
    assert hidden.widths == ("64 hidden channels: model.vit.embeddings.patch_embeddings.projection",)


def test_mistakes_of_every_kind_are_shown_at_once() -> None:
    wrong = [
        "seed=-1",
        "+model.wdith=8",
        "+optimizer.momentm=0.5",
        "data.fold=9",
        "evaluator.loss._target_=torch.nn.Nothing",
    ]
    keys = [line.partition(":")[0] for line in lines_of(BASE, *wrong)]
    assert sorted(keys) == ["data.fold", "evaluator.loss._target_", "model", "optimizer", "seed"]
    both = lines_of(BASE, *SMALL, "seed=-1", "compressor.targets.convs.op_types=[Conv2D]")
    assert len(both) == 2


def test_a_users_own_model_loss_and_step_need_no_registration(here: Path) -> None:
    (here / "my_classifier.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, hidden: int):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))\n"
        "def step(batch, model):\n"
        "    inputs, targets = batch\n"
        "    return nn.functional.cross_entropy(model(inputs), targets)\n"
        "def short_step(batch):\n"
        "    return 0\n"
    )
    (here / "mine.yaml").write_text(
        "defaults:\n  - override /compressor: l1\n"
        "compressor: {targets: {convs: null, hidden: {op_names: ['1'], sparse_ratio: 0.5}}}\n"
        "stages: {train: {max_epochs: 1}, prune: {}, shrink: {}, evaluate: {}}\n"
    )
    (here / "model").mkdir()
    (here / "model" / "mine.yaml").write_text("_target_: my_classifier.Net\nhidden: 32\n")
    composed = compose_with_origin(["recipe=mine.yaml", "model=mine"], config_dir=here)
    report = check(composed.config, composed.origin)
    assert (report.model, report.num_parameters) == ("Net", 64 * 32 + 32 + 32 * 10 + 10)
    assert [(match.key, match.modules) for match in report.targets] == [("compressor.targets.hidden", ("1",))]
    wrong = ["recipe=mine.yaml", "model=mine", "evaluator.training_step=my_classifier.short_step"]
    composed = compose_with_origin(wrong, config_dir=here)
    with pytest.raises(InputErrors, match="training_step 'short_step' must take"):
        check(composed.config, composed.origin)


def test_what_a_quantizer_leaves_in_float_is_told_before_the_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "my_forward.py").write_text(
        "from torch import nn\n"
        "class Scaled(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return 2 * super().forward(x)\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), Scaled(64, 32), nn.ReLU(), nn.Linear(32, 10))\n"
    )
    (here / "model").mkdir()
    (here / "model" / "mine.yaml").write_text("_target_: my_forward.Net\n")
    composed = compose_with_origin(["recipe=qat_resnet", "model=mine"], config_dir=here)
    report = check(composed.config, composed.origin)
    (match,) = report.targets
    assert match.modules == ("3",)
    assert [line.partition(":")[0] for line in match.in_float] == ["1"]
    print_check(report)
    assert f"leaves in float {match.in_float[0]}" in " ".join(capsys.readouterr().out.split())


def test_a_checkpoint_is_read_and_must_fit(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"

    def recipe(checkpoint: Path) -> str:
        file.write_text(f"stages: {{start: {{checkpoint: {checkpoint}}}, evaluate: {{}}}}\n")
        return f"recipe={file}"

    fits, narrower, wrong = tmp_path / "fits.safetensors", tmp_path / "narrow.pt", tmp_path / "wrong.pt"
    save_file(resnet20(10, 1, width=4).state_dict(), fits)
    torch.save(resnet20(10, 1, width=8).state_dict(), narrower)
    wrong.write_bytes(b"not a checkpoint")
    assert checked(recipe(fits), *SMALL).stages[0].name == "start"
    (line,) = lines_of(recipe(narrower), *SMALL)
    assert "'conv1.weight' is [8, 1, 3, 3] in the checkpoint and [4, 1, 3, 3] in the model" in line
    (line,) = lines_of(recipe(wrong), *SMALL)
    assert "is neither safetensors nor a state_dict" in line
    (line,) = lines_of(recipe(tmp_path / "none.pt"), *SMALL)
    assert line.startswith(f"stages.start.checkpoint: no file '{tmp_path / 'none.pt'}' (")
    assert line.endswith("mine.yaml:1)")


def test_a_format_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnicompress.export.onnx.PACKAGES", ("onnx", "no_such_package"))
    (line,) = lines_of(BASE, *SMALL, "export=onnx")
    assert "needs no_such_package: pip install 'nnicompress[export]'" in line


def test_missing_files_of_the_data_are_named(tmp_path: Path) -> None:
    (line,) = lines_of(BASE, "data=cifar10", f"data.root={tmp_path / 'none'}", "model.width=4")
    assert line.startswith(f"data.root: no folder '{tmp_path / 'none'}'")
    (line,) = lines_of(BASE, "data=imagefolder", f"data.root={tmp_path}", "data.num_classes=2", "model.width=4")
    assert line.startswith("data.root: no folder for the train images")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["recipe=taylorfo_resnet_lightning", "evaluator.metric=val_acc"],
            "evaluator.metric: metric='val_acc' is not logged in validation; it logs 'default'",
        ),
        (
            ["recipe=taylorfo_vit_transformers", "evaluator.metric=accuracy"],
            "evaluator.metric: the evaluation measures no 'accuracy'; there is 'loss', 'default'",
        ),
        (
            ["recipe=taylorfo_vit_transformers", "scheduler=multistep"],
            "scheduler.interval: a Trainer of transformers steps its scheduler after each optimizer step",
        ),
        (
            ["recipe=taylorfo_resnet_lightning", "evaluator.trainer.max_epoch=3"],
            "evaluator.trainer: pytorch_lightning.Trainer takes no 'max_epoch'; did you mean 'max_epochs'?",
        ),
        (
            ["recipe=taylorfo_resnet_lightning", "evaluator.trainer.strategy=fsdp"],
            "evaluator: Trainer(strategy='fsdp') shards the parameters",
        ),
        (
            ["recipe=taylorfo_resnet_lightning", "evaluator.module=null"],
            "evaluator: the bound model is a ResNet, no LightningModule",
        ),
        (
            ["recipe=taylorfo_resnet", "evaluator=transformers"],
            "evaluator: ResNet takes no labels, so it computes no loss",
        ),
    ],
)
def test_what_is_wrong_with_a_trainer_is_found_before_it_trains(overrides: list[str], line: str) -> None:
    with pytest.raises(InputErrors) as caught:
        check_recipe(overrides)
    assert [str(error).startswith(line) for error in caught.value.errors] == [True], str(caught.value)
