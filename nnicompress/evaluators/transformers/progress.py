"""The callback that turns a Trainer's events into ours, and knows when its state is consistent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from nnicompress.evaluators.record import Record
from nnicompress.evaluators.session import Session
from nnicompress.evaluators.transformers.fetching import Fetching
from nnicompress.evaluators.transformers.metrics import plain_metrics
from nnicompress.events import EpochDone, TrainingStarted


class Progress(TrainerCallback):
    """Tells of a step when the Trainer has done all that follows it: schedule, evaluation, checkpoint.

    So whoever takes the state then can go on from it with nothing left out. That is at the beginning of the next
    step, of the next epoch, or at the end.
    """

    session: Session

    def __init__(
        self,
        record: Record,
        fetching: Fetching,
        named: Callable[[Mapping[str, float]], Mapping[str, float]],
        before_evaluation: Callable[[], None],
        measured: Mapping[str, float],
    ) -> None:
        """`named` adds `default` to what an evaluation measured; `measured` is so far, in an epoch that goes on."""
        self.record, self.fetching, self.named, self.before_evaluation = record, fetching, named, before_evaluation
        self.finished = False
        self.batches_taken = 0
        self._accumulate = 1
        self._batches: int | None = None
        self.measured = dict(measured)
        self._ended: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Learn how long an epoch is."""
        self._accumulate = args.gradient_accumulation_steps
        try:
            self._batches = len(kwargs["train_dataloader"])
        except TypeError:
            self._batches = None
        else:
            self.record.per_epoch = math.ceil(self._batches / self._accumulate)
        self.record.listener(TrainingStarted(state.max_steps))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last epoch is over, its evaluation included."""
        self.batches_taken = 0
        self._settle()
        self.fetching.epoch_begins()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last step is over, its evaluation included."""
        self.fetching.step_begins()
        per_epoch = self.record.per_epoch
        self.batches_taken = (state.global_step % per_epoch if per_epoch else state.global_step) * self._accumulate
        self._settle()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what was measured for the end of the epoch."""
        self.measured |= plain_metrics(kwargs["metrics"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The epoch's steps are done, and its evaluation comes next; a part of an epoch is none."""
        per_epoch = self.record.per_epoch
        if per_epoch is not None and state.global_step % per_epoch == 0:
            self._ended = state.global_step // per_epoch

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All is done, and the best weights are loaded where they were asked for."""
        self.before_evaluation()
        self.finished = True
        self._settle()

    def _settle(self) -> None:
        ended, self._ended = self._ended, None
        if ended is None:
            self.session.step_over()
            return
        metrics = self.named(self.measured) if self.measured else {}
        self.measured = {}
        # In the record before the step is told of: a state that is saved then has the epoch's metrics.
        self.record.metrics.append(metrics)
        self.session.step_over()
        self.record.listener(EpochDone(ended, metrics))
