"""The settings of each stage, of the runtime and of `expected:`, and the rules of the stages' order, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from nnicompress.errors import did_you_mean
from nnicompress.sensitivity.settings import SensitivitySettings
from nnicompress.settings import Settings

PositiveInt = Annotated[int, Field(gt=0)]


class TrainingObjectSettings(Settings):
    """What a stage whose trainings build optimizers may change of the recipe's."""

    optimizer: dict[str, Any] = Field(default_factory=dict)
    """Keys that replace those of the recipe's `optimizer` in this stage."""
    scheduler: dict[str, Any] | None = Field(default_factory=dict)
    """Keys that replace those of the recipe's `scheduler` in this stage; null: no scheduler."""


class TrainingSettings(TrainingObjectSettings):
    """What every stage that is told how long to train says of its training."""

    max_epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None


class TrainSettings(TrainingSettings):
    """Train the float model. Exactly one of `max_epochs` and `max_steps` is given."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.max_epochs is None) == (self.max_steps is None):
            given = "both are given" if self.max_epochs is not None else "neither is given"
            raise ValueError(f"exactly one of max_epochs and max_steps says how long to train; {given}")
        return self


class FinetuneSettings(TrainSettings):
    """Train what the earlier stages left; masks stay enforced while the model is only masked."""


class StartSettings(Settings):
    """Start from trained weights in place of training."""

    checkpoint: str
    """A safetensors file, or a state_dict that `torch.load(weights_only=True)` reads."""


class PruneSettings(TrainingObjectSettings):
    """Choose what to remove and mask it; the pruner says how long it trains, the stage with which optimizer."""

    compressor: dict[str, Any] | None = None
    """The pruner of this stage; null: the recipe's top-level `compressor`."""


class ShrinkSettings(Settings):
    """Remove what is masked, and prove that the compact model gives the masked model's outputs."""

    recalibrate_batches: int = Field(default=0, ge=0)
    """Training batches that batch-norm statistics are measured on again, after the proof; 0: keep the statistics."""


class QuantizeSettings(TrainingSettings):
    """Calibrate, train with quantization simulated where the quantizer trains, and make integers of the weights."""

    compressor: dict[str, Any] | None = None
    """The quantizer of this stage; null: the recipe's top-level `compressor`."""

    max_accuracy_drop: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """By how much the validation metric may be worse than before the stage, in its own unit; where it is worse, the
    fewest layers that keep it so are left in float. null: all are quantized, whatever it costs."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_epochs is not None and self.max_steps is not None:
            raise ValueError("at most one of max_epochs and max_steps says how long to train; both are given")
        return self


class ExportSettings(Settings):
    """Write `model/` (always) and the formats asked for."""

    formats: tuple[Literal["pt2", "onnx"], ...] = ("pt2",)


class EvaluateSettings(Settings):
    """Measure every phase of the model, and the exported files."""

    batch_sizes: tuple[PositiveInt, ...] | None = None
    """Batch sizes of the latency measurement; null: 1 and the recipe's own."""
    warmup: int = Field(default=3, ge=0)
    """Forward passes of each model before the clock starts."""
    repeats: int = Field(default=100, ge=3)
    """At most so many timed passes of each model and batch size."""
    seconds: float = Field(default=1.5, gt=0)
    """Time budget of one batch size over all models; the repeats adapt to it, never below 5."""
    memory: bool = True
    """Whether the peak memory of inference is measured."""
    max_deployed_gap: float | None = Field(default=0.01, ge=0)
    """Most by which the metric of an exported file may differ from that of the model it was made of, in the metric's
    own unit; a larger difference fails the run. null: any difference is reported and passes."""

    @field_validator("batch_sizes")
    @classmethod
    def _some(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value == ():
            raise ValueError("latency needs at least one batch size; null: 1 and the recipe's own")
        return value


class RuntimeSettings(Settings):
    """Where and how everything runs."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """`auto`: the first CUDA device where there is one, else the CPU."""
    threads: PositiveInt | None = None
    """PyTorch's threads within an operator; null: PyTorch's own choice."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` trains under autocast; weights stay float32."""
    deterministic: bool = True
    """Whether PyTorch may only use deterministic algorithms."""


STAGES: Mapping[str, type[Settings]] = MappingProxyType(
    {
        "train": TrainSettings,
        "start": StartSettings,
        "sensitivity": SensitivitySettings,
        "prune": PruneSettings,
        "shrink": ShrinkSettings,
        "finetune": FinetuneSettings,
        "quantize": QuantizeSettings,
        "export": ExportSettings,
        "evaluate": EvaluateSettings,
    }
)
"""Every stage a recipe may list, and its settings."""


_ALWAYS = ("model", "data", "evaluator", "runtime")
_TRAINS = (*_ALWAYS, "optimizer", "scheduler")

READS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": _TRAINS,
        "start": ("model",),
        "sensitivity": _ALWAYS,
        "prune": (*_TRAINS, "compressor"),
        "shrink": _ALWAYS,
        "finetune": _TRAINS,
        "quantize": (*_TRAINS, "compressor"),
        "export": (*_ALWAYS, "export"),
        "evaluate": _ALWAYS,
    }
)
"""The parts of a recipe that change what a stage does, besides its own settings."""


@dataclass(frozen=True)
class OrderRule:
    """What stands before a stage: one of `needs` (empty: the stage is the first), and nothing of `never_after`."""

    needs: tuple[str, ...]
    never_after: tuple[str, ...] = ()


ORDER: Mapping[str, OrderRule] = MappingProxyType(
    {
        "train": OrderRule(needs=()),
        "start": OrderRule(needs=()),
        "sensitivity": OrderRule(
            needs=("train", "start"), never_after=("prune", "shrink", "quantize", "export", "evaluate")
        ),
        "prune": OrderRule(needs=("train", "start"), never_after=("shrink", "quantize", "export", "evaluate")),
        "shrink": OrderRule(needs=("prune",), never_after=("quantize", "export", "evaluate")),
        "finetune": OrderRule(needs=("train", "start"), never_after=("quantize", "export", "evaluate")),
        "quantize": OrderRule(needs=("train", "start"), never_after=("export", "evaluate")),
        "export": OrderRule(needs=("train", "start"), never_after=("evaluate",)),
        "evaluate": OrderRule(needs=("train", "start")),
    }
)


def order_errors(names: Sequence[str]) -> list[tuple[str, str]]:
    """`(stage, what is wrong)` for each stage of a recipe that is unknown or stands in an impossible place."""
    errors: list[tuple[str, str]] = []
    for position, name in enumerate(names):
        earlier = names[:position]
        rule = ORDER.get(name)
        if rule is None:
            errors.append(
                (name, f"no stage named {name!r}{did_you_mean(name, ORDER) or '; stages: ' + ', '.join(ORDER)}")
            )
        elif not rule.needs and earlier:
            errors.append((name, f"{name!r} must be the first stage, and comes after {earlier[-1]!r}"))
        elif rule.needs and not set(rule.needs) & set(earlier):
            errors.append((name, f"{name!r} needs {' or '.join(map(repr, rule.needs))} before it"))
        elif late := [other for other in rule.never_after if other in earlier]:
            errors.append((name, f"{name!r} must come before {late[0]!r}"))
    if not names:
        errors.append(("", "a recipe needs at least one stage: " + ", ".join(ORDER)))
    return errors
