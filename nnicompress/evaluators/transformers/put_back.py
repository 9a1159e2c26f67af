"""What a Trainer and accelerate change around a training, and how it is put back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState  # type: ignore[import-untyped]
from huggingface_hub import constants
from torch import nn
from transformers.utils import logging

_ATTRIBUTES = (
    "forward",
    "_original_forward",
    "hf_device_map",
    "_is_accelerate_prepared",
    "gradient_checkpointing",
    "_gradient_checkpointing_func",
    "_require_grads_hook",
    "_require_grads_hooks",
    "neftune_noise_alpha",
)
"""What they set on modules: accelerate for mixed precision, a Trainer for activation checkpointing and NEFTune."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STATES: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)
_ABSENT = object()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards nothing of accelerate or of a Trainer is left on the modules of `model`, nor on its config."""
    modules = list(model.modules())
    attributes = [(module, {name: vars(module).get(name, _ABSENT) for name in _ATTRIBUTES}) for module in modules]
    hooks = [(module, {name: set(getattr(module, name)) for name in _HOOKS}) for module in modules]
    configs: list[Any] = [module.config for module in modules if hasattr(getattr(module, "config", None), "use_cache")]
    use_caches = [config.use_cache for config in configs]
    try:
        yield
    finally:
        for module, before in attributes:
            for name, value in before.items():
                if value is not _ABSENT:
                    vars(module)[name] = value
                else:
                    vars(module).pop(name, None)
        for module, known in hooks:
            for name, keys in known.items():
                _remove_engine_hooks(getattr(module, name), keys)
        for config, use_cache in zip(configs, use_caches, strict=True):
            config.use_cache = use_cache


def _remove_engine_hooks(hooks: dict[int, Any], keep: set[int]) -> None:
    """Remove hooks that the engine's packages added; what a compressor adds meanwhile is its own to remove."""
    for key in set(hooks) - keep:
        if (getattr(hooks[key], "__module__", None) or "").partition(".")[0] in ("transformers", "accelerate"):
            del hooks[key]


@contextmanager
def own_engine_state() -> Iterator[None]:
    """TrainingArguments that are built in the block choose device and precision for accelerate's global states.

    Afterwards these are the user's again, and so are transformers' verbosity and accelerate's variables in the
    environment. Meanwhile no progress bars are shown for writing weights.
    """
    # Where the environment decides about progress bars, switching them warns.
    bars = logging.is_progress_bar_enabled() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    if bars:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    states = [dict(cls._shared_state) for cls in _STATES]
    environment = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    verbosity = logging.get_verbosity()
    try:
        yield
    finally:
        _set_states(states)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        for name in [name for name in os.environ if name.startswith("ACCELERATE_") and name not in environment]:
            del os.environ[name]
        os.environ.update(environment)


def _set_states(states: list[dict[str, Any]]) -> None:
    for cls, state in zip(_STATES, states, strict=True):
        cls._shared_state.clear()
        cls._shared_state.update(state)


@contextmanager
def same_storage(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers hold the same tensors afterwards: an evaluation in 16 bits casts the whole model."""
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, data in parameters:
                parameter.data = data
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
