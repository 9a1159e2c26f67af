"""The torch calls of a forward as Python makes them: names, operands, and whose frame each one is made in.

Fake quantizers that belong to no module sit at such calls (a residual add, a matmul). A *leaf* is a module without
children of torch's own, or one that the quantizer has a class for; every other module has a *frame*, and a call is
known by the frame, its name and its number among the calls of that name in one run of the frame: `layer1.0/add_0`.
Calls inside a leaf belong to the frame around it. The capture for channel groups works on ATen operators, which have no
such places, so a forward is recorded (`record.py`) by the same rules by which it is later run (`frames.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnicompress.quantization.modules import SWAPS
from nnicompress.quantization.parameters import QUANTIZERS

ALIASES = {
    "__add__": "add", "__radd__": "add", "__iadd__": "add", "add_": "add",
    "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul", "mul_": "mul",
    "__matmul__": "matmul", "__rmatmul__": "matmul", "bmm": "matmul",
    "concat": "cat", "concatenate": "cat",
    "relu_": "relu", "hardtanh_": "hardtanh", "relu6_": "relu6",
}  # fmt: skip
"""Names of one operation; the others go by their own."""

MATMULS = frozenset({"matmul"})
ATTENTION = "scaled_dot_product_attention"
JOINS = frozenset({"add", "cat"})
"""Whose operands and result are quantized where integers come in."""
PASSING = frozenset({
    "max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch", "flatten", "view", "reshape", "permute", "transpose",
    "contiguous", "unsqueeze", "squeeze", "chunk", "split", "unbind", "expand", "__getitem__", "clone", "to", "detach",
    "t", "T", "mT", "swapaxes", "movedim", "unflatten", "expand_as", "repeat", "repeat_interleave", "select", "narrow",
    "roll", "channel_shuffle", "pixel_shuffle", "identity", "dropout", "dropout1d", "dropout2d", "dropout3d",
    "feature_dropout",
})  # fmt: skip
"""What moves or drops values and makes no new ones: the integers of its operand are those of its result."""
ACTIVATIONS = frozenset({"relu", "relu6", "hardtanh"})
"""What a runtime folds into the quantization of its result."""


def call_name(func: Callable[..., Any]) -> str:
    """The name a call goes by."""
    name = _own_name(func)
    if name == "__get__":  # an attribute that is computed: x.mT
        name = str(getattr(getattr(func, "__self__", None), "__name__", name))
    return ALIASES.get(name, name)


def operands(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The operands of a call that quantization asks for, in order: two, the list of a `cat`, query, key and value."""
    if name == "cat":
        return list(args[0] if args else kwargs["tensors"])
    if name == ATTENTION:
        return _by_name(args, kwargs, ("query", "key", "value"))
    if name == "add" or name in MATMULS:
        return _by_name(args, kwargs, ("input", "other" if name == "add" or "other" in kwargs else "mat2"))
    return [args[0]] if args else list(kwargs.values())[:1]


def with_operands(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], new: Sequence[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the same call with other operands."""
    if name == "cat":
        return ((list(new), *args[1:]), dict(kwargs)) if args else ((), {**kwargs, "tensors": list(new)})
    given = min(len(args), len(new))
    names = {
        ATTENTION: ("query", "key", "value"),
        "add": ("input", "other"),
    }.get(name, ("input", "other" if "other" in kwargs else "mat2"))
    changed = {**kwargs, **dict(zip(names[given : len(new)], new[given:], strict=False))}
    return (*new[:given], *args[given:]), changed


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a call's result, through tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for part in value for tensor in tensors_of(part)]


def written_by(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Tensor | None:
    """The tensor that a call wrote into: `x` in `x.add_(y)`, `x += y`, `relu(x, inplace=True)`, `x[0] = y`, `out=x`."""
    first = args[0] if args else kwargs.get("input")
    if not isinstance(first, Tensor):
        return None
    name = _own_name(func)
    if name == "__setitem__":
        return first
    if not isinstance(result, Tensor):
        return None
    if result is kwargs.get("out"):
        return result
    functional = getattr(func, "__module__", None) == "torch.nn.functional"
    inplace = functional and (kwargs.get("inplace") is True or args[-1] is True)  # always their last parameter
    spelled = name.startswith("__i") if name.endswith("__") else name.endswith("_")
    return first if result is first and (inplace or spelled) else None


def counts(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call has a number: only those on floating-point tensors, of which training makes no others."""
    # A batch norm counts its batches in training alone, by `num_batches_tracked.add_(1)`.
    return any(tensor.is_floating_point() for tensor in tensors_of([*args, *kwargs.values()]))


def is_leaf(module: nn.Module) -> bool:
    """Whether calls inside `module` belong to the frame around it."""
    if type(module) in SWAPS or type(module) in SWAPS.values():
        return True
    plain = type(module).__module__.startswith("torch.nn.modules")
    return plain and not any(name != QUANTIZERS for name, _ in module.named_children())


def _own_name(func: Callable[..., Any]) -> str:
    return str(getattr(func, "__name__", "")).partition(".")[0]  # torch.ops.aten.relu.default


def _by_name(args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]
