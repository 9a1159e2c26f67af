"""Training through the evaluator against the bare Lightning fit and against the torch evaluator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

from nnicompress.errors import UserError
from nnicompress.evaluators.lightning.evaluator import LightningEvaluator
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.events import EpochDone, Event, Note, StepDone, TrainingFinished, TrainingStarted
from nnicompress.trace import trace
from tests.evaluators.cases import assert_equal_weights, make_model, training_step
from tests.evaluators.lightning.cases import (
    Losses,
    Net,
    bare_fit,
    loaders,
    make_evaluator,
    make_trainer,
    ordered,
)


def assert_same_as_bare(net: type[Net], *, epochs: int = 2, **settings: Any) -> Any:
    """Weights and losses of `net`'s training are those of Lightning alone, bit by bit; returns the result."""
    expected, model = net(), net()
    losses = Losses(expected)
    torch.manual_seed(1)
    bare_fit(expected, max_epochs=epochs, **settings)
    evaluator = make_evaluator(make_trainer(**settings))
    torch.manual_seed(1)
    with evaluator.bound(model):
        result = evaluator.train(max_epochs=epochs)
    assert_equal_weights(model, expected)
    accumulate = settings.get("accumulate_grad_batches", 1)
    windows = [
        losses.values[e * 6 : e * 6 + 6][i : i + accumulate] for e in range(epochs) for i in range(0, 6, accumulate)
    ]
    assert result.losses == pytest.approx([sum(window) / len(window) for window in windows], rel=1e-6)
    return result


def test_losses_weights_and_metrics_are_those_of_the_bare_fit() -> None:
    expected, model, events = Net(), Net(), list[Event]()
    losses = Losses(expected)
    torch.manual_seed(1)
    trainer = bare_fit(expected, max_epochs=2)
    evaluator = make_evaluator(listener=events.append)
    torch.manual_seed(1)
    with evaluator.bound(model):
        result = evaluator.train(max_epochs=2)
    assert_equal_weights(model, expected)
    assert result.losses == tuple(losses.values) and result.steps == 12 and result.epochs == 2.0
    assert [set(metrics) for metrics in result.metrics] == [{"default", "val_loss", "val_acc"}] * 2
    assert result.metrics[-1]["default"] == float(trainer.callback_metrics["val_acc"])
    kinds = [type(event) for event in events]
    epoch = [StepDone] * 6 + [EpochDone]
    assert kinds == [TrainingStarted, *epoch, *epoch, TrainingFinished]
    assert events[0] == TrainingStarted(12) and events[-1] == TrainingFinished(12)
    assert events[1] == StepDone(1, losses.values[0], 0.1, 1 / 6)


@pytest.mark.parametrize("clip", [None, 0.3])
def test_it_is_the_training_of_the_torch_evaluator(clip: float | None) -> None:
    """The same recipe optimizer and schedule, model and batches: one trains a plain model, one a LightningModule."""
    plain, wrapped = make_model(), Net()
    loop = TrainingLoop(lambda seed: ordered(), accumulate=2, clip_norm=clip)
    build = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    schedule = trace(OneCycleLR)(max_lr=0.3)
    torch_evaluator = TorchEvaluator(loop, trace(SGD)(plain.parameters(), **build), training_step, schedule)
    evaluator = make_evaluator(
        make_trainer(accumulate_grad_batches=2, gradient_clip_val=clip),
        optimizers=trace(SGD)(wrapped.parameters(), **build),
        lr_schedulers=schedule,
    )
    torch.manual_seed(1)
    with torch_evaluator.bound(plain):
        expected = torch_evaluator.train(max_epochs=3)
    torch.manual_seed(1)
    with evaluator.bound(wrapped):
        result = evaluator.train(max_epochs=3)
    assert result.losses == pytest.approx(expected.losses, abs=1e-6) and result.steps == expected.steps == 9
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(wrapped.net.state_dict()[name], tensor, rtol=0, atol=1e-6)


class Several(Net):
    """Every form of `configure_optimizers`; `form` says which."""

    form = "optimizer"

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9)
        step, plateau = StepLR(optimizer, 1, 0.5), None
        if self.form == "plateau":
            plateau = ReduceLROnPlateau(optimizer, patience=0)
        return {
            "optimizer": optimizer,
            "list": [optimizer],
            "two lists": ([optimizer], [step]),
            "dict": {"optimizer": optimizer},
            "dict with scheduler": {"optimizer": optimizer, "lr_scheduler": step},
            "dict with config": {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": step, "interval": "step", "frequency": 4},
            },
            "plateau": {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss", "interval": "epoch"},
            },
            "tuple of dicts": ({"optimizer": optimizer, "lr_scheduler": {"scheduler": step, "interval": "epoch"}},),
        }[self.form]


FORMS = (
    "optimizer",
    "list",
    "two lists",
    "dict",
    "dict with scheduler",
    "dict with config",
    "plateau",
    "tuple of dicts",
)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_configure_optimizers(form: str) -> None:
    net = type("Several", (Several,), {"form": form})
    assert_same_as_bare(net, epochs=3)


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 4},
        {"gradient_clip_val": 0.2},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"val_check_interval": 0.5},
        {"limit_val_batches": 0},
    ],
    ids=str,
)
def test_the_trainers_own_settings_hold(settings: dict[str, Any]) -> None:
    result = assert_same_as_bare(Net, **settings)
    assert len(result.metrics) == 2
    if "limit_val_batches" in settings:
        assert result.metrics == ({}, {})


def test_steps_and_epochs_asked_override_the_trainers_own_for_this_call_alone() -> None:
    model = Net()
    for trainer in (make_trainer(max_epochs=2), Trainer(max_epochs=2, accelerator="cpu", logger=False)):
        evaluator = make_evaluator(trainer)
        with evaluator.bound(model):
            asked = {"max_steps": 8}, {}, {"max_epochs": 3}, {"max_epochs": 5, "max_steps": 4}, {}
            assert [evaluator.train(**limits).steps for limits in asked] == [8, 12, 18, 4, 12]


def test_hooks_see_clipped_gradients_before_and_new_weights_after() -> None:
    model, evaluator = Net(), make_evaluator(make_trainer(gradient_clip_val=0.05))
    seen: list[Tensor] = []

    def before(event: Any) -> None:
        assert event.model is model and not torch.is_grad_enabled()
        norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
        assert float(norm) <= 0.0501
        seen.append(model.net[0].weight.clone())

    def after(event: Any) -> None:
        assert event.step == len(seen) and not torch.equal(model.net[0].weight, seen[-1])

    with evaluator.bound(model):
        evaluator.before_step(before)
        evaluator.after_step(after)
        evaluator.train(max_steps=8)
    assert len(seen) == 8


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_penalty_counts_once_a_step_before_clipping(accumulate: int) -> None:
    class Penalised(Net):
        """By hand: the share of each batch adds up to one."""

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) + 0.05 * self.net[0].weight.square().sum()

    expected, model = Penalised(), Net()
    settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.4}
    torch.manual_seed(1)
    bare_fit(expected, max_epochs=2, **settings)
    evaluator = make_evaluator(make_trainer(**settings))
    torch.manual_seed(1)
    with evaluator.bound(model):
        evaluator.add_penalty(lambda model: 0.05 * model.get_parameter("net.0.weight").square().sum())
        evaluator.train(max_epochs=2)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


class TwoOptimizers(LightningModule):
    """Manual optimization: body and head in turn, windows of two batches, clipped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.automatic_optimization = make_model(), False

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc]
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss / 2)
        if (batch_idx + 1) % 2 == 0:
            self.clip_gradients(first, gradient_clip_val=0.3, gradient_clip_algorithm="norm")
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean(), batch_size=8)

    def configure_optimizers(self) -> Any:
        return SGD(self.net[:3].parameters(), lr=0.1, momentum=0.9), AdamW(self.net[3:].parameters(), lr=0.01)


def test_manual_optimization_with_two_optimizers() -> None:
    expected, model, steps = TwoOptimizers(), TwoOptimizers(), list[tuple[str, int]]()
    torch.manual_seed(1)
    bare_fit(expected, max_epochs=2)
    evaluator = make_evaluator()
    torch.manual_seed(1)
    with evaluator.bound(model):
        evaluator.before_step(lambda event: steps.append(("before", event.step)))
        evaluator.after_step(lambda event: steps.append(("after", event.step)))
        result = evaluator.train(max_epochs=2)
    assert_equal_weights(model, expected)
    assert result.steps == 6 and len(result.losses) == 6 and len(result.metrics) == 2
    assert steps == [pair for n in range(1, 7) for pair in (("before", n), ("after", n), ("after", n))]


def test_max_steps_are_those_of_the_first_of_two_optimizers() -> None:
    model, evaluator = TwoOptimizers(), make_evaluator()
    seen: list[int] = []
    with evaluator.bound(model):
        evaluator.before_step(lambda event: seen.append(event.step))
        assert evaluator.train(max_steps=5).steps == 5
        evaluator.iterate(4)
    assert seen == [1, 2, 3, 4, 5, 1, 2, 3, 4]


def test_a_manual_step_without_manual_backward_is_told() -> None:
    class Direct(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            nn.functional.cross_entropy(self(batch[0]), batch[1]).backward()
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.step()

    model, evaluator = Direct(), make_evaluator()
    with evaluator.bound(model), pytest.raises(UserError, match="call self.manual_backward"):
        evaluator.train(max_steps=2)


class Scheduled(Net):
    kind = "one cycle"

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        schedule = {
            "one cycle": lambda: OneCycleLR(optimizer, max_lr=0.2, total_steps=12),
            "lambda": lambda: LambdaLR(optimizer, lambda step: 1 / (2 + step)),
            "step": lambda: StepLR(optimizer, 2, 0.5),
            "sequential": lambda: SequentialLR(
                optimizer, [LambdaLR(optimizer, lambda s: 0.5), StepLR(optimizer, 1)], [3]
            ),
            "none": lambda: None,
        }[self.kind]()
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize("kind", ["one cycle", "lambda", "step", "sequential", "none"])
def test_own_parameters_have_a_group_that_the_users_schedule_sets(kind: str) -> None:
    net = type("Scheduled", (Scheduled,), {"kind": kind})
    model, evaluator, rates = net(), make_evaluator(), list[tuple[float, ...]]()
    scale = nn.Parameter(torch.ones(1))

    class Look(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            first, own = optimizer.param_groups
            assert own["params"][0] is scale and own["weight_decay"] == 0.0 and len(own["params"]) == 1
            rates.append((first["lr"], own["lr"]))

    evaluator = make_evaluator(make_trainer(callbacks=[Look()]))
    with evaluator.bound(model):
        evaluator.add_penalty(lambda model: 0.1 * (scale - 3).square().sum())
        evaluator.add_parameters([("scale", scale)])
        evaluator.train(max_steps=10)
    assert float(scale) > 1.05 and len(rates) == 10
    assert all(own == pytest.approx(first) for first, own in rates)
    assert len({first for first, _ in rates}) > 1 or kind == "none"


def test_own_parameters_that_are_in_the_module_leave_the_users_groups() -> None:
    class WithScale(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs) * self.scale

    groups: list[list[int]] = []

    class Look(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            groups.extend([len(group["params"]), group["lr"]] for group in trainer.optimizers[0].param_groups)

    model = WithScale()
    evaluator = make_evaluator(make_trainer(callbacks=[Look()]))
    with evaluator.bound(model):
        evaluator.add_parameters([("scale", model.scale)], lr=0.5)
        evaluator.train(max_steps=1)
    assert groups == [[6, 0.1], [1, 0.5]]


def test_the_users_callbacks_are_called_and_early_stopping_is_no_warning() -> None:
    called: list[str] = []

    class Mine(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            called.append("start")

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            called.append("epoch")

    model, events = Net(), list[Event]()
    stop = trace(EarlyStopping)(monitor="val_acc", mode="min", patience=1)
    evaluator = make_evaluator(make_trainer(callbacks=[trace(Mine)(), stop]), listener=events.append)
    with evaluator.bound(model):
        result = evaluator.train(max_epochs=10)
    assert 2 <= len(result.metrics) < 10 and called == ["start", *["epoch"] * len(result.metrics)]
    assert not [event for event in events if isinstance(event, Note)]


def test_the_sanity_check_is_no_training_and_no_epoch() -> None:
    model, sizes = Net(), list[int]()
    model.net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    evaluator = make_evaluator(make_trainer(num_sanity_val_steps=2))
    with evaluator.bound(model):
        result = evaluator.train(max_epochs=1)
    assert len(sizes) == 2 + 6 + 5 and result.steps == 6 and len(result.losses) == 6 and len(result.metrics) == 1


@pytest.mark.parametrize("where", ["module", "datamodule", "built datamodule", "data object"])
def test_data_come_from_wherever_lightning_takes_them(where: str) -> None:
    class WithLoaders(Net):
        def train_dataloader(self) -> Any:
            assert self.trainer is not None
            return ordered()

        def val_dataloader(self) -> Any:
            return ordered(40)

    class Module(LightningDataModule):
        def setup(self, stage: str) -> None:
            self.stage = stage

        train_dataloader, val_dataloader = WithLoaders.train_dataloader, WithLoaders.val_dataloader

    class Object:
        num_classes, input_shape = 3, (5,)

        def train_loader(self, seed: int) -> Any:
            assert seed == 4
            return ordered()

        def validation_loader(self) -> Any:
            return ordered(40)

        def test_loader(self) -> Any:
            return ordered(40)

        def fingerprint(self) -> str:
            return ""

    expected = Net()
    torch.manual_seed(1)
    bare_fit(expected, max_epochs=2)
    model = WithLoaders() if where == "module" else Net()
    data = {
        "module": None,
        "datamodule": trace(Module)(),
        "built datamodule": Module(),
        "data object": Object(),
    }[where]
    evaluator = LightningEvaluator(make_trainer(), data, metric="val_acc", seed=4)
    torch.manual_seed(1)
    with evaluator.bound(model):
        result = evaluator.train(max_epochs=2)
        assert evaluator.evaluate()["default"] == result.metrics[-1]["default"]
        evaluator.iterate(2)
    assert_equal_weights(model, expected)
    owner = model if data is None else data
    assert not vars(owner).keys() & {"train_dataloader"} and vars(owner).get("trainer") is None


def test_a_models_checkpoints_are_written_where_the_user_says(tmp_path: Any) -> None:
    model = Net()
    checkpoint = trace(ModelCheckpoint)(dirpath=str(tmp_path), monitor="val_acc", mode="max", save_last=True)
    evaluator = make_evaluator(make_trainer(callbacks=[checkpoint]))
    with evaluator.bound(model):
        evaluator.train(max_epochs=2)
        evaluator.train(max_epochs=1)
    assert (tmp_path / "last.ckpt").exists()


def test_nothing_is_printed_or_written(capfd: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    model, evaluator = Net(), make_evaluator()
    with evaluator.bound(model):
        evaluator.train(max_epochs=1)
        evaluator.iterate(1)
        evaluator.evaluate()
    out, err = capfd.readouterr()
    assert out == err == "" and not list(tmp_path.iterdir())


def test_a_whole_model_in_evaluation_mode_is_trained_and_frozen_parts_stay_so() -> None:
    models = Net(), Net()
    models[1].eval()
    for model in models:
        evaluator = make_evaluator()
        torch.manual_seed(1)
        with evaluator.bound(model):
            evaluator.train(max_epochs=1)
    assert_equal_weights(*models)
    assert not models[1].net[1].training
    frozen = Net()
    frozen.net[1].eval()
    evaluator = make_evaluator()
    with evaluator.bound(frozen):
        evaluator.train(max_epochs=1)
    assert torch.equal(frozen.net[1].running_mean, torch.zeros(12))


def test_several_train_loaders_are_combined_as_lightning_does() -> None:
    class TwoLoaders(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["a"], 0) + super().training_step(batch["b"], 0)

    expected, model = TwoLoaders(), TwoLoaders()
    both = {"a": ordered(), "b": ordered(24)}
    torch.manual_seed(1)
    bare_fit(expected, both, max_epochs=1)
    evaluator = make_evaluator(data=loaders(train=both))
    torch.manual_seed(1)
    with evaluator.bound(model):
        assert evaluator.train(max_epochs=1).steps == 6
    assert_equal_weights(model, expected)
