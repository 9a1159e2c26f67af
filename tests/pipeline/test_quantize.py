"""The `quantize` stage beside a loop written by hand: ranges, weights, integers, what is reused, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nnicompress.cli import main
from nnicompress.data.digits import Digits
from nnicompress.errors import JobError
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.events import Event, Note, StageStarted
from nnicompress.export import onnx, onnx_qdq
from nnicompress.export.plain import load
from nnicompress.models.resnet import resnet20
from nnicompress.pipeline.run import run_job
from nnicompress.pruning.storage import load_pruning
from nnicompress.quantization.attach import simulated
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.frozen import FrozenModel
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.result import QuantizationResult, load_quantization
from nnicompress.report.record import Report
from nnicompress.trace import trace
from tests.pipeline.jobs import LEVEL, QAT, make_job

EVALUATE = {"repeats": 3, "seconds": 0.01, "memory": False, "batch_sizes": [1]}
STAGES: dict[str, dict[str, Any]] = {
    "train": {"max_steps": 40},
    "quantize": {"max_steps": 25},
    "export": {"formats": []},
    "evaluate": EVALUATE,
}
PTQ = {
    "trains": False,
    "observer": "mse",
    "bias_correction": True,
    "calibration_steps": 4,
    "targets": {"all": {}},
}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A run that trains with fake quantization past the end of an epoch, and its report."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return folder, run_job(make_job(folder, STAGES))


@pytest.fixture
def again(first: tuple[Path, Report], tmp_path: Path) -> Path:
    return Path(shutil.copytree(first[0], tmp_path / "run"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(folder: Path, stage: str) -> nn.Module:
    """The network with the weights that a stage left."""
    model = resnet20(num_classes=10, in_channels=1, width=8)
    model.load_state_dict(load_file(folder / "stages" / stage / "model.safetensors"))
    return model


def assert_same_quantization(one: QuantizationResult, other: QuantizationResult) -> None:
    assert one.tensors.keys() == other.tensors.keys() and one.folded == other.folded
    for place, tensor in one.tensors.items():
        assert tensor.scheme == other.tensors[place].scheme
        assert torch.equal(tensor.scale, other.tensors[place].scale), place
        assert torch.equal(tensor.zero_point, other.tensors[place].zero_point), place


def plain_loop(
    model: nn.Module,
    optimizers: Any,
    training_step: Any,
    lr_schedulers: Any,
    max_steps: int | None,
    max_epochs: int | None,
) -> None:
    """What anybody writes: epochs in the order of seed and epoch."""
    assert max_steps is not None
    model.train()
    loader: Any = Digits(batch_size=64).train_loader(0)
    step = 0
    for epoch in range(max_steps):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizers.zero_grad()
            training_step(batch, model).backward()
            optimizers.step()
            step += 1
            if step == max_steps:
                return


def cross_entropy(batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


@pytest.mark.parametrize(
    ("quantizer", "length"),
    [
        (QAT, {"max_steps": 25}),
        ({**QAT, "method": "lsq", "targets": {"all": {"quant_dtype": "uint4"}}}, {"max_steps": 3}),
        (PTQ, {}),
    ],
    ids=["qat", "lsq", "ptq"],
)
def test_ranges_and_weights_are_those_of_a_loop_written_by_hand(
    quantizer: dict[str, Any], length: dict[str, int], first: tuple[Path, Report], tmp_path: Path, one_thread: None
) -> None:
    folder = first[0] if quantizer is QAT else Path(shutil.copytree(first[0], tmp_path / "run"))
    if quantizer is not QAT:
        run_job(make_job(folder, {"train": STAGES["train"], "quantize": length}, quantizer=quantizer))
    model = trained(folder, "01_train")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = trace(torch.optim.SGD)(model.parameters(), lr=0.05, momentum=0.9)
    settings = {key: value for key, value in quantizer.items() if key != "targets"}
    evaluator = TorchEvaluator(plain_loop, optimizer, cross_entropy)
    result = Quantizer(list(quantizer["targets"].values()), evaluator, **settings).compress(model, **length)
    assert_same_quantization(result, load_quantization(folder / "stages/02_quantize"))
    left = trained(folder, "02_quantize").state_dict()
    assert all(torch.equal(tensor, left[name]) for name, tensor in model.state_dict().items())
    changed = {name for name, tensor in left.items() if not torch.equal(tensor, before[name])}
    if length:
        assert {"conv1.weight", "fc.weight", "fc.bias"} <= changed
    else:  # what PTQ corrects: biases, and the means that a batch norm subtracts in their place
        assert changed == {name for name in left if name.endswith("running_mean") or name == "fc.bias"}


def test_frozen_is_the_simulation_in_integers_and_not_the_float_model(first: tuple[Path, Report]) -> None:
    folder, report = first
    phases = {phase.name: phase for phase in report.phases}
    assert list(phases) == ["baseline", "quantized", "frozen"]
    assert phases["frozen"].accuracy == phases["quantized"].accuracy
    assert phases["frozen"].validation == phases["quantized"].validation
    images = torch.cat([images for images, _ in Digits(batch_size=64).test_loader()])
    model, frozen = trained(folder, "02_quantize").eval(), load(folder)
    assert isinstance(frozen, FrozenModel)
    with torch.no_grad():
        floats, integers = model(images), frozen(images)
        with simulated(model, load_quantization(folder / "stages/02_quantize")):
            assert torch.equal(model(images), integers)
    assert not torch.equal(floats, integers)
    weights = dict(frozen.named_buffers())
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            # One scale an output channel, symmetric: its largest weight is 127 or -127.
            rows, integer = module.weight.detach().flatten(1), weights[f"{name}.weight"].flatten(1)
            assert integer.dtype == torch.int8
            scale = rows.abs().amax(dim=1, keepdim=True) / 127
            # Halves may round either way: the simulation multiplies by the reciprocal.
            assert ((integer.float() - rows / scale).abs() <= 0.5 + 1e-4).all(), name
            assert (integer.int().abs().amax(dim=1) == 127).all()
    # Integers take a byte each; batch norms, scales, zero points and names are the rest.
    assert phases["frozen"].bytes < 0.35 * phases["baseline"].bytes


def run(folder: Path, stages: dict[str, Any], **options: Any) -> tuple[Report, list[str], list[str]]:
    """The report, the stages that ran, and the notes."""
    events: list[Event] = []
    report = run_job(make_job(folder, stages, **options), events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    return report, [event.name for event in events if isinstance(event, StageStarted)], notes


def test_a_stage_that_is_reused_gives_the_same_integers_and_numbers(first: tuple[Path, Report], again: Path) -> None:
    before = load_file(again / "model/model.safetensors")
    report, ran, _ = run(again, {**STAGES, "export": {"formats": ["onnx"]}})
    assert ran == ["export", "evaluate"], "train and quantize are reused"
    after = load_file(again / "model/model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert [(p.name, p.accuracy, p.bytes) for p in report.phases] == [
        (p.name, p.accuracy, p.bytes) for p in first[1].phases
    ]
    (artifact,) = report.artifacts
    assert artifact.accuracy is not None and report.final.accuracy is not None
    assert abs(artifact.accuracy - report.final.accuracy) <= 0.01
    assert artifact.integer["QLinearConv"] == 21 and artifact.bytes < artifact.baseline_bytes


def test_single_weights_that_were_pruned_stay_zero_in_training_and_in_the_integers(tmp_path: Path) -> None:
    stages = {"train": {"max_steps": 4}, "prune": {}, "quantize": {"max_steps": 4}, "export": {"formats": []}}
    run_job(make_job(tmp_path / "run", stages, pruner=LEVEL))
    folder = tmp_path / "run"
    masks = load_pruning(folder / "stages/02_prune").masks.keep
    before = trained(folder, "02_prune").state_dict()
    after = trained(folder, "03_quantize").state_dict()
    integers = load_file(folder / "model/model.safetensors")
    convolutions = [name for name in before if name.endswith(".weight") and before[name].dim() == 4]
    assert len(convolutions) == 21
    for name in convolutions:
        mask = masks[name]
        assert mask.float().mean() == pytest.approx(0.5, abs=0.01)
        assert (after[name][~mask] == 0).all() and (integers[name][~mask] == 0).all()
        assert not torch.equal(after[name][mask], before[name][mask]), "the others were trained"
        assert integers[name].dtype == torch.int8 and (integers[name][mask] != 0).float().mean() > 0.9


def test_a_smoke_run_takes_two_batches_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    observe = FakeQuantizer.forward

    def counted(self: FakeQuantizer, x: Tensor) -> Tensor:
        if x.shape[1:] == (1, 8, 8) and self.watcher is not None:
            seen.append(True)
        return observe(self, x)

    monkeypatch.setattr(FakeQuantizer, "forward", counted)
    stages = {**STAGES, "quantize": {"max_epochs": 50}}
    report = run_job(make_job(tmp_path / "run", stages, smoke=True))
    assert len(seen) == 2, "batches of the calibration"
    (curve,) = [curve for curve in report.curves if curve.stage == "quantize"]
    assert len(curve.losses) == 2 and curve.epoch_steps == (2,)
    assert report.smoke and [phase.name for phase in report.phases] == ["baseline", "quantized", "frozen"]


CORRUPT = "frozen.layer2.1.conv1.weight_folded"


class Corrupted:
    """A translated model whose file has zeros in place of a layer's weights."""

    def __init__(self, translated: Any) -> None:
        self.translated = translated

    def save(self, path: str, **options: Any) -> None:
        import onnx as package

        self.translated.save(path, **options)
        model = package.load(path)
        (tensor,) = [t for t in model.graph.initializer if t.name == CORRUPT]
        values = package.numpy_helper.to_array(tensor)
        tensor.CopyFrom(package.numpy_helper.from_array(values * 0, CORRUPT))
        package.save(model, path)


def test_a_file_that_computes_something_else_fails_the_run_and_the_layer_is_named(
    again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translate = onnx_qdq.translate
    monkeypatch.setattr(onnx_qdq, "translate", lambda model, inputs: Corrupted(translate(model, inputs)))
    stages = {**STAGES, "export": {"formats": ["onnx"]}}
    with pytest.raises(JobError, match=r"model\.onnx differs from the model by .*, more than 1e-01"):
        run_job(make_job(again, stages))
    # Where outputs on a few samples don't tell, the metric does.
    monkeypatch.setattr(onnx, "QUANTIZED_TOLERANCE", 100.0)
    with pytest.raises(JobError) as caught:
        run_job(make_job(again, stages))
    (line,) = str(caught.value).splitlines()
    assert "model.onnx: accuracy is 0." in line
    assert "more than stages.evaluate.max_deployed_gap (0.01); the first layer that differs is layer2.1" in line
    assert not (again / "report.json").exists()


# What `nnicompress run qat_resnet` is given -> the one line that it answers.
WRONG = {
    "compressor.targets.all.quant_dtype=int9": (
        "compressor.targets.all.quant_dtype: no quant_dtype named 'int9'; did you mean 'int8' or 'int7' or 'int6'?; "
        "known: int2, int3,"
    ),
    "+compressor.targets.all.granularity=chanel": (
        "compressor.targets.all.granularity: no granularity named 'chanel'; did you mean 'channel'?"
    ),
    "+compressor.targets.all.target_settings={weight: {granularity: {axis: 1, block_size: 5}}}": (
        "compressor.targets.all.target_settings.weight.granularity: onnxruntime_x86 has no integer kernels for blocks; "
        "use granularity: channel, or backend: none"
    ),
    "+compressor.targets.all.target_settings={weight: {granularity: {axis: 4}}}": (
        "compressor.targets.all.target_settings.weight.granularity: conv1.weight: a tensor of shape "
        "(16, 1, 3, 3) has no dimension 4"
    ),
    "+compressor.targets.all.fuse_names=5": "compressor.targets.all.fuse_names: 5 is no list of chains",
    "+compressor.targets.all.target_names=[_input_3, weight]": (
        "compressor.targets.all.target_names: _input_3 is no input that is quantized: Conv2d has 1 input, Linear has 1"
    ),
    "+compressor.targets.all.target_names=[_inptu_]": (
        "compressor.targets.all.target_names: no tensor '_inptu_'; did you mean '_input_'?; there are"
    ),
    "+compressor.targets.all.op_names=[conv7]": "compressor.targets.all.op_names: no module named 'conv7' in ResNet",
    "+compressor.targets.all.op_types=[Conv3d]": "compressor.targets.all.op_types: no module of type 'Conv3d' in",
    "compressor.calibration_steps=0": "compressor.calibration_steps: 0 is less than 1",
    "compressor.observer.name=momentum": "compressor.observer: no observer named 'momentum'",
    "compressor=ptq": "stages.quantize.max_epochs: this quantizer only calibrates and trains nothing (trains: false)",
    "~stages.quantize.max_epochs": (
        "stages.quantize: this quantizer trains: say how long, with max_epochs or max_steps"
    ),
    "+stages.quantize.max_steps=9": (
        "stages.quantize: at most one of max_epochs and max_steps says how long to train; both are given"
    ),
    "compressor=taylorfo": (
        "compressor.kind: quantize takes a quantizer, and this is a pruner; give the stage its own, "
        "stages.quantize.compressor"
    ),
    "~compressor": "stages.quantize: quantize needs a compressor: add compressor=NAME",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("override", WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(override: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "qat_resnet", "run_dir=run", override]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: {WRONG[override]}") and not printed.out
    assert not (here / "run").exists()


RECIPE = """\
# A recipe whose stages stand in another order
defaults:
  - override /model: mlp
  - override /compressor: qat
stages: {stages}
"""


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ("{quantize: {max_epochs: 1}, train: {max_epochs: 1}}", "stages.quantize: 'quantize' needs 'train' or 'start'"),
        ("{quantize: {max_epochs: 1}}", "stages.quantize: 'quantize' needs 'train' or 'start' before it"),
        (
            "{train: {max_epochs: 1}, quantize: {max_epochs: 1}, finetune: {max_epochs: 1}}",
            "stages.finetune: 'finetune' must come before 'quantize'",
        ),
        (
            "{train: {max_epochs: 1}, export: {}, quantize: {max_epochs: 1}}",
            "stages.quantize: 'quantize' must come before 'export'",
        ),
    ],
)
def test_stages_in_a_wrong_order(stages: str, line: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "wrong.yaml").write_text(RECIPE.format(stages=stages))
    assert main(["run", "wrong.yaml", "run_dir=run"]) == 2
    assert f"error: {line}" in capsys.readouterr().err
    assert not (here / "run").exists()


def test_without_data_to_calibrate_on_nothing_is_trained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "ptq_resnet", "run_dir=run", "evaluator.loss=null"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(
        line.removeprefix("error:")
        .strip()
        .startswith(
            "evaluator.loss: the observed quantizer needs it, or your own training_step, to find ranges on batches of "
            "the training data"
        )
        for line in lines
    )
    assert not (here / "run").exists()
