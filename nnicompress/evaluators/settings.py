"""The settings of a recipe's `evaluator` group."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nnicompress.settings import Settings

Node = dict[str, Any]


class EvaluatorSettings(Settings):
    """How a recipe trains and evaluates: the shipped loop and evaluation, or functions of the user's own."""

    name: Literal["torch"] = "torch"
    """The engine: `torch` is a native PyTorch loop."""
    loss: Node | None = None
    """How to build the loss, `{_target_: torch.nn.CrossEntropyLoss}`; called as `loss(outputs, targets)`."""
    metric: Node | None = None
    """How to build a torchmetrics metric; updated with `(outputs, targets)` of each batch."""
    mode: Literal["min", "max"] = "max"
    """Whether a larger metric is better."""
    training_func: str | None = None
    """Dotted name of the user's loop; None is the shipped one."""
    training_step: str | None = None
    """Dotted name of `(batch, model) -> loss`; None is `loss(model(inputs), targets)`."""
    evaluating_func: str | None = None
    """Dotted name of `model -> float or {"default": float}`; None is `metric` over the data."""
    clip_norm: float | None = Field(default=None, gt=0)
    """The largest norm of all gradients together; None clips nothing."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are averaged into one optimizer step."""

    @model_validator(mode="after")
    def _nodes_have_targets(self) -> Self:
        for name in ("loss", "metric"):
            node = getattr(self, name)
            if node is not None and not isinstance(node.get("_target_"), str):
                raise ValueError(f"{name} needs a _target_: {name}: {{_target_: module.Name, ...}}")
        return self

    @model_validator(mode="after")
    def _own_loop_does_its_own_clipping(self) -> Self:
        if self.training_func is not None and (self.clip_norm is not None or self.accumulate != 1):
            raise ValueError(
                "clip_norm and accumulate belong to the shipped loop; with a training_func of your own, do it there"
            )
        return self
