"""How a Trainer is built: what the user traced, read by name, and built afresh with other arguments for each call."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from nnicompress.errors import UserError
from nnicompress.evaluators.optimizers import check_optimizer_class
from nnicompress.evaluators.transformers.watched import Watched, watched_class
from nnicompress.trace import Traced, parameter_names

_WAY_OUT = "trainer=nnicompress.trace(Trainer)(args=TrainingArguments(...), train_dataset=...)"

NOTHING_BUT_STEPS: Mapping[str, Any] = {
    "report_to": [],
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "metric_for_best_model": None,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": {},
    "push_to_hub": False,
    "torch_compile": False,
}
"""Settings of a Trainer that neither writes nor reports nor evaluates while it trains."""

DEFAULT_OUTPUT_DIR = "trainer_output"
"""Where TrainingArguments write if nobody said where."""


class TrainerRecord:
    """What was traced: the Trainer class, its arguments by name, and its TrainingArguments."""

    def __init__(self, given: object, data_defaults: Mapping[str, Any] | None = None) -> None:
        """Read `trace(Trainer)(...)`; `data_defaults` fill TrainingArguments that were traced without them.

        Raises:
            UserError: it is a built Trainer, another class, or holds what can't be built afresh.
        """
        self.cls, kwargs = _read(given)
        self.name = self.cls.__name__
        args = kwargs.pop("args", None)
        if args is None:
            args = Traced(TrainingArguments)
        self._args = _checked_args(args, data_defaults or {})
        self.optimizers = _traced_pair(kwargs.pop("optimizers", None) or (None, None))
        if kwargs.pop("model_init", None) is not None:
            raise UserError("trainer: model_init builds a model of its own; the bound model is trained, leave it out")
        kwargs.pop("model", None)
        choice = kwargs.get("optimizer_cls_and_kwargs")
        if choice is not None:
            if self.optimizers != (None, None):
                raise UserError("trainer: optimizers and optimizer_cls_and_kwargs are both given; give one")
            check_optimizer_class(Traced(choice[0]))
        for name in ("compute_metrics", "compute_loss_func", "data_collator"):
            value = kwargs.get(name)
            if value is not None and not callable(value) and not isinstance(value, Traced):
                raise UserError(f"trainer: {name} is {type(value).__name__}; it must be a function")
        # A callback that counts (early stopping) starts each training as it was given.
        self._callbacks = [
            copy.deepcopy(callback) if isinstance(callback, ExportableState) else callback
            for callback in kwargs.pop("callbacks", None) or ()
        ]
        self.kwargs: dict[str, Any] = kwargs

    @property
    def own_train_data(self) -> bool:
        """Whether the class finds its training data itself."""
        return self.cls.get_train_dataloader is not Trainer.get_train_dataloader

    @property
    def own_loss(self) -> bool:
        """Whether the user computes the loss, and not the model."""
        return self.cls.compute_loss is not Trainer.compute_loss or self.kwargs.get("compute_loss_func") is not None

    def setting(self, name: str, default: Any = None) -> Any:
        """One of the TrainingArguments as the user gave it."""
        if isinstance(self._args, Traced):
            return self._args.kwargs.get(name, default)
        return getattr(self._args, name, default)

    def args(self, folder: str, overrides: Mapping[str, Any]) -> TrainingArguments:
        """Fresh TrainingArguments; `folder` is their output_dir where the user gave none.

        Raises:
            UserError: transformers refuses a value.
        """
        given = self._args
        if isinstance(given, Traced):
            values = {"disable_tqdm": True, "output_dir": folder, **given.kwargs, **overrides}
            traced = Traced(given.cls, given.args, values)
        else:
            # Built anew and not copied: that sets up the device and the precision of this call.
            values = {f.name: copy.deepcopy(getattr(given, f.name)) for f in dataclasses.fields(given) if f.init}
            if values["output_dir"] == DEFAULT_OUTPUT_DIR:
                values["output_dir"] = folder
            traced = Traced(type(given), (), {**values, "disable_tqdm": True, **overrides})
        return _call(traced)  # type: ignore[no-any-return]

    def build(
        self,
        model: nn.Module,
        folder: str,
        *,
        settings: Mapping[str, Any],
        callbacks: list[TrainerCallback],
        own_callbacks: bool = True,
        **kwargs: Any,
    ) -> Watched:
        """A Trainer for `model`, of a class that is watched.

        Args:
            model: what it trains.
            folder: a temporary one, for what is written where the user gave no output_dir.
            settings: TrainingArguments that replace the user's.
            callbacks: called before the user's.
            own_callbacks: whether the user's are called, too.
            kwargs: arguments of the Trainer that replace the user's.

        Raises:
            UserError: transformers refuses a value.
        """
        args = self.args(folder, settings)
        _refuse_distributed(args)
        users = [copy.deepcopy(c) if isinstance(c, ExportableState) else c for c in self._callbacks]
        merged = {**self.kwargs, **kwargs, "callbacks": [*callbacks, *(users if own_callbacks else ())]}
        if (choice := merged.get("optimizer_cls_and_kwargs")) is not None:
            merged["optimizer_cls_and_kwargs"] = (choice[0], dict(choice[1]))  # Trainer takes keys out of it
        trainer = _call(Traced(watched_class(self.cls), (), {"model": model, "args": args, **merged}))
        if args.disable_tqdm:
            trainer.remove_callback(PrinterCallback)
        return trainer  # type: ignore[no-any-return]


def _read(given: object) -> tuple[type[Trainer], dict[str, Any]]:
    """The class and its arguments by name."""
    if isinstance(given, Trainer):
        raise UserError(
            f"trainer: {type(given).__name__} is already built, tied to one model; record how it is built: {_WAY_OUT}"
        )
    if not isinstance(given, Traced):
        raise UserError(f"trainer: {given!r} doesn't say how to build a Trainer; write {_WAY_OUT}")
    if not (isinstance(given.cls, type) and issubclass(given.cls, Trainer)):
        raise UserError(f"trainer: {given.name} is no transformers.Trainer class; write {_WAY_OUT}")
    names = [name for name in parameter_names(given.cls) if name not in ("args", "kwargs")]
    if given.args and "model" not in names:  # (*args, **kwargs): passed on to a Trainer
        names = list(inspect.signature(Trainer.__init__).parameters)[1:]
    elif given.args:
        names = list(parameter_names(given.cls))
    return given.cls, {**dict(zip(names, given.args, strict=False)), **given.kwargs}


def _checked_args(args: object, defaults: Mapping[str, Any]) -> Traced | TrainingArguments:
    cls = args.cls if isinstance(args, Traced) else type(args)
    if not (isinstance(cls, type) and issubclass(cls, TrainingArguments)):
        shown = args.name if isinstance(args, Traced) else cls.__name__
        raise UserError(f"trainer: args is {shown}; it must be TrainingArguments, or trace(TrainingArguments)(...)")
    if isinstance(args, Traced):
        named = dict(zip(parameter_names(cls), args.args, strict=False))
        args = Traced(cls, (), {**defaults, **named, **args.kwargs})
    else:
        assert isinstance(args, TrainingArguments)
    return args


def _traced_pair(pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UserError("trainer: optimizers is a pair (optimizer, scheduler), each of them traced or None")
    return pair[0], pair[1]


def _refuse_distributed(args: TrainingArguments) -> None:
    if args.deepspeed or args.fsdp:
        raise UserError(
            f"args: {'deepspeed' if args.deepspeed else 'fsdp'} shards parameters, and masks and importance need "
            "whole tensors; leave it out"
        )
    if args.auto_find_batch_size:
        raise UserError("args: auto_find_batch_size starts a training over, so steps can't be counted; leave it out")
    optim = str(getattr(args.optim, "value", args.optim))
    if "layerwise" in optim or "lomo" in optim:
        raise UserError(
            f"args: optim={optim!r} moves weights inside the backward pass, where masks can't be "
            "enforced; choose one that steps, such as adamw_torch"
        )


def _call(traced: Traced) -> Any:
    """Build; what transformers says about wrong values becomes one line."""
    try:
        return traced.build()
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{traced.name}: {text}") from error
