"""The settings of a recipe's `evaluator` group."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from nnicompress.settings import Settings

Node = dict[str, Any]


class EngineSettings(Settings):
    """What a recipe says of every engine; each engine adds its own."""

    NODES: ClassVar[tuple[str, ...]]
    """Keys that say how to build an object, by `_target_`."""
    AROUND_MODEL: ClassVar[tuple[str, ...]] = ()
    """Those of them that take the model first."""
    FUNCTIONS: ClassVar[tuple[str, ...]]
    """Keys that name a function of the user's."""
    OWN_OPTIMIZER: ClassVar[bool] = False
    """Whether the engine has an optimizer where the recipe names none."""

    name: str = "torch"
    """The engine."""
    mode: Literal["min", "max"] = "max"
    """Whether a larger metric is better."""

    @model_validator(mode="after")
    def _nodes_have_targets(self) -> Self:
        for name in self.NODES:
            node = getattr(self, name)
            if isinstance(node, dict) and not isinstance(node.get("_target_"), str):
                raise ValueError(f"{name} needs a _target_: {name}: {{_target_: module.Name, ...}}")
        return self


class EvaluatorSettings(EngineSettings):
    """How a recipe trains and evaluates: the shipped loop and evaluation, or functions of the user's own."""

    NODES = ("loss", "metric")
    FUNCTIONS = ("training_func", "training_step", "evaluating_func")

    name: Literal["torch"] = "torch"
    """The engine: `torch` is a native PyTorch loop."""
    loss: Node | None = None
    """How to build the loss, `{_target_: torch.nn.CrossEntropyLoss}`; called as `loss(outputs, targets)`."""
    metric: Node | None = None
    """How to build a torchmetrics metric; updated with `(outputs, targets)` of each batch."""
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
    def _own_loop_does_its_own_clipping(self) -> Self:
        if self.training_func is not None and (self.clip_norm is not None or self.accumulate != 1):
            raise ValueError(
                "clip_norm and accumulate belong to the shipped loop; with a training_func of your own, do it there"
            )
        return self


class LightningSettings(EngineSettings):
    """How a recipe trains and evaluates with a Lightning Trainer."""

    NODES = ("trainer", "module")
    AROUND_MODEL = ("module",)
    FUNCTIONS = ()
    OWN_OPTIMIZER = True

    name: Literal["lightning"]
    """The engine: `lightning` is a Trainer of pytorch_lightning or of lightning.pytorch."""
    trainer: Node
    """How to build the Trainer; accelerator, devices and precision follow the runtime where they are not given."""
    module: Node | None = None
    """How to build a LightningModule around the model, which it takes first; None: the model is a LightningModule."""
    metric: str = "default"
    """The name under which the module logs the metric that decides."""


class TransformersSettings(EngineSettings):
    """How a recipe trains and evaluates with a Trainer of transformers."""

    NODES = ("trainer", "args", "compute_metrics")
    FUNCTIONS = ("compute_metrics",)
    OWN_OPTIMIZER = True

    name: Literal["transformers"]
    """The engine: `transformers` is a Trainer, or a subclass of it."""
    trainer: Node
    """How to build the Trainer; datasets and collator are those of the recipe's data where they are not given."""
    args: Node
    """How to build the TrainingArguments; seed, device and precision follow the recipe where they are not given."""
    compute_metrics: Node | str | None = None
    """How to build what computes metrics of an EvalPrediction, or the dotted name of a function; None: the loss."""
    metric: str | None = None
    """The name of the metric that decides; None: the first that compute_metrics returns, else `loss`."""


ENGINES: dict[str, type[EngineSettings]] = {
    "torch": EvaluatorSettings,
    "lightning": LightningSettings,
    "transformers": TransformersSettings,
}
