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
        resume: Mapping[str, Any] | None,
    ) -> None:
        """`named` adds `default` to what an evaluation measured; `resume`: a state with what `state_dict` returned."""
        self.record, self.fetching, self.named, self.before_evaluation = record, fetching, named, before_evaluation
        self.finished = False
        self.batches_taken = 0
        self._accumulate = 1
        self._batches: int | None = None
        self.measured: dict[str, float] = dict(resume["measured"]) if resume else {}
        self._ended: int | None = None
        self._untold: tuple[int, dict[str, float]] | None = (
            (resume["epoch"], dict(resume["epoch_metrics"])) if resume and resume["epoch"] is not None else None
        )

    def state_dict(self) -> dict[str, Any]:
        """What was measured and nobody has been told of: in an epoch that goes on, and in one that is over."""
        epoch, metrics = self._untold or (None, {})
        return {"measured": dict(self.measured), "epoch": epoch, "epoch_metrics": metrics}

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
        self.tell_of_epoch()  # the last one before the cut

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

    def tell_of_epoch(self) -> None:
        """The epoch that is over and that the listener has not heard of, if there is one."""
        if self._untold is not None:
            (epoch, metrics), self._untold = self._untold, None
            self.record.epoch_done(EpochDone(epoch, metrics))

    def _settle(self) -> None:
        if self._ended is None:
            self.session.step_over()
            return
        metrics = dict(self.named(self.measured)) if self.measured else {}
        self._untold, self._ended, self.measured = (self._ended, metrics), None, {}
        # The listener may save a state when it hears of the last step; the epoch is untold in that one.
        self.session.finish()
        self.tell_of_epoch()
