"""Where the sizes in a model's forward come from: a tensor's shape, a module's attribute, or a literal number.

Surgery changes tensors, not the user's Python code. `x.view(b, 2, c // 2, h, w)` follows a narrower tensor by itself
when `c` was read from `x.shape`; when it is `self.width` that attribute must be rewritten; when it is the literal 64
nothing can help and the dimension must stay. Two equal integers say nothing about this, so the capture runs with
integers that remember their origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import traceback as fx_traceback
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class ShapeOf:
    """Dimension `dim` of the tensor that call `call` returned at position `output` (`call` -1: a model input)."""

    call: int
    output: int
    dim: int
    value: int


@dataclass(frozen=True)
class AttributeOf:
    """Integer `attribute` of module `module`."""

    module: str
    attribute: str
    value: int


Origin = ShapeOf | AttributeOf


@dataclass(frozen=True)
class Size:
    """A size as a product: `coefficient` times the origins' values. No origin: a literal number.

    `divisors` are origins that it was divided by; their values as they were are in the coefficient.
    """

    value: int
    coefficient: Fraction = Fraction(1)
    origins: tuple[Origin, ...] = ()
    divisors: tuple[Origin, ...] = field(default=(), compare=False)


_ESCAPED: list[set[Origin]] = []
"""The recordings in progress: each hears which origins were used as plain numbers."""


class TrackedInt(int):
    """An integer that remembers which shapes and attributes it was multiplied from."""

    size: Size

    def __new__(
        cls, value: int, coefficient: Fraction, origins: tuple[Origin, ...], divisors: tuple[Origin, ...] = ()
    ) -> TrackedInt:
        """`value` is what the integer is, the rest where it comes from (see Size)."""
        self = super().__new__(cls, value)
        self.size = Size(value, coefficient, origins, divisors)
        return self

    def __mul__(self, other: Any) -> Any:
        product, own = int(self) * other, self.size
        if isinstance(other, TrackedInt):
            size = other.size
            coefficient = own.coefficient * size.coefficient
            return TrackedInt(product, coefficient, own.origins + size.origins, own.divisors + size.divisors)
        if type(other) is int:
            return TrackedInt(product, own.coefficient * other, own.origins, own.divisors)
        return product

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        quotient, own = int(self) // other, self.size
        if not isinstance(other, int) or int(self) % other:
            return quotient
        # c // self.groups: the divisor is a constant of the division, its origin does not scale with it.
        divisors = other.size.origins if isinstance(other, TrackedInt) else ()
        return TrackedInt(quotient, own.coefficient / int(other), own.origins, own.divisors + divisors)

    def _escape(self) -> int:
        """The plain value, for arithmetic that no size follows; whoever records learns that the origins were used."""
        for escaped in _ESCAPED:
            escaped.update(self.size.origins)
        return int(self)

    def __add__(self, other: Any) -> Any:
        return self._escape() + other

    def __radd__(self, other: Any) -> Any:
        return other + self._escape()

    def __sub__(self, other: Any) -> Any:
        return self._escape() - other

    def __rsub__(self, other: Any) -> Any:
        return other - self._escape()

    def __truediv__(self, other: Any) -> Any:
        return self._escape() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._escape()

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(self._escape(), other, modulo)

    def __rpow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(other, self._escape(), modulo)

    def __float__(self) -> float:
        return float(self._escape())

    def __lt__(self, other: Any) -> bool:
        return bool(self._escape() < other)

    def __le__(self, other: Any) -> bool:
        return bool(self._escape() <= other)

    def __gt__(self, other: Any) -> bool:
        return bool(self._escape() > other)

    def __ge__(self, other: Any) -> bool:
        return bool(self._escape() >= other)

    def __neg__(self) -> Any:
        return TrackedInt(-int(self), -self.size.coefficient, self.size.origins)

    def __deepcopy__(self, memo: Any) -> TrackedInt:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def size_of(value: Any) -> Size:
    """The provenance of an integer; a plain one is a literal."""
    return value.size if isinstance(value, TrackedInt) else Size(int(value))


@dataclass(frozen=True, eq=False)
class Call:
    """One Python-level torch call of a forward: the function's bare name and its arguments."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


CALL = "nnicompress_call"
"""Key in `node.meta["custom"]`: the number of the Python-level torch call that made the node."""


class RecordCalls(TorchFunctionMode):
    """Numbers each torch call of a forward, marks the graph's nodes with it, and makes shapes tracked integers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.escaped: set[Origin] = set()
        # The tensors are kept alive so that an id stays with its tensor until the capture is over.
        self._made_by: dict[int, tuple[int, int, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.shape.__get__ or func is torch.Tensor.size:  # type: ignore[attr-defined]
            return self._tracked_shape(func(*args, **kwargs), args, kwargs)
        call = len(self.calls)
        self.calls.append(Call(getattr(func, "__name__", ""), args, kwargs))
        result = self._run(call, func, args, kwargs)
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        for position, output in enumerate(outputs):
            if isinstance(output, Tensor):
                self._made_by.setdefault(id(output), (call, position, output))
        return result

    def _run(self, call: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with fx_traceback.preserve_node_meta(), fx_traceback.annotate({CALL: call}):
            return func(*args, **kwargs)

    def __enter__(self) -> RecordCalls:
        _ESCAPED.append(self.escaped)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _ESCAPED.remove(self.escaped)

    def _tracked_shape(self, shape: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        tensor = args[0]
        call, position, _ = self._made_by.get(id(tensor), (-1, 0, tensor))

        def tracked(size: Any, dim: int) -> Any:
            if type(size) is not int:
                return size
            return TrackedInt(size, Fraction(1), (ShapeOf(call, position, dim % tensor.dim(), size),))

        if isinstance(shape, torch.Size):
            return torch.Size([tracked(size, dim) for dim, size in enumerate(shape)])
        dim = args[1] if len(args) > 1 else kwargs["dim"]
        return tracked(shape, int(dim))


@contextmanager
def tracked_attributes(model: nn.Module) -> Iterator[None]:
    """Within the context every integer attribute of every module remembers its module and name.

    So does a tuple of one integer (`normalized_shape`).
    """
    changed: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for path, module in model.named_modules():
            attributes = module.__dict__
            for name, value in list(attributes.items()):
                number = value[0] if type(value) is tuple and len(value) == 1 else value
                if type(number) is int and number > 0 and not name.startswith("_"):
                    changed.append((attributes, name, value))
                    tracked = TrackedInt(number, Fraction(1), (AttributeOf(path, name, number),))
                    attributes[name] = (tracked,) if type(value) is tuple else tracked
        yield
    finally:
        for attributes, name, value in changed:
            attributes[name] = value
