"""The settings of a quantizer: targets, scheme, ranges or learned scales, schedule. Imports neither torch nor hydra."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeGuard

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from nnicompress.errors import did_you_mean
from nnicompress.pruning.settings import Names, Patterns
from nnicompress.settings import SettingError, Settings
from nnicompress.target_settings import with_targets

DTYPES = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 9))
METHODS = ("observed", "lsq", "lsq_plus", "dorefa", "bnn")
FLOATS_AGAIN = ("observed", "lsq", "lsq_plus")
"""Methods that leave the weights as floats: without its fake quantizers a layer is a float layer."""
OBSERVERS = ("min_max", "moving_average", "histogram", "percentile", "mse")
TRAINABLE_OBSERVERS = ("min_max", "moving_average")
"""Observers that can follow a training; the others look at the calibration's batches twice."""
WEIGHT_OBSERVERS = ("min_max", "mse")
_OBSERVERS_WITH = {
    "momentum": ("moving_average",),
    "percentile": ("percentile",),
    "bins": ("histogram", "percentile", "mse"),
}
"""Settings of an observer -> those that have them."""
FUNCTIONS = ("add", "cat", "matmul", "scaled_dot_product_attention")
GRANULARITIES = ("default", "tensor", "channel")
TENSORS = ("_input_", "weight", "bias", "_output_")
TARGET_NAME = re.compile(r"weight|bias|_input_\w*|_output_0?")


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _known(value: str, known: Sequence[str], what: str) -> str:
    if value not in known:
        raise ValueError(_unknown(value, known, what))
    return value


def _unknown(value: str, known: Sequence[str], what: str) -> str:
    return f"no {what} named {value!r}{did_you_mean(value, known)}; known: {', '.join(known)}"


def _dtype(value: str) -> str:
    return _known(value, DTYPES, "quant_dtype")


def _function_names(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(_known(value, FUNCTIONS, "function") for value in values)


def _granularity(value: object) -> object:
    if isinstance(value, str):
        return _known(
            {"out_channel": "channel", "per_channel": "channel"}.get(value, value), GRANULARITIES, "granularity"
        )
    if isinstance(value, Mapping):
        wrong = next((name for name in value if name not in ("axis", "block_size")), None)
        if wrong is not None:
            raise ValueError(f"unknown key{did_you_mean(str(wrong), ('axis', 'block_size'))}: {wrong!r}")
        axis, size = value.get("axis"), value.get("block_size")
        if type(axis) is not int or not (size is None or (type(size) is int and size >= 1)):
            raise ValueError(f"{dict(value)} is no granularity: axis is a dimension, block_size at least 1")
        return (axis, size)
    if isinstance(value, tuple) and len(value) == 2:
        return value
    raise ValueError(f"{value!r} is no granularity; known: {', '.join(GRANULARITIES)}, or {{axis: 1, block_size: 32}}")


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _chains(value: object) -> object:
    if value is None:
        return ()
    if not _is_list(value):
        raise ValueError(f"{value!r} is no list of chains; give [[conv1, bn1, relu]]")
    if value and all(isinstance(name, str) for name in value):
        raise ValueError(f"it is a list of chains; give [[{', '.join(value)}]]")
    for chain in value:
        if not _is_list(chain) or len(chain) < 2:
            shown = f"[{', '.join(map(str, chain))}]" if _is_list(chain) else repr(chain)
            raise ValueError(f"{shown} is no chain: it takes two modules or more that follow each other")
    return tuple(tuple(chain) for chain in value)


Dtype = Annotated[str, AfterValidator(_dtype)]
Granularity = Annotated[str | tuple[int, int | None], BeforeValidator(_granularity)]
"""`default` (the profile's), `tensor`, `channel` (of output), or `{axis: 1, block_size: 32}`."""
Steps = Annotated[int, Field(ge=0)]


class ObserverSettings(Settings):
    """How a range is found."""

    name: str = "moving_average"
    """`min_max`, `moving_average`; over a histogram, `histogram` (the range that loses least information in 128 levels,
    by KL divergence), `percentile`, `mse` (that of least squared error)."""
    momentum: float = Field(default=0.1, gt=0, le=1)
    """For `moving_average`: how much an optimizer step's range counts."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """For `percentile`: the share of values inside the range, in percent."""
    bins: int = Field(default=2048, ge=256)
    """For `histogram`, `percentile` and `mse`."""

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        _known(self.name, OBSERVERS, "observer")
        for setting, names in _OBSERVERS_WITH.items():
            # A preset's value stays where a recipe changes the name alone; it is the default.
            if self.name not in names and getattr(self, setting) != type(self).model_fields[setting].default:
                raise SettingError(f"it belongs to {' and '.join(names)}, and the observer is {self.name}", at=setting)
        return self


Observer = Annotated[ObserverSettings, BeforeValidator(_named)]


class QuantizationTensorSettings(Settings):
    """How one tensor is quantized, null: by the profile; in `target_settings` each key replaces the target's own."""

    quant_dtype: Dtype | None = None
    quant_scheme: Literal["affine", "symmetric"] | None = None
    granularity: Granularity | None = None
    observer: Observer | None = None
    """null: the quantizer's."""


class QuantizationTargetSettings(QuantizationTensorSettings):
    """Which modules to quantize, and which of their tensors.

    Selected are the modules whose type is in `op_types` and, where names are given, whose name is in `op_names` or
    matches one of `op_names_re` (from its start, as `re.match`), less the excluded ones. Without any of the three, all
    that the backend runs in integers are.
    """

    op_types: Names = ()
    op_names: Names = ()
    op_names_re: Patterns = ()
    exclude_op_types: Names = ()
    exclude_op_names: Names = ()
    exclude_op_names_re: Patterns = ()
    target_names: Names | None = None
    """`_input_` (all), `_input_0`, `_input_NAME` (an argument of the forward), `weight`, `bias`, `_output_`. null:
    inputs and weights, and outputs and biases where the runtime needs them."""
    target_settings: dict[str, QuantizationTensorSettings] = Field(default_factory=dict)
    fuse_names: Annotated[tuple[tuple[str, ...], ...], BeforeValidator(_chains)] = ()
    """Modules that become one in the runtime, in order; all that can are found without it, and these are checked."""

    @property
    def selects(self) -> bool:
        """Whether it says which modules."""
        return bool(self.op_types or self.op_names or self.op_names_re)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.target_names == ():
            raise SettingError("target_names is empty", at="target_names")
        asked = (*(self.target_names or ()), *self.target_settings)
        where = {
            **dict.fromkeys(self.target_settings, "target_settings"),
            **dict.fromkeys(self.target_names or (), "target_names"),
        }
        further = next((name for name in asked if re.fullmatch(r"_output_[1-9]\d*", name)), None)
        if further is not None:
            raise SettingError(
                f"{further}: of what a module returns only the first tensor is quantized; give _output_",
                at=where[further],
            )
        wrong = next((name for name in asked if TARGET_NAME.fullmatch(name) is None), None)
        if wrong is not None:
            raise SettingError(
                f"no tensor {wrong!r}{did_you_mean(wrong, TENSORS)}; there are {', '.join(TENSORS)}, and one of "
                "several is _input_0",
                at=where[wrong],
            )
        known = self.target_names or TENSORS
        for name in self.target_settings:
            if name not in known and not any(_covers(other, name) for other in known):
                hint = did_you_mean(name, known)
                raise SettingError(
                    f"target_settings has {name!r}, which is not in target_names{hint}", at="target_settings"
                )
        own = self.target_settings.get("bias")
        if own is not None and own.model_fields_set:
            raise SettingError(
                "target_settings has settings of bias, which has none: it is int32, in units of the input's scale "
                "times the weight's",
                at="target_settings.bias",
            )
        given = self.target_names or ("weight", "_input_")
        if "bias" in given and not ("weight" in given and any(name.startswith("_input_") for name in given)):
            raise SettingError(
                "a bias is quantized in units of its input's scale times its weight's: target_names with bias need "
                "weight and _input_",
                at="target_names",
            )
        return self

    @property
    def arguments(self) -> frozenset[str]:
        """The arguments of a forward that are asked for by name: `query` for `_input_query`."""
        asked = (*(self.target_names or ()), *self.target_settings)
        named = {name.removeprefix("_input_") for name in asked if name.startswith("_input_")}
        return frozenset(name for name in named if name and not name.isdigit())

    def numbered(self, arguments: Sequence[str]) -> Self:
        """The same for a module whose forward takes `arguments`: inputs by number, those that it lacks left out."""
        if not self.arguments:
            return self

        def number(name: str) -> str | None:
            argument = name.removeprefix("_input_")
            if argument == name or argument not in self.arguments:
                return name
            return f"_input_{list(arguments).index(argument)}" if argument in arguments else None

        names = None if self.target_names is None else tuple(n for n in map(number, self.target_names) if n)
        settings = {n: special for name, special in self.target_settings.items() if (n := number(name))}
        return self.model_copy(update={"target_names": names, "target_settings": settings})

    def of_tensor(self, name: str) -> QuantizationTensorSettings:
        """How tensor `name` is quantized, its `target_settings` merged in; `_input_0` inherits from `_input_`."""
        own = {key: getattr(self, key) for key in QuantizationTensorSettings.model_fields}
        for special_name, special in self.target_settings.items():
            if special_name == name or _covers(special_name, name):
                own |= {key: getattr(special, key) for key in special.model_fields_set}
        return QuantizationTensorSettings(**own)

    def key_of(self, name: str, setting: str) -> str:
        """Where `setting` of tensor `name` is written, below the target: `target_settings.weight.granularity`."""
        for special_name, special in reversed(self.target_settings.items()):
            if (special_name == name or _covers(special_name, name)) and setting in special.model_fields_set:
                return f"target_settings.{special_name}.{setting}"
        return setting

    def names(self, name: str) -> bool:
        """Whether `name` (`weight`, `_input_0`) is among the tensors; by default all are."""
        asked = self.target_names
        return asked is None or any(other == name or _covers(other, name) for other in asked)


class QuantizationScheduleSettings(Settings):
    """When what begins and ends, in optimizer steps of the training, from 0; null: never."""

    simulate_from: Steps = 0
    """Fake quantization begins; ranges and learned scales are there from the calibration."""
    observe_from: Steps = 0
    """Ranges of activations begin to follow the training; before, they are those of the calibration."""
    observe_until: Steps | None = None
    """Ranges of activations no longer follow the training. null: they follow it to its end."""
    freeze_batch_norm_at: Steps | None = None
    """Statistics of batch norm no longer change, and normalize in training too."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.observe_until is not None and 0 < self.observe_from >= self.observe_until:
            raise ValueError(
                f"observe_until {self.observe_until} is not after observe_from {self.observe_from}: ranges would never "
                "follow the training"
            )
        if self.observe_until is not None and 0 < self.observe_until < self.simulate_from:
            raise ValueError(
                f"observe_until {self.observe_until} comes before simulate_from {self.simulate_from}: the ranges would "
                "be those of weights from long before"
            )
        return self


def _fitting(target: QuantizationTargetSettings, info: ValidationInfo) -> QuantizationTargetSettings:
    """`target`, which the quantizer's other settings (those that are right) allow."""
    if {"method", "backend", "observer"} <= info.data.keys():
        _check_weight(target, info.data["method"], info.data["backend"])
        _check_activations(target, info.data["method"], info.data["backend"], info.data["observer"])
    return target


def _check_weight(target: QuantizationTargetSettings, method: str, backend: str) -> None:
    weight = target.of_tensor("weight")
    own = target.target_settings.get("weight")
    if own is not None and own.observer is not None and own.observer.name not in WEIGHT_OBSERVERS:
        raise SettingError(
            f"a weight's observer is one of {', '.join(WEIGHT_OBSERVERS)}", at="target_settings.weight.observer"
        )
    if weight.observer is not None and method != "observed":
        raise SettingError(_needless("observer", method), at=target.key_of("weight", "observer"))
    granularity = target.key_of("weight", "granularity")
    if method in ("dorefa", "bnn") and weight.granularity not in (None, "default", "tensor"):
        raise SettingError(f"{method} takes one scale a tensor, which is fixed; leave granularity out", at=granularity)
    blocks = isinstance(weight.granularity, tuple) and weight.granularity[1] is not None
    if blocks and method != "observed":
        raise SettingError(f"{method} takes one scale a tensor or a channel, not one a block", at=granularity)
    if blocks and backend != "none":
        raise SettingError(
            f"{backend} has no integer kernels for blocks; use granularity: channel, or backend: none", at=granularity
        )
    if method == "dorefa" and weight.quant_dtype in (None, "int8", "uint8"):
        what = (
            "dorefa's weights need a quant_dtype of 2 to 7 bits: their levels lie at odd integers, which take one bit "
            "more"
        )
        if weight.quant_dtype is None:
            raise ValueError(what)
        raise SettingError(what, at=target.key_of("weight", "quant_dtype"))


def _check_activations(
    target: QuantizationTargetSettings, method: str, backend: str, observer: ObserverSettings
) -> None:
    special = (name for name in target.target_settings if name.startswith(("_input_", "_output_")))
    for name in dict.fromkeys(("_input_0", "_output_0", *special)):
        if not target.names(name):
            continue
        own = target.of_tensor(name)
        if own.observer is not None and method != "observed":
            raise SettingError(_needless("observer", method), at=target.key_of(name, "observer"))
        # DoReFa's activations are unsigned whatever their bits are called.
        if backend != "none" and method != "dorefa" and (own.quant_dtype or "uint8").startswith("int"):
            raise SettingError(
                f"{backend} has integer kernels for unsigned activations alone; give activations "
                f"u{own.quant_dtype}, and {own.quant_dtype} to weight in target_settings",
                at=target.key_of(name, "quant_dtype"),
            )
        granularity = target.key_of(name, "granularity")
        if own.granularity in (None, "default", "tensor"):
            continue
        if method in ("dorefa", "bnn"):
            raise SettingError(
                f"{method} takes one scale a tensor, which is fixed; leave granularity out", at=granularity
            )
        if backend != "none":
            raise SettingError(
                f"{backend} runs activations in integers with one scale a tensor; give the granularity to weight in "
                "target_settings",
                at=granularity,
            )
        if isinstance(own.granularity, tuple) and own.granularity[1] is not None:
            raise SettingError(
                "activations have one scale a tensor or a channel, not one a block; give the granularity to weight in "
                "target_settings",
                at=granularity,
            )
        if method == "lsq_plus" or (own.observer or observer).name not in TRAINABLE_OBSERVERS:
            raise SettingError(
                "ranges of single channels of activations are found by min_max and moving_average; give the "
                "granularity to weight in target_settings, or one of these observers",
                at=granularity,
            )


def _needless(observer: str, method: str) -> str:
    return f"{observer} belongs to method observed: {method} finds its scales without one"


class QuantizerSettings(Settings):
    """A quantizer: scheme x (observer or learned scale) x schedule, over targets."""

    kind: Literal["quantizer"] = "quantizer"
    method: str = "observed"
    """`observed` (ranges), `lsq` and `lsq_plus` (learned scales), `dorefa`, `bnn`."""
    backend: Literal["onnxruntime_x86", "none"] = "onnxruntime_x86"
    """The runtime whose types are the defaults; what it can't run in integers is refused. `none`: nothing is."""
    observer: Observer = Field(default_factory=ObserverSettings)
    """Of activations."""
    weight_observer: Observer = Field(default_factory=lambda: ObserverSettings(name="min_max"))
    functions: Annotated[Names | None, AfterValidator(_function_names)] = None
    """Functional calls that are quantized where the runtime gains by it. null: all, where they stand beside a selected
    layer whose activations are quantized."""
    calibration_steps: int = Field(default=16, ge=1)
    """Batches of the training data on which ranges are found before anything is simulated."""
    trains: bool = True
    """Whether a training follows the calibration."""
    schedule: QuantizationScheduleSettings = Field(default_factory=QuantizationScheduleSettings)
    bias_correction: bool = False
    """Shift each bias by the mean error that quantized weights make on the calibration's batches."""
    fold_batch_norm: bool = False
    """Quantize weights as they are with the batch norm behind them folded in, rather than as they are."""
    gradient_bits: int | None = Field(default=None, ge=2, le=8)
    """For `dorefa`: quantize gradients of activations too."""
    kernel: Literal["auto", "compiled", "torch"] = "auto"
    """What simulates in a training on the CPU, with the same numbers: torch's own operators, or a compiled kernel.

    `auto`: compiled where the training is long enough to pay for it."""
    targets: dict[str, Annotated[QuantizationTargetSettings, AfterValidator(_fitting)]]
    """The last field: a target is checked against those before it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.targets:
            raise SettingError("targets is empty: a quantizer needs at least one", at="targets")
        if self.method not in METHODS:
            raise SettingError(_unknown(self.method, METHODS, "method"), at="method")
        if self.gradient_bits is not None and self.method != "dorefa":
            raise SettingError(f"gradient_bits belongs to dorefa, and the method is {self.method}", at="gradient_bits")
        if self.method != "observed" and not self.trains:
            raise SettingError(f"{self.method} learns in training: it takes no trains: false", at="trains")
        follows = next((name for name in ("observe_from", "observe_until") if getattr(self.schedule, name)), None)
        if follows is not None and self.method != "observed":
            raise SettingError(
                f"it belongs to method observed: {self.method} has no ranges that follow the values",
                at=f"schedule.{follows}",
            )
        if not self.trains and self.schedule != QuantizationScheduleSettings():
            raise SettingError("it counts steps of a training, and there is none: trains is false", at="schedule")
        if not self.trains and self.kernel == "compiled":
            raise SettingError("it serves a training, and there is none: trains is false", at="kernel")
        if self.bias_correction and (self.trains or self.method != "observed"):
            raise SettingError(
                "bias_correction is for quantization without training: it needs trains: false", at="bias_correction"
            )
        if self.method == "bnn" and self.backend != "none":
            raise SettingError(
                "bnn's activations are -1 and 1, which onnxruntime_x86 can't run in integers; set backend: none",
                at="backend",
            )
        if self.weight_observer.name not in WEIGHT_OBSERVERS:
            raise SettingError(f"weight_observer is one of {', '.join(WEIGHT_OBSERVERS)}", at="weight_observer")
        given = next((name for name in ("observer", "weight_observer") if name in self.model_fields_set), None)
        if given is not None and self.method != "observed":
            raise SettingError(_needless(given, self.method), at=given)
        return self

    @classmethod
    def from_targets(
        cls, targets: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]], **settings: Any
    ) -> Self:
        """Settings from a list of dicts, one a target, as Python users write them; targets are named `0`, `1` ...

        `settings` are the other keys, e.g. `method="lsq", backend="none"`.

        Raises:
            InputErrors: every wrong key or value, each with its dotted key.
        """
        return with_targets(cls, targets, settings, _GROUPS)


def _covers(general: str, name: str) -> bool:
    """Whether `_input_` stands for `_input_0`."""
    return general in ("_input_", "_output_") and name.startswith(general)


_GROUPS: tuple[type[Settings], ...] = (
    QuantizerSettings,
    QuantizationTargetSettings,
    ObserverSettings,
    QuantizationScheduleSettings,
)
