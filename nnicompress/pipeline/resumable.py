"""A training inside a stage that survives: saved every so many steps, gone on with after a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nnicompress import distributed
from nnicompress.evaluators.contract import Evaluator
from nnicompress.events import Event, Note, StageResumed, StepDone
from nnicompress.pipeline.checkpoint import State
from nnicompress.pipeline.context import Context
from nnicompress.pipeline.job import StagePlan
from nnicompress.tensors import all_tensors, set_tensors


class ResumableStage:
    """The evaluator of a stage that trains, and the stage's saved state.

    `compressor_state` gives what a compressor needs to go on. Steps are counted over all trainings of the stage; a kill
    repeats at most `job.save_every` of them.
    """

    def __init__(self, context: Context, plan: StagePlan, compressor_state: Callable[[], State] | None = None) -> None:
        self.context, self.every = context, context.job.save_every
        self.compressor_state = compressor_state
        self.steps = 0
        self.evaluator: Evaluator = plan.build_evaluator(self)
        self.able = "resume" in self.evaluator.capabilities

    def __call__(self, event: Event) -> None:
        """Hear an event of the evaluator: the state is consistent when a step is done."""
        stop = self.context.stop
        if not isinstance(event, StepDone) or not self.able:
            self.context.listener(event)
            return
        stop.armed = True
        self.context.listener(event)
        self.steps += 1
        if stop.requested is not None:
            self.save()
            stop.now()
        elif self.every and self.steps % self.every == 0:
            self.save()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around the trainings: afterwards a signal stops the run at once again."""
        try:
            yield
        finally:
            self.context.stop.armed = False

    def save(self) -> None:
        """Write the state as it is between two steps."""
        self.context.checkpoint.save(
            {
                "steps": self.steps,
                "tensors": {name: tensor.detach() for name, tensor in all_tensors(self.context.model).items()},
                "evaluator": self.evaluator.state_dict(),
                "compressor": None if self.compressor_state is None else self.compressor_state(),
                "curves": self.context.curves.state(),
            }
        )

    def go_on(self) -> Any:
        """Bring model, evaluator and curves to the saved state and return the compressor's; None: nothing was saved."""
        saved = distributed.from_main(self.context.checkpoint.load)
        if saved is None:
            if self.context.began_before and not self.able:
                text = "this training_func can't be continued in the middle: the stage begins again"
                self.context.listener(Note(text, warning=True))
            return None
        self.steps = saved["steps"]
        set_tensors(self.context.model, saved["tensors"])
        self.evaluator.load_state_dict(saved["evaluator"])
        self.context.curves.resume(saved["curves"])
        self.context.listener(StageResumed(self.steps))
        return saved["compressor"] or {}
