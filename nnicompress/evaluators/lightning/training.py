"""One `train` of the Lightning evaluator, from its start to its result, and its state in between."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nnicompress.errors import UserError
from nnicompress.evaluators import demands
from nnicompress.evaluators.contract import TrainResult
from nnicompress.evaluators.lightning import checkpoint
from nnicompress.evaluators.lightning.averaging import averaged_copies, restart_swa
from nnicompress.evaluators.lightning.fit import Given, WatchedFit
from nnicompress.evaluators.lightning.metrics import averaged, of_validation, with_default
from nnicompress.evaluators.lightning.replay import DataPosition
from nnicompress.evaluators.lightning.trainers import Limits
from nnicompress.evaluators.rebuild import OwnGroup
from nnicompress.evaluators.record import Record
from nnicompress.evaluators.session import Hooks, Step
from nnicompress.events import EpochDone, Listener, TrainingFinished, TrainingStarted


class LightningTraining(WatchedFit):
    """Trains the bound model once; build it, then `run` it."""

    dry = False

    def __init__(
        self,
        given: Given,
        module: Any,
        model: nn.Module,
        hooks: Hooks,
        own: Sequence[OwnGroup],
        first_epoch: int,
        *,
        limits: Limits,
        before_evaluate: Iterable[Callable[[nn.Module], None]],
        listener: Listener,
        resume: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(given, module, model, hooks, own, first_epoch)
        self.limits, self.before_evaluate, self.listener, self.resume = limits, before_evaluate, listener, resume
        self.record = Record(listener, resume["per_epoch"] if resume else None, resume)
        self.budget: tuple[int, str] | None = None
        self.epochs = 0
        self._steps_told = self._steps_before = resume["steps"] if resume else 0
        if resume:
            self.epochs = resume["epochs"]
            data = {**resume["data"], "batches": resume["batches"]}
            self.position = DataPosition(resume["first_epoch"], self._epoch, self.between_batches, data)
        self._inside_epoch = False
        self._ended: dict[str, float] | None = dict(resume["ended"]) if resume and resume["ended"] is not None else None
        self._metrics: dict[str, float] = dict(resume["validated"]) if resume else {}
        self._started = self._collects_statistics = False
        self._stopped_early = False
        self._at_end: dict[str, Any] | None = None

    def run(self) -> tuple[TrainResult, str | None]:
        """Train; returns the result, and a warning where the fit did less than it was asked for."""
        with ExitStack() as stack:
            more: dict[str, Any] = {}
            if self.resume:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                more["ckpt_path"] = checkpoint.write(self.resume["checkpoint"], self.module.state_dict(), folder)
            trainer = stack.enter_context(self.given.source.training(self.limits, self.around))
            self._fit(trainer, **more)
        assert self.session is not None
        self.session.finish()
        if not self._started and self.resume:  # nothing was left to do, and no hook was called
            self.listener(TrainingStarted(self.session.steps))
            self._tell_of_epoch()
            self.position.finish()
            self._at_end = {**self.resume, **self.record.state_dict(), "ended": None}
        self.listener(TrainingFinished(self.session.steps))
        return self.record.result(self.session.steps), self._check_steps(self.session.steps)

    @property
    def first_epoch_of_next(self) -> int:
        """The number of the epoch that the next training begins with, counted over all of them."""
        return self.position.first_epoch + self.epochs

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model's own weights, as values that `torch.load(weights_only=True)` reads."""
        state = self._at_end if self.trainer is None else self._state()
        if state is None:
            raise UserError("no training state: this training was cut off, and its state is gone; take it meanwhile")
        saved = state["checkpoint"]
        return {**state, "checkpoint": saved if isinstance(saved, Tensor) else checkpoint.as_tensor(saved)}

    def _state(self) -> dict[str, Any]:
        assert self.session is not None
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed if self._inside_epoch else 0
        return {
            "steps": self.session.steps,
            **self.record.state_dict(),
            "first_epoch": self.position.first_epoch,
            "num_optimizers": len(self.session.optimizers),
            "epochs": self.epochs,
            "per_epoch": self.record.per_epoch,
            "batches": batches,
            "ended": self._ended,
            "validated": self._metrics,
            "should_stop": bool(self.trainer.should_stop),
            "data": self.position.state_dict(),
            "checkpoint": checkpoint.dump(self.trainer, self.epochs, batches),
        }

    def _check_steps(self, steps: int) -> str | None:
        if steps == 0:
            raise UserError(
                "Trainer.fit made no optimizer step; look at limit_train_batches, at the length of the train loader, "
                "and whether training_step returns a loss"
            )
        if self.budget is None or steps == self.budget[0] or self._stopped_early:
            return None
        most, asked = self.budget
        if steps > most:
            raise UserError(f"Trainer.fit ran {steps} optimizer steps; {asked}: {steps - most} too many")
        return f"Trainer.fit ran {steps} optimizer steps; {asked}: {most - steps} too few"

    # --------------------------------------------------------------- what the session, the data and the callbacks tell

    def _optimizers_built(self, optimizers: list[Optimizer]) -> None:
        if self.resume and self.resume["num_optimizers"] != len(optimizers):
            raise UserError(
                f"the training state has {self.resume['num_optimizers']} optimizers, and the evaluator "
                f"{len(optimizers)}"
            )
        super()._optimizers_built(optimizers)

    def _step_done(self, step: Step) -> None:
        self.record.step_done(step)

    def between_batches(self) -> None:
        """All business of the batches so far is over; where a step is, its state is consistent here."""
        assert self.session is not None
        if self.session.steps != self._steps_told:
            self._steps_told = self.session.steps
            self.session.step_over()

    def between_epochs(self) -> None:
        """Tell of the last steps and of the epoch; then the random states are those of the next epoch's begin."""
        assert self.session is not None
        self.session.finish()
        self._tell_of_epoch()
        self.position.set_now()

    def fit_started(self, trainer: Any) -> None:
        """Under manual optimization Lightning counts all optimizers' steps; the first one's are meant."""
        if self.resume and self.resume["should_stop"]:
            trainer.should_stop = True
        if not self.module.automatic_optimization and self.limits.max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps = 0 if self._steps_before >= self.limits.max_steps else -1

    def train_started(self, trainer: Any) -> None:
        """Say how much there is to do."""
        if self.resume and not self.resume["batches"]:
            checkpoint.restore_between_epochs(trainer)
        self._inside_epoch = bool(self.resume and self.resume["batches"])
        if self._inside_epoch:
            restart_swa(trainer, self.module, self.given.package.get("callbacks.StochasticWeightAveraging"))
        batches, varies = (
            trainer.num_training_batches,
            self.given.package.get("callbacks.GradientAccumulationScheduler"),
        )
        constant = not any(isinstance(callback, varies) for callback in trainer.callbacks)
        if self.module.automatic_optimization and constant and not math.isinf(batches):
            self.record.per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        self.budget = demands.step_budget(self.limits.max_steps, self.limits.max_epochs, self.record.per_epoch)
        total = None if self.budget is None else self.budget[0]
        if total is None and self.limits == Limits() and self.record.per_epoch is not None:
            estimated = trainer.estimated_stepping_batches
            total = None if math.isinf(estimated) else int(estimated)
        self._started = True
        self.listener(TrainingStarted(total))
        self._tell_of_epoch()  # the last one before the cut

    def epoch_started(self, trainer: Any) -> None:
        """SWA swaps its average in here, for an epoch without training."""
        self._inside_epoch, self._collects_statistics = True, bool(trainer.fit_loop._skip_backward)
        if self._collects_statistics:
            self._watching.close()  # Lightning ends this epoch with a step, without gradients
            self.weights_will_be_read(trainer)

    def batch_done(self, trainer: Any) -> None:
        """End a manual optimization after the steps asked of the first optimizer."""
        assert self.session is not None
        if not self.module.automatic_optimization and self.session.steps == self.limits.max_steps:
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step

    def weights_will_be_read(self, trainer: Any) -> None:
        """Fire what compressors registered on the model, and on its averaged copies."""
        with torch.no_grad():
            for hook in self.before_evaluate:
                hook(self.model)
                for copy in averaged_copies(trainer.callbacks, self.module, self.model):
                    hook(copy)

    def validated(self, trainer: Any) -> None:
        """Keep the metrics of the epoch's last validation."""
        self._metrics = with_default(averaged([of_validation(trainer)]), self.given.metric)

    def epoch_ended(self, trainer: Any) -> None:
        """Count the epoch, where its data are used up."""
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._inside_epoch = False
            if not self._collects_statistics:
                self.epochs += 1
                self._ended, self._metrics = self._metrics, {}

    def train_ended(self, trainer: Any) -> None:
        """Tell of the last step, and keep the state for whoever asks after the fit; bytes are made of it only then.

        A fit that is resumed at its end calls no hook any more, so the user's callbacks must have ended this one.
        """
        self.weights_will_be_read(trainer)
        self.between_epochs()
        self._stopped_early = bool(trainer.should_stop)
        self._at_end = self._state()

    def _tell_of_epoch(self) -> None:
        if self._ended is not None:
            ended, self._ended = self._ended, None
            self.record.epoch_done(EpochDone(self.epochs, ended))
