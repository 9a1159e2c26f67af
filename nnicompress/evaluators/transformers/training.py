"""One `train` of the transformers evaluator, or a dry run of it: a Trainer, watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from nnicompress.errors import UserError, did_you_mean
from nnicompress.evaluators.contract import TrainResult
from nnicompress.evaluators.rebuild import OwnGroup
from nnicompress.evaluators.record import Record
from nnicompress.evaluators.session import Hooks, Session, Step
from nnicompress.evaluators.transformers import checkpoint
from nnicompress.evaluators.transformers.fetching import Fetching
from nnicompress.evaluators.transformers.optimizer import TrainerOptimizer
from nnicompress.evaluators.transformers.progress import Progress
from nnicompress.evaluators.transformers.watched import Watched
from nnicompress.events import Listener, TrainingFinished, TrainingStarted


class Watching:
    """Stands between a watched Trainer and a session; one for each run of a Trainer."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: TrainerOptimizer,
        own: Sequence[OwnGroup],
        before_evaluation: Callable[[], None],
        *,
        dry: bool,
    ) -> None:
        self.model, self.own, self.dry = model, own, dry
        self.before_evaluation = before_evaluation
        self.session: Session | None = None
        self._optimizer = optimizer
        self._built: Optimizer | None = None

    def optimizer(self, build: Callable[[], Optimizer]) -> Optimizer:
        """Built for the bound model."""
        self._built = self._optimizer.build(self.model, self.own, build, dry=self.dry)
        return self._built

    def scheduler(self, steps: int, build: Callable[[], Any]) -> Any:
        """Built on the torch optimizer: accelerate's wrapper around it takes no hooks."""
        assert self._built is not None
        return build() if self.dry else self._optimizer.scheduler(self._built, steps, build)

    def loss(self, loss: Tensor, *, adds_up: bool) -> Tensor:
        """Handed to the session."""
        assert self.session is not None, "a Trainer trains without a session"
        return self.session.take(loss, adds_up=adds_up)

    def attach(
        self, trainer: Watched, hooks: Hooks, on_step: Callable[[Step], None], *, steps: int, stop_at: int | None
    ) -> Session:
        """Build the optimizer of `trainer`, and a session that watches its steps."""
        trainer.watcher = self
        trainer.create_optimizer()
        assert self._built is not None
        self.session = Session(
            self.model,
            [self._built],
            None,
            hooks,
            on_step=on_step,
            steps=steps,
            stop_at=stop_at,
            without_loss=f"{type(trainer).__name__}.training_step never calls self.compute_loss with gradients on: "
            "compute the loss there; a compressor adds to it",
        )
        return self.session


class Training:
    """Trains the bound model once: build it, then a Trainer with its `progress` as callback, then `run` that."""

    def __init__(
        self,
        watching: Watching,
        hooks: Hooks,
        listener: Listener,
        named: Callable[[Mapping[str, float]], Mapping[str, float]],
        *,
        number: int,
        resume: Mapping[str, Any] | None,
    ) -> None:
        """`number` counts the evaluator's trainings from 0."""
        self.watching, self.hooks, self.listener, self.number, self.resume = watching, hooks, listener, number, resume
        self.record = Record(listener, None, resume)
        self.fetching = Fetching(resume["position"] if resume else None)
        self.progress = Progress(self.record, self.fetching, named, watching.before_evaluation, resume)
        self.trainer: Watched | None = None
        self.session: Session | None = None

    def run(self, trainer: Watched, folder: str) -> tuple[TrainResult, str | None]:
        """Train; returns the result, and a warning where the Trainer made fewer steps than it was asked for.

        Raises:
            UserError: it made no step.
        """
        self.trainer = trainer
        steps = self.resume["steps"] if self.resume else 0
        self.session = session = self.watching.attach(
            trainer, self.hooks, self.record.step_done, steps=steps, stop_at=None
        )
        self.progress.session = session
        start = None
        if self.resume is not None:
            start = checkpoint.write(self.resume, trainer, folder)
        try:
            session.run(lambda: trainer.train(resume_from_checkpoint=start))
        except KeyError as error:
            if "metric_for_best_model" not in str(error):
                raise
            name, measured = str(trainer.args.metric_for_best_model).removeprefix("eval_"), self.progress.measured
            near = did_you_mean(name, measured) or f"; there is {', '.join(map(repr, measured))}"
            raise UserError(f"args: metric_for_best_model: the evaluation measures no {name!r}{near}") from error
        self.listener(TrainingFinished(session.steps))
        if session.steps == steps and not steps:
            raise UserError("the Trainer made no optimizer step; look whether train_dataset has samples")
        # The Trainer's own count: a step that a gradient scaler skips is none of the optimizer's.
        made, asked = trainer.state.global_step, trainer.state.max_steps
        fewer = f"the Trainer made {made} optimizer steps; {asked} were asked for: a callback stopped it"
        return self.record.result(session.steps), fewer if made < asked else None

    def done_before(self, per_epoch: int | None) -> TrainResult:
        """The result of a training that was complete when it was saved."""
        assert self.resume is not None
        self.record.per_epoch = per_epoch
        steps = self.resume["steps"]
        self.listener(TrainingStarted(steps))
        self.progress.tell_of_epoch()
        self.listener(TrainingFinished(steps))
        return self.record.result(steps)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model's own weights, as values that `torch.load(weights_only=True)` reads."""
        assert self.trainer is not None and self.session is not None
        return {
            "number": self.number,
            "steps": self.session.steps,
            "finished": self.progress.finished,
            "per_epoch": self.record.per_epoch,
            "position": self.fetching.state_dict(self.progress.batches_taken),
            **self.progress.state_dict(),
            **self.record.state_dict(),
            **checkpoint.read(self.trainer),
        }
