"""One `train` of the torch evaluator, from its start to its result, and its state in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnicompress.errors import UserError
from nnicompress.evaluators import demands
from nnicompress.evaluators.contract import TrainResult
from nnicompress.evaluators.data_parallel import Alone
from nnicompress.evaluators.loop import Connection, TrainingLoop
from nnicompress.evaluators.preserve import random_states, set_random_states
from nnicompress.evaluators.rebuild import OwnGroup, Rebuilder
from nnicompress.evaluators.record import Record
from nnicompress.evaluators.session import Hooks, Session
from nnicompress.events import Listener, TrainingFinished, TrainingStarted


@dataclass(frozen=True)
class Loop:
    """The user's training: the functions, and how optimizers and schedulers are built for them."""

    training_func: Callable[..., object]
    training_step: Callable[[Any, nn.Module], Any]
    rebuilder: Rebuilder

    @property
    def shipped(self) -> TrainingLoop | None:
        """The training_func, where it is the shipped one."""
        return self.training_func if isinstance(self.training_func, TrainingLoop) else None

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch, where the training_func tells."""
        return getattr(self.training_func, "steps_per_epoch", None)

    def scheduler_steps(self, max_steps: int | None, max_epochs: int | None) -> int | None:
        """How often a scheduler will be stepped: once an optimizer step, or once an epoch of the shipped loop."""
        per_epoch = self.steps_per_epoch
        budget = demands.step_budget(max_steps, max_epochs, per_epoch)
        if self.shipped is None or self.shipped.interval == "step":
            return None if budget is None else budget[0]
        if max_steps is None:
            return max_epochs
        return None if budget is None or per_epoch is None else -(-budget[0] // per_epoch)

    def run(
        self,
        session: Session,
        schedulers: Sequence[Any],
        connection: Connection,
        max_steps: int | None,
        max_epochs: int | None,
    ) -> None:
        """Call the training_func under the eyes of `session`."""
        optimizers, passed = self.rebuilder.in_given_form(session.optimizers, schedulers)
        with self.shipped.connected(connection) if self.shipped else nullcontext():
            session.run(
                lambda: self.training_func(
                    session.model, optimizers, session.training_step, passed, max_steps, max_epochs
                )
            )


class Training:
    """Trains `model` once; build it, then `run` it."""

    def __init__(
        self,
        loop: Loop,
        model: nn.Module,
        hooks: Hooks,
        own: Sequence[OwnGroup],
        listener: Listener,
        *,
        max_steps: int | None,
        max_epochs: int | None,
        resume: Mapping[str, Any] | None,
        parallel: Alone,
    ) -> None:
        self.loop, self.listener, self.resume, self.parallel = loop, listener, resume, parallel
        self.max_steps, self.max_epochs, self.per_epoch = max_steps, max_epochs, loop.steps_per_epoch
        if max_epochs is not None and loop.shipped is None and self.per_epoch is None:
            demands.check_reads(loop.training_func, "max_epochs", max_epochs)
        self.budget = demands.step_budget(max_steps, max_epochs, self.per_epoch)
        self.record = Record(listener, self.per_epoch, resume)
        optimizers, self.schedulers = loop.rebuilder.build(
            model, own, lambda: loop.scheduler_steps(max_steps, max_epochs)
        )
        self.session = Session(
            model,
            optimizers,
            parallel.weighted(loop.training_step),
            hooks,
            on_step=self.record.step_done,
            steps=resume["steps"] if resume else 0,
            # Room to say by how much a loop overruns, without letting it run for hours.
            stop_at=None if self.budget is None else 2 * self.budget[0] + 10,
        )

    def run(
        self, evaluate: Callable[[], Mapping[str, float]] | None, epochs_done: dict[int, int]
    ) -> tuple[TrainResult, str | None]:
        """Train; returns the result, and a warning where the loop did less than it was asked for.

        `epochs_done` maps the `max_epochs` of earlier trainings to the steps they took, and takes up this one.
        """
        session = self.session
        max_steps, max_epochs = self._restore() if self.resume else (self.max_steps, self.max_epochs)
        self.listener(TrainingStarted(None if self.budget is None else self.budget[0]))
        if (max_steps is None or max_steps > 0) and (max_epochs is None or max_epochs > 0):
            connection = Connection(session.step_over, self.record.epoch_done, evaluate, parallel=self.parallel)
            self.loop.run(session, self.schedulers, connection, max_steps, max_epochs)
        self.listener(TrainingFinished(session.steps))
        warning = demands.check_steps(session.steps, session.stopped, self.budget)
        if self.max_epochs is not None and self.budget is None and not self.resume:
            demands.check_epochs_differ(epochs_done, self.max_epochs, session.steps)
        return self.record.result(session.steps), warning

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model's own weights, as values that `torch.load(weights_only=True)` reads."""
        shipped = self.loop.shipped
        return {
            "steps": self.session.steps,
            **self.record.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.session.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "random": random_states(),
            "loop": None if shipped is None else shipped.state_dict(),
        }

    def _restore(self) -> tuple[int | None, int | None]:
        """Set the saved state; returns the steps and epochs that the loop is still to be asked for."""
        assert self.resume is not None
        state = self.resume
        for what, built in (("optimizers", self.session.optimizers), ("schedulers", self.schedulers)):
            if len(state[what]) != len(built):
                raise UserError(f"the training state has {len(state[what])} {what}, and the evaluator {len(built)}")
            for one, saved in zip(built, state[what], strict=True):
                one.load_state_dict(saved)
        set_random_states(state["random"])
        done: int = state["steps"]
        if self.loop.shipped is not None:
            if state["loop"] is None:
                raise UserError("the training state was saved with a training_func of your own, not the shipped loop")
            self.loop.shipped.load_state_dict(state["loop"])
            return self.max_steps, self.max_epochs
        left_epochs: int | None = None
        if self.max_epochs is not None:
            if self.per_epoch is None or done % self.per_epoch:
                raise UserError(
                    f"your training_func can't go on after {done} steps, in the middle of max_epochs="
                    f"{self.max_epochs}; start this training over, or ask for max_steps"
                )
            left_epochs = self.max_epochs - done // self.per_epoch
        return None if self.max_steps is None else self.max_steps - done, left_epochs
