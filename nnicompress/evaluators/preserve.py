"""What a measurement must not change: random states, training modes, gradients, weights and buffers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, as values that `torch.load` reads safely."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    kind, keys, position, has_gauss, cached = numpy_state
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": _cuda_states(),
    }


def _cuda_states() -> list[torch.Tensor]:
    # Asking would start CUDA in a process that doesn't use it.
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set what `random_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def same_random_states() -> Iterator[None]:
    """Whatever the block draws, the next number drawn after it is the one that would have been drawn before it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = _cuda_states()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (of every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def same_training_mode(model: nn.Module) -> Iterator[None]:
    """Each module is in training or evaluation mode afterwards as it was before, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def in_evaluation(model: nn.Module, *, training: type[nn.Module] | tuple[type[nn.Module], ...] = ()) -> Iterator[None]:
    """Within the context everything in `model` runs in evaluation mode, whatever a training loop says.

    The outermost module that the loop calls stays as the loop has it: its forward may return a loss in training only.
    Functions that it calls drop nothing, either. Modules of the types `training` are in training mode.
    """

    def evaluate(module: nn.Module, args: Any) -> None:
        for child in module.modules():
            if child is not module:
                child.training = isinstance(child, training)

    # A loop may call a part of the model and never the whole: a Trainer does, where the whole picks one output.
    parents = [module for module in model.modules() if any(True for _ in module.children())]
    handles = [module.register_forward_pre_hook(evaluate) for module in parents]
    try:
        with _NothingDropped():
            yield
    finally:
        for handle in handles:
            handle.remove()


_DROPOUTS = frozenset(
    (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d, functional.alpha_dropout)
    + (functional.feature_alpha_dropout, torch.dropout, torch.dropout_, torch.alpha_dropout, torch.feature_dropout)
)


class _NothingDropped(TorchFunctionMode):
    """`dropout(x, p, self.training)` in a forward that is in training mode gives `x`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is functional.scaled_dot_product_attention:
            # query, key, value, attn_mask, dropout_p
            args, kwargs = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args, {**kwargs}
            kwargs.pop("dropout_p", None)
        return func(*args, **kwargs)


@contextmanager
def no_gradients(model: nn.Module, *more: nn.Parameter) -> Iterator[None]:
    """The block begins without gradients, and the gradients from before it come back after it."""
    gradients = [(parameter, parameter.grad) for parameter in (*model.parameters(), *more)]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def same_tensors(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers hold the same values in the same tensors afterwards; a second copy lives meanwhile."""
    with torch.no_grad():
        parameters = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
        buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in parameters:
                parameter.copy_(value)
            for module, name, buffer, value in buffers:
                # Some modules assign a new tensor instead of writing into the buffer.
                module._buffers[name] = buffer.copy_(value)
