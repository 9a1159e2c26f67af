"""A quantized model as plain data: integer weights, and the ATen operators that its forward runs, one after another.

This file needs torch alone. It is copied beside `load.py`, so that a quantized model loads and runs where nnicompress
isn't installed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

QUANTIZE, DEQUANTIZE = "quantize", "dequantize"
_OPERATOR = ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt")
PYTHON: Mapping[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in (*_OPERATOR, "ge", "and_", "or_", "not_")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_float", "sym_int", "sym_not")},
}
"""What a forward does with sizes; everything else is an operator of ATen."""


class FrozenModel(nn.Module):
    """Runs a program of ATen operators over buffers; there is nothing in it to train.

    The program is plain data, as JSON stores it:

        parameters  the names of the forward's arguments, in order
        inputs      [value, path] for each tensor of the arguments; a path is an argument's name, then keys into it
        constants   [path, number or None] for each other argument: it was frozen with that one
        buffers     the names of the tensors, with dots as in a state_dict
        steps       [value, operator, args, kwargs, module]: the operator is `aten.conv2d.default`, one of PYTHON,
                    `quantize` or `dequantize`; the module is the path of the one whose forward it comes from
        output      what the forward returns

    In arguments and output a value stands as {"value": name}, a buffer as {"buffer": name}, what is no JSON as
    {"dtype": ...}, {"layout": ...}, {"memory_format": ...} or {"device": ...}, a mapping as {"mapping": ...}.

    Args:
        program: as above.
        tensors: the buffers by name; None: empty ones, which a loader replaces.
        output_spec: puts the outputs into the model's own type (a ModelOutput of transformers), which plain data can't
            say; a model that is loaded returns dicts.
    """

    def __init__(
        self,
        program: Mapping[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
        output_spec: pytree.TreeSpec | None = None,
    ) -> None:
        super().__init__()
        self.frozen_program = program
        self._output = _Shared(output_spec)
        for name in program["buffers"]:
            owner, _, leaf = name.rpartition(".")
            _container(self, owner).register_buffer(leaf, torch.empty(0) if tensors is None else tensors[name])
        self.eval()

    @property
    def output_spec(self) -> pytree.TreeSpec | None:
        """As it was given."""
        return self._output.spec

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Inputs as the model's that was frozen; outputs bit for bit as the fake-quantized one's in eval mode."""
        result = run(self, args, kwargs)
        if self.output_spec is None:
            return result
        return pytree.tree_unflatten(pytree.tree_leaves(result), self.output_spec)


class _Shared:
    """A specification, which never changes: copies of a model share it. (torch's own copy of one warns.)"""

    def __init__(self, spec: pytree.TreeSpec | None) -> None:
        self.spec = spec

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def run(
    model: FrozenModel,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    functions: Mapping[str, Callable[..., Any]] | None = None,
    observe: Callable[[str, Any], None] | None = None,
) -> Any:
    """What the program returns, in plain containers.

    `functions` stand in for operators of these names; `observe` is told the value of each step.
    """
    program = model.frozen_program
    known: dict[str, Callable[..., Any]] = {QUANTIZE: quantize, DEQUANTIZE: dequantize, **(functions or {})}
    buffers = dict(model.named_buffers(remove_duplicate=False))
    device = next(iter(buffers.values())).device if buffers else torch.device("cpu")
    values = _inputs(program, args, kwargs)

    def decoded(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [decoded(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        ((kind, content),) = value.items()
        if kind == "value":
            return values[content]
        if kind == "buffer":
            return buffers[content]
        if kind == "mapping":
            return {key: decoded(item) for key, item in content.items()}
        return device if kind == "device" else getattr(torch, content)

    for name, function, given, named, _ in program["steps"]:
        call = known.get(function) or _operator(function)
        values[name] = call(*decoded(given), **{key: decoded(value) for key, value in named.items()})
        if observe is not None:
            observe(name, values[name])
    return decoded(program["output"])


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None = None) -> Tensor:
    """The integers `round(x / scale) + zero_point` within [low, high].

    It multiplies by the reciprocal, as torch's own fake quantization does: a division would round otherwise. Those of a
    bias (32 bits, zero point 0) are divided.
    """
    if high > 2**16:
        return torch.round(x / _spread(scale, x, axis)).double().clamp(low, high).to(torch.int32)
    rounded = torch.round(x * _spread(1.0 / scale, x, axis)) + _spread(zero_point, x, axis)
    return torch.clamp(rounded, low, high).to(integer_dtype(low, high))


def dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """`(x - zero_point) * scale` in float32."""
    return (x.float() - _spread(zero_point, x, axis)) * _spread(scale, x, axis)


def references(value: Any, kind: str) -> list[str]:
    """The names of the values (`kind` "value") or buffers ("buffer") in encoded arguments, in order."""
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in references(item, kind)]
    if isinstance(value, Mapping):
        return [value[kind]] if kind in value else [n for item in value.values() for n in references(item, kind)]
    return []


def integer_dtype(low: int, high: int) -> torch.dtype:
    """The smallest torch integer type that holds [low, high]; 4 bits and fewer take a byte."""
    if low >= 0 and high <= 255:
        return torch.uint8
    return torch.int8 if low >= -128 and high <= 127 else torch.int32


def _spread(parameter: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """In a shape that broadcasts with `x`: one number, one an index of `axis`, or one a block of indices.

    Blocks have the rank of `x`, with as many along `axis` as there are; the last may be shorter.
    """
    if axis is None:
        return parameter
    length = x.shape[axis]
    if parameter.dim() == 1 and (x.dim() > 1 or len(parameter) == length):
        return parameter.reshape([-1 if dim == axis % x.dim() else 1 for dim in range(x.dim())])
    return parameter.repeat_interleave(-(-length // parameter.shape[axis]), axis).narrow(axis, 0, length)


def _container(module: nn.Module, path: str) -> nn.Module:
    for name in path.split(".") if path else ():
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    return module


def _operator(name: str) -> Callable[..., Any]:
    if name in PYTHON:
        return PYTHON[name]
    namespace, packet, overload = name.split(".")
    if namespace != "aten":
        raise ValueError(f"a frozen model runs operators of ATen, and {name} is none")
    function: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    return function


def _inputs(program: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The input tensors by their values' names."""
    names = program["parameters"]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    known = {path[0] for _, path in (*program["inputs"], *((None, path) for path, _ in program["constants"]))}
    odd = sorted(name for name, value in given.items() if name not in known and value is not None)
    if len(args) > len(names) or odd:
        raise TypeError(f"the frozen model takes {', '.join(sorted(known))}" + (f", not {odd[0]}" if odd else ""))
    for path, value in program["constants"]:
        if _at(given, path) != value:
            raise TypeError(f"the model was frozen with {'.'.join(map(str, path))}={value!r}, and takes no other value")
    found = {name: _at(given, path) for name, path in program["inputs"]}
    for value, (_, path) in zip(found.values(), program["inputs"], strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"the frozen model takes a tensor as {'.'.join(map(str, path))}, not {value!r}")
    return found


def _at(given: Any, path: Sequence[Any]) -> Any:
    for key in path:
        try:
            given = given[key]
        except (KeyError, IndexError, TypeError):
            return None
    return given
