"""One forward, written down as calls and the values that flow between them; placement reads it."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from nnicompress.errors import UserError
from nnicompress.evaluators.preserve import same_random_states, same_tensors, same_training_mode
from nnicompress.quantization.calls import call_name, counts, is_leaf, operands, tensors_of, written_by
from nnicompress.quantization.modes import Run
from nnicompress.quantization.modules import add_transformers, multi_head_attention_forward


@dataclass(eq=False)
class Value:
    """A tensor of the forward: who made it (None: an input or a parameter), at which position, and who reads it."""

    tensor: Tensor
    maker: Call | None = None
    position: int = 0
    readers: list[Call] = field(default_factory=list)

    @property
    def floating(self) -> bool:
        """Whether it can be quantized at all."""
        return self.tensor.is_floating_point()


@dataclass(eq=False)
class Call:
    """A torch call in a frame, or one run of a leaf (`leaf` is its name).

    `name` and `number` say which call of the frame it is; for a leaf, the last call that it made. A call that has no
    number (`calls.counts`) has no room for quantizers.
    """

    frame: str
    name: str
    number: int | None
    leaf: str | None
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    own_tensors: bool = False
    """Whether an operand is one of the model's parameters or buffers, or no tensor."""
    discarded: bool = False
    """Of a leaf that writes into its input: whether the input is read afterwards in place of what the leaf returned."""

    @property
    def place(self) -> str:
        """As in results: `layer1.0/add_0`."""
        return f"{self.frame}/{self.name}_{self.number}"


@dataclass(frozen=True, eq=False)
class Recorded:
    """A forward: its calls in order, the values that it returned, and the numbered calls in each run of a frame.

    `checkpointed` are frame, name and number of those that gradient checkpointing runs again outside of the frame.
    """

    calls: tuple[Call, ...]
    returned: tuple[Value, ...]
    runs: Mapping[str, Sequence[Run]]
    checkpointed: frozenset[tuple[str, str, int]]


_NO_CALL = ("identity", None)
"""What a leaf that makes no call, such as nn.Identity, is written down as."""


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.calls: list[Call] = []
        self.values: dict[int, Value] = {}
        self.frames: list[tuple[str, Counter[str], list[tuple[str, Hashable]]]] = []
        self.runs: dict[str, list[list[tuple[str, Hashable]]]] = defaultdict(list)
        self.checkpointed: set[tuple[str, str, int]] = set()
        self.leaf: tuple[nn.Module, list[Value]] | None = None
        self.last: tuple[str, int | None] = _NO_CALL
        self.wrote = False
        """Whether the leaf that runs has written into a tensor."""
        self.written: dict[int, Call] = {}
        """What a leaf wrote into -> that run of it."""

    def value(self, tensor: Tensor) -> Value:
        if id(tensor) in self.written:
            self.written[id(tensor)].discarded = True
        found = self.values.get(id(tensor))
        if found is None:
            found = self.values[id(tensor)] = Value(tensor)
        return found

    def write(self, call: Call, inputs: list[Value], result: Any) -> None:
        call.inputs = inputs
        for value in inputs:
            value.readers.append(call)
        for position, tensor in enumerate(tensors_of(result)):
            made = self.values[id(tensor)] = Value(tensor, call, position)
            call.outputs.append(made)
        self.calls.append(call)

    def is_shown(self, name: str) -> bool:
        """Whether a frame sees the call when the model is quantized: of attention it sees but one."""
        attention = self.leaf is not None and isinstance(self.leaf[0], nn.MultiheadAttention)
        return not attention or name == multi_head_attention_forward.__name__

    def overwrite(self, tensor: Tensor) -> None:
        """All values that share memory with `tensor` become others, made by no call as a whole."""
        memory = tensor.untyped_storage().data_ptr()
        for key, value in self.values.items():
            if value.tensor.untyped_storage().data_ptr() == memory:
                self.values[key] = Value(value.tensor)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name, number = call_name(func), None
        frame, so_far, run = self.frames[-1] if self.frames else ("", Counter[str](), [])
        if counts(args, kwargs) and self.is_shown(name):
            number = so_far[name]
            so_far[name] += 1
            site, checkpointed = _site(in_leaf=self.leaf is not None)
            run.append((name, site))
            if checkpointed:
                self.checkpointed.add((frame, name, number))
            self.last = name, number
        if self.leaf is not None or not self.frames:
            result = func(*args, **kwargs)
            self.wrote = self.wrote or written_by(func, args, kwargs, result) is not None
            return result
        try:
            given = operands(name, args, kwargs)
        except (KeyError, TypeError, IndexError):  # a call of this name with other arguments
            given = []
        inputs = [self.value(x) for x in given if isinstance(x, Tensor) and id(x) not in self.own]
        everything = tensors_of([*args, *kwargs.values()])
        more = [x for x in everything if id(x) not in self.own and all(x is not v.tensor for v in inputs)]
        call = Call(frame, name, number, None, own_tensors=len(inputs) != len(given))
        others = [self.value(x) for x in more]
        result = func(*args, **kwargs)
        if (written := written_by(func, args, kwargs, result)) is not None:
            self.overwrite(written)
        if tensors_of(result):
            self.write(call, inputs, result)
            for value in others:
                value.readers.append(call)
        return result

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.leaf is not None:
            return
        if is_leaf(module):
            self.leaf, self.last = (module, [self.value(x) for x in tensors_of([*args, *kwargs.values()])]), _NO_CALL
            self.wrote = False
        else:
            self.runs[self.names[module]].append([])
            self.frames.append((self.names[module], Counter(), self.runs[self.names[module]][-1]))

    def exit(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.leaf is None:
            if not is_leaf(module):
                self.frames.pop()
            return None
        if self.leaf[0] is not module:
            return None
        (_, inputs), self.leaf = self.leaf, None
        name = self.names[module]
        if not self.frames:  # the model itself is a leaf
            self.frames.append(("", Counter(), []))
        frame = self.frames[-1][0] if self.frames else ""  # a model may be a leaf itself
        call = Call(frame, *self.last, name)
        if not self.wrote or all(output is not value.tensor for value in inputs):
            self.write(call, inputs, output)
            return None
        # Another tensor of the same memory goes on: so those who read the result differ from those who read the input.
        with torch._C.DisableTorchFunction():
            self.overwrite(output)
            result = output.detach()
        self.write(call, inputs, result)
        self.values[id(output)] = call.outputs[0]
        self.written[id(output)] = call
        return result


_CALL = nn.Module._call_impl.__code__


def _site(*, in_leaf: bool) -> tuple[Hashable, bool]:
    """Where in the code of a frame's forward a call is made: the instruction of each function on the way to it.

    And whether one of these functions is that of gradient checkpointing.
    """
    modules, found, frame, checkpointed = 2 if in_leaf else 1, [], sys._getframe(2), False
    while frame.f_back is not None:
        if frame.f_code is _CALL and (modules := modules - 1) == 0:
            break
        found.append((id(frame.f_code), frame.f_lasti))
        checkpointed = checkpointed or frame.f_code.co_filename == checkpoint.__file__
        frame = frame.f_back
    return tuple(found), checkpointed


def record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool = False) -> Recorded:
    """Run `model` once on real inputs, in evaluation mode or in training, and write it down; it is left as it was.

    Raises:
        UserError: the model is compiled.
    """
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise UserError(
            "the model is compiled by torch.compile, which calls no torch functions; quantize it before that"
        )
    add_transformers()  # which modules are leaves depends on it
    recorder = _Recorder(model)
    with _alone(model, training), recorder:
        handles: list[Any] = []
        for module in recorder.names:
            handles.append(module.register_forward_pre_hook(recorder.enter, with_kwargs=True))
            handles.append(module.register_forward_hook(recorder.exit, always_call=True))
        try:
            result = model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
    returned = tuple(recorder.values[id(t)] for t in tensors_of(result) if id(t) in recorder.values)
    return Recorded(tuple(recorder.calls), returned, recorder.runs, frozenset(recorder.checkpointed))


@contextmanager
def _alone(model: nn.Module, training: bool) -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), same_training_mode(model), same_tensors(model), same_random_states():
            model.train(training)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
