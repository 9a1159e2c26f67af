"""The shipped loop against loops written by hand: accumulation, clipping, schedules, validation, precision."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.data import DataLoader, IterableDataset

from nnicompress.data.roles import SeededSampler
from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.evaluators.training_step import SupervisedStep, to_device
from nnicompress.events import EpochDone, StepDone
from nnicompress.trace import trace
from tests.evaluators.cases import (
    BATCH_SIZE,
    assert_equal_weights,
    make_dataset,
    make_evaluator,
    make_loader,
    make_model,
    training_step,
)


def seeded_loader(seed: int, num_samples: int = 44) -> DataLoader[Any]:
    dataset = make_dataset(num_samples)

    def collate(samples: list[Any]) -> Any:
        return tuple(torch.stack(part) for part in zip(*samples, strict=True))

    class Keyed(torch.utils.data.Dataset[Any]):
        def __getitem__(self, key: Any) -> Any:
            return dataset[key[0]]

        def __len__(self) -> int:
            return num_samples

    return DataLoader(Keyed(), batch_size=BATCH_SIZE, sampler=SeededSampler(num_samples, seed), collate_fn=collate)


def test_two_epochs_with_everything_are_bit_identical_to_a_loop_by_hand() -> None:
    model, expected = make_model(), make_model()
    loop = TrainingLoop(seeded_loader, seed=11, accumulate=4, clip_norm=0.3)
    assert loop.steps_per_epoch == 2  # 44 images: 6 batches, windows of 4 and 2
    evaluator = TorchEvaluator(
        loop,
        trace(SGD)(model.parameters(), lr=0.1, momentum=0.9),
        SupervisedStep(nn.CrossEntropyLoss()),
        trace(OneCycleLR)(max_lr=0.2),
        evaluating_func=lambda model: 0.0,
    )
    torch.manual_seed(2)
    with evaluator.bound(model):
        result = evaluator.train(max_epochs=2)

    optimizer = SGD(expected.parameters(), lr=0.1, momentum=0.9)
    scheduler = OneCycleLR(optimizer, max_lr=0.2, total_steps=4)
    loader, losses = seeded_loader(11), []
    torch.manual_seed(2)
    expected.train()
    for _ in range(2):
        batches = list(loader)
        for window in (batches[:4], batches[4:]):
            optimizer.zero_grad()
            losses.append(0.0)
            for inputs, targets in window:
                loss = nn.functional.cross_entropy(expected(inputs), targets)
                (loss / len(window)).backward()
                losses[-1] += loss.item() / len(window)
            nn.utils.clip_grad_norm_(expected.parameters(), 0.3)
            optimizer.step()
            scheduler.step()
    assert_equal_weights(model, expected)
    assert result.steps == 4 and result.epochs == 2.0 and result.losses == pytest.approx(losses)


def test_max_steps_ends_inside_an_epoch_and_a_full_epoch_is_an_epoch() -> None:
    model, epochs = make_model(), []
    evaluator = make_evaluator(
        model,
        TrainingLoop(make_loader),
        evaluating_func=lambda model: 1.0,
        listener=lambda event: epochs.append(event.epoch) if isinstance(event, EpochDone) else None,
    )
    with evaluator.bound(model):
        assert evaluator.train(max_steps=8).steps == 8 and epochs == [1]
        assert evaluator.train(max_steps=12).steps == 12 and epochs == [1, 1, 2]
        assert evaluator.train(max_steps=9, max_epochs=1).steps == 6


def test_a_second_training_sees_other_epochs_than_the_first() -> None:
    seen: list[list[float]] = []

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        seen[-1].append(batch[0][0, 0].item())
        return training_step(batch, model)

    model = make_model()
    evaluator = make_evaluator(model, TrainingLoop(seeded_loader, validate_every=0), step)
    with evaluator.bound(model):
        for training in ({"max_epochs": 1}, {"max_epochs": 2}, {"max_epochs": 1}):
            seen.append([])
            evaluator.train(**training)
    reference = seeded_loader(0)
    expected = [[batch[0][0, 0].item() for batch in reference] for _ in range(4)]
    assert seen == [expected[0], expected[1] + expected[2], expected[3]]


def test_schedules_by_epoch_and_their_lengths() -> None:
    rates: dict[str, list[float]] = {}
    for name, scheduler, interval in (
        ("cosine by step", trace(CosineAnnealingLR)(), "step"),
        ("cosine by epoch", trace(CosineAnnealingLR)(), "epoch"),
        ("milestones", trace(MultiStepLR)(milestones=[1, 2]), "epoch"),
        (
            "sequence",
            trace(SequentialLR)(
                schedulers=[trace(LinearLR)(total_iters=6), trace(CosineAnnealingLR)(T_max=12)], milestones=[6]
            ),
            "step",
        ),
    ):
        model = make_model()
        rates[name] = []
        evaluator = make_evaluator(
            model,
            TrainingLoop(make_loader, interval=interval),  # type: ignore[arg-type]
            lr_schedulers=scheduler,
            listener=lambda e, name=name: rates[name].append(e.learning_rate) if isinstance(e, StepDone) else None,
        )
        with evaluator.bound(model):
            evaluator.train(max_epochs=3)
            evaluator.train(max_steps=13)
    cosine = [0.05 * (1 + math.cos(math.pi * step / 18)) for step in range(18)]
    assert rates["cosine by step"][:18] == pytest.approx(cosine)
    assert rates["cosine by step"][18:] == pytest.approx([0.05 * (1 + math.cos(math.pi * s / 13)) for s in range(13)])
    assert rates["cosine by epoch"][:18] == pytest.approx([0.1] * 6 + [0.075] * 6 + [0.025] * 6)
    assert rates["cosine by epoch"][18:] == pytest.approx([0.1] * 6 + [0.075] * 6 + [0.025])  # 13 steps: 3 epochs
    assert rates["milestones"][:18] == pytest.approx([0.1] * 6 + [0.01] * 6 + [0.001] * 6)
    assert rates["sequence"][0] == pytest.approx(0.1 / 3) and rates["sequence"][6] == pytest.approx(0.1)


def test_a_schedule_without_a_length_says_what_is_missing() -> None:
    def loop(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        raise AssertionError(max_epochs)

    model = make_model()
    evaluator = make_evaluator(model, loop, lr_schedulers=trace(OneCycleLR)(max_lr=0.1))
    with evaluator.bound(model), pytest.raises(UserError, match="OneCycleLR needs total_steps.*steps_per_epoch"):
        evaluator.train(max_epochs=2)
    model = make_model()
    evaluator = make_evaluator(model, lr_schedulers=trace(MultiStepLR)(gamma=0.1))
    with evaluator.bound(model), pytest.raises(UserError, match="MultiStepLR: missing a required argument: 'mileston"):
        evaluator.train(max_epochs=2)


def test_reduce_on_plateau_follows_the_validation_metric() -> None:
    model, rates = make_model(), []
    scores = iter([0.5, 0.6, 0.6, 0.6, 0.6])
    evaluator = make_evaluator(
        model,
        TrainingLoop(make_loader, interval="epoch"),
        lr_schedulers=trace(ReduceLROnPlateau)(mode="max", factor=0.1, patience=1),
        evaluating_func=lambda model: next(scores),
        listener=lambda e: rates.append(e.learning_rate) if isinstance(e, StepDone) else None,
    )
    with evaluator.bound(model):
        evaluator.train(max_epochs=5)
    assert rates[::6] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.01])
    evaluator = make_evaluator(model, TrainingLoop(make_loader), lr_schedulers=trace(ReduceLROnPlateau)())
    with evaluator.bound(model), pytest.raises(UserError, match="needs interval 'epoch', .* and an evaluating_func"):
        evaluator.train(max_epochs=1)


def test_validation_leaves_the_training_as_it_is() -> None:
    def evaluating_func(model: nn.Module) -> dict[str, float]:
        assert model.training  # the evaluator doesn't decide on modes for the user's function
        model.eval()
        torch.rand(100)
        return {"default": 1.0, "other": 2.0}

    results = []
    for func, every in ((evaluating_func, 1), (evaluating_func, 2), (None, 1)):
        model = make_model()
        evaluator = make_evaluator(model, TrainingLoop(make_loader, validate_every=every), evaluating_func=func)
        torch.manual_seed(4)
        with evaluator.bound(model):
            metrics = evaluator.train(max_epochs=2).metrics
        results.append((model, metrics))
    measured = {"default": 1.0, "other": 2.0}
    assert [metrics for _, metrics in results] == [(measured, measured), ({}, measured), ({}, {})]
    assert_equal_weights(results[0][0], results[2][0])
    assert_equal_weights(results[1][0], results[2][0])


def test_a_loss_that_is_not_finite_ends_the_job_before_the_step() -> None:
    model = make_model()
    calls = 0

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return training_step(batch, model) * (float("nan") if calls == 8 else 1.0)

    evaluator = make_evaluator(model, TrainingLoop(make_loader), step)
    message = r"the loss is nan at step 8 \(epoch 2\); lower the learning rate \(it is 0\.1 now\)"
    with evaluator.bound(model), pytest.raises(JobError, match=message):
        evaluator.train(max_epochs=3)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_loss_that_is_not_finite_where_nothing_is_trained_is_no_matter_of_the_learning_rate() -> None:
    model = make_model()
    evaluator = make_evaluator(model, TrainingLoop(make_loader), lambda batch, model: training_step(batch, model) / 0)
    with evaluator.bound(model), pytest.raises(JobError, match="the loss is inf on batch 1, and no weight was changed"):
        evaluator.iterate(2)


def test_a_model_without_a_parameter_to_train_is_refused() -> None:
    model = make_model().requires_grad_(False)
    evaluator = make_evaluator(model, TrainingLoop(make_loader))
    with evaluator.bound(model), pytest.raises(UserError, match="the loss depends on no parameter with requires_grad"):
        evaluator.train(max_epochs=1)


def test_bfloat16_runs_the_model_under_autocast_and_keeps_float32_weights() -> None:
    model, dtypes = make_model(), []

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        inputs, targets = batch
        outputs = model(inputs)
        dtypes.append(outputs.dtype)
        return nn.functional.cross_entropy(outputs, targets)

    evaluator = make_evaluator(model, TrainingLoop(make_loader, precision="bfloat16"), step)
    with evaluator.bound(model):
        losses = evaluator.train(max_epochs=5).losses
    assert set(dtypes) == {torch.bfloat16} and all(p.dtype == torch.float32 for p in model.parameters())
    assert statistics.mean(losses[-6:]) < statistics.mean(losses[:6])


def test_data_without_a_length_train_but_name_what_is_unknown() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(make_dataset(20))

    model = make_model()
    loop = TrainingLoop(lambda seed: DataLoader(Stream(), batch_size=4), accumulate=2)
    evaluator = make_evaluator(model, loop)
    with evaluator.bound(model):
        result = evaluator.train(max_epochs=2)
        assert result.steps == 6 and result.epochs is None and len(result.metrics) == 2
    evaluator = make_evaluator(model, loop, lr_schedulers=trace(OneCycleLR)(max_lr=0.1))
    with evaluator.bound(model), pytest.raises(UserError, match="OneCycleLR needs total_steps"):
        evaluator.train(max_epochs=1)


@pytest.mark.parametrize(
    ("loop", "arguments", "message"),
    [
        (TrainingLoop(lambda seed: []), {"max_epochs": 1}, "the training data have no batches"),
        (TrainingLoop(make_loader), {}, "needs max_epochs or max_steps"),
        (
            TrainingLoop(lambda seed: [torch.zeros(8, 5)]),
            {"max_epochs": 1},
            "a batch is Tensor; .* take pairs",
        ),
        (TrainingLoop(lambda seed: [(1, 2, 3)]), {"max_epochs": 1}, "a batch is tuple of 3"),
    ],
)
def test_wrong_data_are_told(loop: TrainingLoop, arguments: dict[str, int], message: str) -> None:
    model = make_model()
    evaluator = make_evaluator(model, loop, SupervisedStep(nn.CrossEntropyLoss()))
    with evaluator.bound(model), pytest.raises(UserError, match=message):
        evaluator.train(**arguments)


def test_the_supervised_step_passes_inputs_in_their_form() -> None:
    class Model(nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": first - 2 * second}

    loss = SupervisedStep(lambda predictions, targets: (predictions - targets).sum())
    first, second, targets = torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([5.0])
    assert loss(((first, second), targets), Model()) == -4
    assert loss(({"second": second, "first": first}, targets), Model()) == -4
    identity = SupervisedStep(lambda predictions, targets: predictions)
    assert identity((first, targets), nn.Identity()) is first
    with pytest.raises(UserError, match="mapping without 'logits'; it has \\['x'\\]"):
        identity((first, targets), lambda inputs: {"x": inputs})  # type: ignore[arg-type]


def test_batches_move_to_the_models_device() -> None:
    batch = (torch.zeros(2), {"mask": torch.ones(2), "name": "a"}, [torch.zeros(1)])
    moved = to_device(batch, torch.device("meta"))
    assert moved[0].is_meta and moved[1]["mask"].is_meta and moved[1]["name"] == "a" and moved[2][0].is_meta


@pytest.mark.slow
def test_the_loops_own_cost_a_step_is_small() -> None:
    """Beside the same loop by hand, both with a model that costs next to nothing, so that only the loop shows.

    Half of such a step (0.2 to 0.4 ms) is less than 2 % of a step of a small ResNet. The least of several rounds of
    CPU time is what other processes disturb least.
    """
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(300)]
    loss = nn.CrossEntropyLoss()

    def by_hand() -> None:
        model = nn.Linear(4, 3)
        optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
        for inputs, targets in batches:
            optimizer.zero_grad()
            value = loss(model(inputs), targets)
            value.backward()
            optimizer.step()
            value.item()

    def shipped() -> None:
        model = nn.Linear(4, 3)
        optimizer = trace(SGD)(model.parameters(), lr=0.01, momentum=0.9)
        evaluator = TorchEvaluator(TrainingLoop(lambda seed: batches), optimizer, SupervisedStep(loss))
        with evaluator.bound(model):
            evaluator.train(max_epochs=1)

    times: dict[Any, list[float]] = {by_hand: [], shipped: []}
    for _ in range(15):
        for run in (by_hand, shipped):
            start = time.process_time()
            run()
            times[run].append(time.process_time() - start)
    assert min(times[shipped]) < 1.5 * min(times[by_hand])
