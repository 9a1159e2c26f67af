"""Runs fake quantizers at the torch calls of a forward, whose code stays as it is (`calls.py` says what a frame is)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from nnicompress.quantization.attention import attention
from nnicompress.quantization.calls import (
    ATTENTION,
    call_name,
    counts,
    is_leaf,
    operands,
    tensors_of,
    with_operands,
    written_by,
)
from nnicompress.quantization.modes import Numbers

Quantizers = Mapping[str, Callable[[Tensor], Tensor]]
"""By place in one frame: `add_0/input_1`, `relu_2/output_0`."""


@dataclass
class _Frame:
    """One run of a module's forward: its quantizers, and how many calls of each name it has made."""

    module: nn.Module
    quantizers: Quantizers
    numbers: Numbers
    """Of calls that have others in training."""
    counts: Counter[str] = field(default_factory=Counter)

    def number(self, name: str) -> int | None:
        """The number that the next call of this name has in evaluation mode."""
        number = self.counts[name]
        self.counts[name] += 1
        return self.numbers[name].get(number) if self.module.training and name in self.numbers else number


class Frames(TorchFunctionMode):
    """The frames that are running; the innermost one sees each torch call that Python makes.

    `attach` hooks them to the modules of a model; the mode is active while any of them runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._running: list[_Frame] = []
        self._instead: WeakTensorKeyDictionary | None = None
        """A tensor that a call of this forward wrote into -> its quantized values, which all who read it get.

        They can't be written into the tensor itself: the call's own backward may need what it left there.
        """

    def attach(
        self, model: nn.Module, quantizers: Mapping[str, Quantizers], numbers: Mapping[str, Numbers] | None = None
    ) -> list[Any]:
        """`quantizers` and `numbers` by module; returns handles. A model whose frames have none is left alone."""
        if not any(quantizers.values()):
            return []
        handles: list[Any] = []
        for name, module in model.named_modules():
            if not is_leaf(module):
                handles += self._hook(module, quantizers.get(name, {}), (numbers or {}).get(name, {}))
        return handles

    def _hook(self, module: nn.Module, quantizers: Quantizers, numbers: Numbers) -> list[Any]:
        return [
            module.register_forward_pre_hook(_Enter(self, quantizers, numbers)),
            module.register_forward_hook(_Leave(self), always_call=True),
        ]

    def enter(self, module: nn.Module, quantizers: Quantizers, numbers: Numbers) -> None:
        """A module's forward begins."""
        self._running.append(_Frame(module, quantizers, numbers))
        if len(self._running) == 1:
            self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, output: Any) -> Any:
        """It ends and returns this, or it never began: a user's own hook raised before ours."""
        if not self._running or self._running[-1].module is not module:
            return output
        output = self._as_quantized(output)
        self._running.pop()
        if not self._running:
            self._instead = None
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return output

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = self._as_quantized((args, kwargs or {}))
        frame = self._running[-1]
        if not frame.quantizers or not counts(args, kwargs):
            return func(*args, **kwargs)
        name = call_name(func)
        number = frame.number(name)
        if number is None:
            return func(*args, **kwargs)
        place = f"{name}_{number}"
        found = [frame.quantizers.get(f"{place}/input_{i}") for i in range(_most_operands(name, args, kwargs))]
        if any(quantizer is not None for quantizer in found):
            before = operands(name, args, kwargs)
            after = [value if q is None else q(value) for q, value in zip(found, before, strict=True)]
            args, kwargs = with_operands(name, args, kwargs, after)
        inner = frame.quantizers.get(f"{place}/probabilities")
        result = func(*args, **kwargs) if inner is None else attention(*args, probabilities=inner, **kwargs)
        quantized = self._quantized(result, place, frame.quantizers)
        if quantized is not result and (written := written_by(func, args, kwargs, result)) is not None:
            if self._instead is None:
                self._instead = WeakTensorKeyDictionary()
            self._instead[written] = quantized
        return quantized

    def _as_quantized(self, values: Any) -> Any:
        """`values` with what they have instead of tensors that were written into."""
        if self._instead is None or not any(tensor in self._instead for tensor in tensors_of(values)):
            return values
        return tree_map_only(Tensor, self._newest, values)

    def _newest(self, tensor: Tensor) -> Tensor:
        while self._instead is not None and tensor in self._instead:
            tensor = self._instead[tensor]
        return tensor

    def _quantized(self, result: Any, place: str, quantizers: Quantizers) -> Any:
        if isinstance(result, Tensor):
            quantizer = quantizers.get(f"{place}/output_0")
            return result if quantizer is None else quantizer(result)
        if isinstance(result, (tuple, list)) and not hasattr(result, "_fields"):
            parts = [
                part if (q := quantizers.get(f"{place}/output_{i}")) is None else q(part)
                for i, part in enumerate(result)
            ]
            return type(result)(parts)
        return result


def _most_operands(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    if name in ("add", "matmul"):
        return 2
    if name == ATTENTION:
        return 3
    return len(operands(name, args, kwargs)) if name == "cat" else 1


class _Enter:
    """A forward pre-hook that can be copied and pickled."""

    def __init__(self, frames: Frames, quantizers: Quantizers, numbers: Numbers) -> None:
        self._frames, self._quantizers, self._numbers = frames, quantizers, numbers

    def __call__(self, module: nn.Module, args: Any) -> None:
        self._frames.enter(module, self._quantizers, self._numbers)


class _Leave:
    """Its forward hook."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self._frames.leave(module, output)
