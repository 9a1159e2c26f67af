"""Names and numbers of a Trainer's evaluation: the default metric, and the exact perplexity of language models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from nnicompress.errors import UserError, did_you_mean

IGNORED = -100
"""The label of positions that count nowhere."""

_RUNTIME = (
    "runtime",
    "samples_per_second",
    "steps_per_second",
    "tokens_per_second",
    "model_preparation_time",
    "jit_compilation_time",
)


def plain_metrics(found: Mapping[str, Any], prefix: str = "eval") -> dict[str, float]:
    """What a Trainer measured, without prefix, and without what it says about time and memory."""
    metrics = {}
    for key, value in found.items():
        name = key.removeprefix(f"{prefix}_")
        if name == key or name.endswith(_RUNTIME) or name.startswith("mem_"):
            continue
        if isinstance(value, Real):
            metrics[name] = float(value)
    return metrics


def with_default(metrics: Mapping[str, float], metric: str | None) -> dict[str, float]:
    """`metrics` with the key `default`: the one named `metric`, else compute_metrics' first, else `loss`.

    Raises:
        UserError: there is none of that name, or nothing was measured.
    """
    if metric is not None:
        name = metric.removeprefix("eval_")
        if name not in metrics:
            near = did_you_mean(name, metrics) or f"; there is {', '.join(map(repr, metrics)) or 'none'}"
            raise UserError(f"metric: the evaluation measures no {name!r}{near}")
        return {**metrics, "default": metrics[name]}
    if "default" in metrics:
        return dict(metrics)
    own = [name for name in metrics if name not in ("loss", "perplexity")]
    chosen = own[0] if own else "loss"
    if chosen not in metrics:
        raise UserError(
            "the evaluation measured nothing: the batches of eval_dataset have no labels, and there is no "
            "compute_metrics; give one of them"
        )
    return {**metrics, "default": metrics[chosen]}


def measured_in_training(
    metrics: Mapping[str, float], *, datasets: Sequence[str], metric: str | None
) -> dict[str, float]:
    """As `with_default`, of what a Trainer measured while it trains: with several datasets, their names in front."""
    if not datasets:
        return with_default(metrics, metric)
    by_dataset: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        dataset = max((d for d in datasets if name.startswith(f"{d}_")), key=len, default=None)
        if dataset is not None:
            by_dataset.setdefault(dataset, {})[name.removeprefix(f"{dataset}_")] = value
    return with_default(averaged(by_dataset), metric)


def averaged(by_dataset: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean over datasets of each metric that all of them have, then each dataset's own as `DATASET_METRIC`."""
    first, *others = by_dataset.values()
    shared = [name for name in first if all(name in other for other in others)]
    means = {name: sum(metrics[name] for metrics in by_dataset.values()) / len(by_dataset) for name in shared}
    own = {f"{dataset}_{name}": value for dataset, metrics in by_dataset.items() for name, value in metrics.items()}
    return {**means, **own}


class TokenLosses:
    """Sums the cross-entropy of every token that counts, whatever batch it came in and whatever loss is trained."""

    def __init__(self, *, shift: bool) -> None:
        """`shift`: the logits of a position predict the next one's label."""
        self.shift, self.total, self.count = shift, 0.0, 0

    def add(self, outputs: Any, labels: Tensor) -> None:
        """Take the outputs of a model for `labels` `[N, T]`; outputs without logits `[N, T, V]` are passed over."""
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[-1]
        if not isinstance(logits, Tensor) or logits.ndim != labels.ndim + 1:
            return
        if self.shift:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        labels = labels.to(logits.device).flatten()
        loss = nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(), labels, ignore_index=IGNORED, reduction="sum"
        )
        self.total += float(loss)
        self.count += int((labels != IGNORED).sum())

    def perplexity(self, summed: Callable[[Tensor], Tensor]) -> float | None:
        """Over the tokens of all processes, whose numbers `summed` adds up; None where no token counted."""
        total, count = summed(torch.tensor([self.total, self.count], dtype=torch.float64)).tolist()
        if not count:
            return None
        mean = total / count
        return math.exp(mean) if mean < math.log(torch.finfo(torch.float64).max) else math.inf


def token_losses(model: object) -> TokenLosses | None:
    """For a causal or masked language model, by the name of its class or of one that it derives from."""
    names = {cls.__name__ for cls in type(model).__mro__}
    if names & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return TokenLosses(shift=True)
    return TokenLosses(shift=False) if names & set(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()) else None
