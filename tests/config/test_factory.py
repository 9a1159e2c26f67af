"""The factory turns a recipe into a job: everything built, nothing started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nnicompress.config.compose import compose
from nnicompress.errors import ConfigError, InputErrors
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.events import Event, StepDone, silent
from nnicompress.factory import build_job
from nnicompress.pipeline.job import Job
from nnicompress.trust import allow

SMALL = ("recipe=taylorfo_resnet", "model.width=4")


def job_of(*overrides: str, smoke: bool = False) -> Job:
    return build_job(compose([*SMALL, *overrides]), smoke=smoke)


def test_a_job_holds_all_that_the_recipe_says() -> None:
    job = job_of("seed=7", "data.batch_size=32", "runtime=cpu")
    assert (job.name, job.seed, job.batch_size, job.metric, job.mode) == ("taylorfo_resnet", 7, 32, "accuracy", "max")
    assert (job.runtime.device, job.runtime.threads) == ("cpu", None)
    assert job.run_dir.parent == Path("runs")
    assert job.expected.accuracy is not None
    assert job.expected.accuracy.min == 0.945
    assert [plan.name for plan in job.stages] == ["train", "prune", "shrink", "finetune", "export", "evaluate"]
    assert [plan.compressor is not None for plan in job.stages] == [False, True, False, False, False, False]
    assert job.resolved_config["model"]["num_classes"] == 10
    assert job.resolved_config["scheduler"]["max_lr"] == 0.1


def test_each_build_of_the_model_is_fresh() -> None:
    job = job_of()
    torch.manual_seed(0)
    first = job.build_model.build()
    torch.manual_seed(0)
    second = job.build_model.build()
    assert first is not second
    assert torch.equal(first.conv1.weight, second.conv1.weight)


def test_an_evaluator_trains_with_the_settings_of_its_stage() -> None:
    job = job_of("evaluator.clip_norm=1.0", "evaluator.accumulate=2")
    model = job.build_model.build()
    for name, highest in (("train", 0.1), ("finetune", 0.005)):
        events: list[Event] = []
        plan = next(plan for plan in job.stages if plan.name == name)
        evaluator = plan.build_evaluator(events.append)
        assert isinstance(evaluator, TorchEvaluator)
        with evaluator.bound(model):
            assert evaluator.train(max_steps=4).steps == 4
        rates = [event.learning_rate for event in events if isinstance(event, StepDone)]
        # OneCycleLR rises from max_lr / 25 to max_lr within the first 30 % of the steps.
        assert rates[0] == pytest.approx(highest / 25)
        assert max(rates) <= highest
        assert max(rates) > highest / 2


def test_the_shipped_loop_equals_a_hand_written_one() -> None:
    overrides = ("scheduler=multistep", "scheduler.milestones=[1]")
    job = job_of(*overrides)
    torch.manual_seed(1)
    model = job.build_model.build()
    torch.manual_seed(1)
    twin = job.build_model.build()
    with (evaluator := job.stages[0].build_evaluator(silent)).bound(model):
        evaluator.train(max_steps=5)

    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    twin.train()
    for step, (inputs, targets) in enumerate(job.data.train_loader(0)):
        if step == 5:
            break
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(twin(inputs), targets).backward()
        optimizer.step()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_evaluation_is_the_metric_of_the_recipe() -> None:
    job = job_of()
    model = job.build_model.build().eval()
    with (evaluator := job.stages[0].build_evaluator(silent)).bound(model):
        for split, loader in (("validation", job.data.validation_loader()), ("test", job.data.test_loader())):
            with torch.no_grad():
                hits = [(model(inputs).argmax(1) == targets) for inputs, targets in loader]
            assert evaluator.evaluate(split)["default"] == pytest.approx(torch.cat(hits).float().mean().item())


def test_parameter_groups_of_the_recipe() -> None:
    job = job_of('optimizer.param_groups=[{params_re: "bn|downsample.1|bias", weight_decay: 0}]')
    model = job.build_model.build()
    evaluator: Any = job.stages[0].build_evaluator(silent)
    with evaluator.bound(model):
        seen: list[list[float]] = []
        evaluator.before_step(lambda event: seen.append([1.0]))
        evaluator.train(max_steps=1)
        groups = evaluator.state_dict()["optimizers"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [5e-4, 0]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert seen == [[1.0]]


def test_smoke_has_two_batches() -> None:
    job = job_of(smoke=True)
    assert job.smoke
    assert len(job.data.train_loader(0)) == 2
    assert len(list(job.data.test_loader())) == 2


def test_what_cannot_be_built_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="fold: 9 is outside"):
        job_of("data.fold=9")
    with pytest.raises(InputErrors) as caught:
        job_of("+model.wdith=3", "+optimizer.momentm=1")
    assert len(caught.value.errors) == 2
    with pytest.raises(InputErrors, match="unknown key 'sed'"):
        job_of("+sed=1")


LOOP = """
def train(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs, data):
    for batch in data.train_loader(seed=0):
        optimizer.zero_grad()
        training_step(batch, model).backward()
        optimizer.step()
        lr_scheduler.step()

train.steps_per_epoch = lambda data: len(data.train_loader(seed=0))

def how_often(model, split, data):
    return float(len(data.test_loader() if split == "test" else data.validation_loader()))
"""


def test_functions_of_the_users_get_the_data_and_the_report_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop_with_data.py").write_text(LOOP)
    monkeypatch.chdir(tmp_path)
    job = job_of("evaluator.training_func=loop_with_data.train", "evaluator.evaluating_func=loop_with_data.how_often")
    assert job.metric == "how often"
    evaluator, model = job.stages[0].build_evaluator(silent), job.build_model.build()
    with evaluator.bound(model):
        result = evaluator.train(max_epochs=1)
        assert (result.steps, result.epochs) == (len(job.data.train_loader(0)), 1.0)
        assert evaluator.evaluate("test") == {"default": float(len(job.data.test_loader()))}


def test_code_that_lies_beside_a_recipe_is_found_and_needs_trust(tmp_path: Path) -> None:
    """In a folder that is neither shipped nor the current one, code must be trusted by name."""
    (tmp_path / "net_beside.py").write_text("from torch import nn\nclass Net(nn.Flatten):\n    pass\n")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("# Mine\nmodel: {_target_: net_beside.Net}\nstages: {train: {max_epochs: 1}}\n")
    overrides = [f"recipe={recipe}", "~model.num_classes", "~model.in_channels", "~model.width"]
    with pytest.raises(InputErrors, match="net_beside.Net.* may not be called from a config; .*--trust net_beside"):
        build_job(compose(overrides))
    with allow(["net_beside"]):
        assert type(build_job(compose(overrides)).build_model.build()).__name__ == "Net"
