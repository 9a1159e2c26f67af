"""Accuracy control in a real run: two layers that hurt are found, and the rest of the run follows from that."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nnicompress.data.digits import Digits
from nnicompress.events import Event, Measured, Note
from nnicompress.models.mlp import MLP
from nnicompress.pipeline.accuracy_control import AccuracyControl
from nnicompress.pipeline.job import Job
from nnicompress.pipeline.run import run_job
from nnicompress.quantization.result import load_quantization
from nnicompress.quantization.settings import QuantizerSettings
from nnicompress.report.record import ControlRecord, Report
from nnicompress.trace import Traced
from tests.pipeline.jobs import make_job

SIZES = (64, 24, 24, 24, 24, 10)
LAYERS = tuple(f"layers.{2 * i}" for i in range(len(SIZES) - 1))
HURT = ("layers.2", "layers.6")
PTQ: dict[str, Any] = {"trains": False, "calibration_steps": 4, "observer": "min_max", "targets": {"all": {}}}
EVALUATE = {"repeats": 3, "seconds": 0.01, "memory": False, "batch_sizes": [1]}


def forever() -> Any:
    data = Digits(batch_size=64)
    return itertools.chain.from_iterable(data.train_loader(seed) for seed in itertools.count())


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """A perceptron that knows the digits, two of whose layers have an outlier in each row, which reads a dead unit."""
    torch.manual_seed(0)
    model = MLP(SIZES)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for images, labels in itertools.islice(forever(), 500):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        with torch.no_grad():
            for layer in linear[:-1]:
                layer.weight[0], layer.bias[0] = 0.0, -1.0
    with torch.no_grad():
        for name in HURT:
            model.get_submodule(name).weight[1:, 0] = 1000.0
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def job_of(folder: Path, weights: dict[str, Tensor], quantize: dict[str, Any], quantizer: dict[str, Any] = PTQ) -> Job:
    checkpoint = folder.parent / "weights.safetensors"
    save_file(weights, str(checkpoint))
    stages = {"start": {"checkpoint": str(checkpoint)}, "quantize": quantize, "evaluate": EVALUATE}
    job = make_job(folder, stages)
    plans = tuple(
        dataclasses.replace(plan, compressor=QuantizerSettings.model_validate(quantizer))
        if plan.name == "quantize"
        else plan
        for plan in job.stages
    )
    config = {"model": {"_target_": "nnicompress.models.mlp.MLP", "sizes": list(SIZES)}, "stages": stages}
    return dataclasses.replace(job, stages=plans, build_model=Traced(MLP, (SIZES,), {}), resolved_config=config)


def control_of(report: Report) -> ControlRecord:
    assert report.quantization is not None and report.quantization.control is not None
    return report.quantization.control


def test_exactly_the_two_layers_that_hurt_are_left_in_float(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    folder, events = tmp_path / "run", []
    report = run_job(job_of(folder, weights, {"max_accuracy_drop": 0.01}), events.append)
    control = control_of(report)
    assert control.in_float == HURT and control.met and control.parts == len(LAYERS)
    by_parts = {trial.in_float: trial for trial in control.trials}
    assert control.baseline > 0.8 and by_parts[()].metric < control.baseline - 0.2
    assert by_parts[LAYERS].metric == control.baseline, "without a training, all in float is the model that came in"
    assert control.metric == by_parts[HURT].metric >= control.baseline - 0.01
    # Neither of the two alone would have done.
    assert not by_parts[HURT[:1]].holds and not by_parts[HURT[1:]].holds
    result = load_quantization(folder / "stages" / "02_quantize")
    quantized = {place.partition("/")[0] for place in result.tensors if place.endswith("/weight")}
    assert quantized == set(LAYERS) - set(HURT)
    # What is measured of the frozen model is what was chosen.
    assert report.final.name == "frozen" and report.final.validation == control.metric
    assert report.final.bytes < report.baseline.bytes
    notes = [event.text for event in events if isinstance(event, Note)]
    (said,) = (text for text in notes if text.startswith("Accuracy control"))
    assert "2 of 5 parts are left in float: layers.2, layers.6" in said
    page = (folder / "report.html").read_text()
    section = page[page.index("What stays in float") :]
    section = section[: section.index("</section>")]
    assert "<svg" in section and section.count("<tr>") == 1 + len(control.trials)
    assert re.search(r"layers\.2, layers\.6</td><td>2</td>.*✓ holds, chosen", section)
    facts = json.loads((folder / "stages" / "02_quantize" / "record.json").read_text())["facts"]
    assert ControlRecord.model_validate(facts["control"]) == control
    again = run_job(job_of(folder, weights, {"max_accuracy_drop": 0.01}))
    assert control_of(again) == control and again.stages[1].reused


def test_a_bound_that_holds_costs_one_measurement(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    control = control_of(run_job(job_of(tmp_path / "run", weights, {"max_accuracy_drop": 1.0})))
    assert control.in_float == () and [trial.in_float for trial in control.trials] == [()]


def test_a_killed_search_goes_on_after_its_last_measurement(
    tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = control_of(run_job(job_of(tmp_path / "whole", weights, {"max_accuracy_drop": 0.01})))
    measure, made = AccuracyControl._measure, []

    def counted(self: AccuracyControl, in_float: tuple[str, ...]) -> float:
        if len(made) == 4:
            made.append(in_float)
            raise KeyboardInterrupt
        made.append(in_float)
        return measure(self, in_float)

    monkeypatch.setattr(AccuracyControl, "_measure", counted)
    with pytest.raises(KeyboardInterrupt):
        run_job(job_of(tmp_path / "run", weights, {"max_accuracy_drop": 0.01}))
    events: list[Event] = []
    found = control_of(run_job(job_of(tmp_path / "run", weights, {"max_accuracy_drop": 0.01}), events.append))
    assert found == expected
    assert any(isinstance(event, Note) and event.text == "goes on after 4 measurements" for event in events)
    assert len(made) == len(expected.trials) + 1 and made[4] == made[5], "only the one that was cut off is made again"
    assert [event.number for event in events if isinstance(event, Measured)]
    files = [tmp_path / name / "stages" / "02_quantize" / "model.safetensors" for name in ("whole", "run")]
    one, other = map(load_file, files)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_layers_in_float_keep_the_biases_that_a_correction_changes(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    corrected = {**PTQ, "bias_correction": True}
    control = control_of(run_job(job_of(tmp_path / "run", weights, {"max_accuracy_drop": 0.01}, corrected)))
    left = load_file(tmp_path / "run" / "stages" / "02_quantize" / "model.safetensors")
    assert control.met and 0 < len(control.in_float) < len(LAYERS)
    for name in LAYERS:
        same = torch.equal(left[f"{name}.bias"], weights[f"{name}.bias"])
        assert same == (name in control.in_float), name
        assert torch.equal(left[f"{name}.weight"], weights[f"{name}.weight"])


def test_after_a_training_that_ruins_the_model_the_best_there_is_is_kept_and_said(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    def no_learning(outputs: Tensor, labels: Tensor) -> Tensor:
        return -10 * nn.functional.cross_entropy(outputs, labels)

    job = job_of(tmp_path / "run", weights, {"max_accuracy_drop": 0.01, "max_steps": 6}, {**PTQ, "trains": True})
    quantize = job.stages[1]
    ruining = make_job(tmp_path / "run", {"train": {"max_steps": 1}}, loss=no_learning).stages[0].build_evaluator
    stages = (job.stages[0], dataclasses.replace(quantize, build_evaluator=ruining), job.stages[2])
    events: list[Event] = []
    control = control_of(run_job(dataclasses.replace(job, stages=stages), events.append))
    assert not control.met and len(control.trials) == 2
    assert control.metric == max(trial.metric for trial in control.trials)
    (said,) = (e for e in events if isinstance(e, Note) and e.text.startswith("Accuracy control"))
    assert said.warning and "can't keep the bound, not even with all of the model in float" in said.text


def test_a_model_that_is_left_in_float_as_a_whole_is_no_failure(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    two_bits = {**PTQ, "targets": {"all": {"target_settings": {"weight": {"quant_dtype": "int2"}}}}}
    report = run_job(job_of(tmp_path / "run", weights, {"max_accuracy_drop": 0.0}, two_bits))
    control = control_of(report)
    assert control.in_float == LAYERS and control.met
    assert report.final.label == "left in float" and report.final.validation == control.baseline
    assert run_job(job_of(tmp_path / "run", weights, {"max_accuracy_drop": 0.0}, two_bits)).stages[1].reused
