"""Accuracy control of the stage `quantize`: parts of the quantized model return to float until the metric is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nnicompress import distributed
from nnicompress.evaluators.contract import Evaluator
from nnicompress.events import Note
from nnicompress.pipeline.context import Context
from nnicompress.quantization.attach import simulated
from nnicompress.quantization.control import Bound, InFloat, Outcome, Trials, curve, keep_accuracy
from nnicompress.quantization.partial import PartialPlans
from nnicompress.quantization.record import record
from nnicompress.quantization.result import QuantizationResult, from_state, to_state
from nnicompress.quantization.settings import QuantizerSettings
from nnicompress.report import words
from nnicompress.report.record import ControlRecord, TrialRecord
from nnicompress.tensors import all_tensors, set_tensors


def stored(context: Context) -> Mapping[str, Any] | None:
    """What an earlier process left when its training was over; None where it wasn't, or never began."""
    saved = distributed.from_main(context.checkpoint.load)
    return saved if saved is not None and "control" in saved else None


def go_on(context: Context, saved: Mapping[str, Any]) -> QuantizationResult:
    """Bring the model and the curves to where the training left them; the result of it, for all parts."""
    set_tensors(context.model, saved["tensors"])
    context.curves.resume(saved["curves"])
    return from_state(saved["control"]["result"])


class AccuracyControl:
    """Chooses which parts of the context's model, which was quantized as `result` says, stay in float.

    A part in float has the weights that the training left; where nothing was trained, those from before: a correction
    made up for the rounding of a weight that isn't rounded now.
    """

    def __init__(
        self,
        context: Context,
        evaluator: Evaluator,
        settings: QuantizerSettings,
        result: QuantizationResult,
        max_drop: float,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        """`saved`: of an earlier process, whose measurements are not made again."""
        self.context, self.evaluator, self.max_drop = context, evaluator, max_drop
        self.whole = result
        self.trials: Trials = {}
        if saved is not None:
            self.trials.update((tuple(in_float), metric) for in_float, metric in saved["control"]["trials"])
            context.listener(Note(f"goes on after {len(self.trials)} measurements"))
        self.before = context.phases[-1].model
        """As it came into the stage, in float."""
        with evaluator.bound(context.model):
            args, kwargs = evaluator.example_inputs(2)
            self.plans = PartialPlans(context.model, settings, record(context.model, args, kwargs))
        self.corrected = {} if settings.trains else self._corrected()

    def run(self) -> tuple[QuantizationResult, ControlRecord]:
        """Measure, choose, and leave the model's weights as they belong to the result that is returned."""
        listener, mode = self.context.listener, self.context.job.mode
        self._save()
        with self.evaluator.bound(self.before):
            bound = Bound(self._evaluate(), self.max_drop, mode)
        with self.evaluator.bound(self.context.model):
            outcome = keep_accuracy(
                self.plans.parts, bound, self._measure, self.trials, measured=self._save, listener=listener
            )
        self._put_back(outcome.in_float)
        found = self._record(outcome, bound)
        listener(Note(words.controlled(found, self.context.job), warning=not outcome.met))
        return self.plans.result(self.whole, outcome.in_float), found

    def _measure(self, in_float: InFloat) -> float:
        with self._as_before(in_float), simulated(self.context.model, self.plans.result(self.whole, in_float)):
            return self._evaluate()

    def _evaluate(self) -> float:
        return self.evaluator.evaluate("validation")["default"]

    # ----------------------------------------------------------------------------------------------------- corrections

    def _corrected(self) -> dict[str, str]:
        """Tensor that was changed without a training -> the layer whose weight it makes up for."""
        before, layers = all_tensors(self.before), {norm: layer for layer, norm in self.plans.batch_norms.items()}
        changed = (name for name, tensor in all_tensors(self.context.model).items() if not _equal(tensor, before[name]))
        owners = {name: name.rpartition(".")[0] for name in changed}
        return {name: owner if owner in self.plans.parts else layers[owner] for name, owner in owners.items()}

    @contextmanager
    def _as_before(self, in_float: Collection[str]) -> Iterator[None]:
        tensors = all_tensors(self.context.model)
        corrected = {
            name: tensors[name].detach().clone() for name, layer in self.corrected.items() if layer in in_float
        }
        self._put_back(in_float)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in corrected.items():
                    tensors[name].copy_(tensor)

    @torch.no_grad()
    def _put_back(self, in_float: Collection[str]) -> None:
        tensors, before = all_tensors(self.context.model), all_tensors(self.before)
        for name, layer in self.corrected.items():
            if layer in in_float:
                tensors[name].copy_(before[name])

    # ------------------------------------------------------------------------------------------------------- afterwards

    def _save(self) -> None:
        if distributed.is_main():
            self.context.checkpoint.save(
                {
                    "control": {
                        "result": to_state(self.whole),
                        "trials": [[list(in_float), metric] for in_float, metric in self.trials.items()],
                    },
                    "tensors": {name: tensor.detach() for name, tensor in all_tensors(self.context.model).items()},
                    "curves": self.context.curves.state(),
                }
            )

    def _record(self, outcome: Outcome, bound: Bound) -> ControlRecord:
        return ControlRecord(
            max_drop=bound.max_drop,
            baseline=bound.baseline,
            metric=outcome.metric,
            met=outcome.met,
            parts=len(self.plans.parts),
            in_float=outcome.in_float,
            trials=tuple(
                TrialRecord(in_float=in_float, metric=metric, holds=bound.holds(metric))
                for in_float, metric in curve(self.trials)
            ),
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a, b.to(a.device)))
