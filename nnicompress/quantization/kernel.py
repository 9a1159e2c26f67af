"""Fake quantization, forward and backward, compiled for the CPU where a run is long enough to pay for compiling.

`fake_quantize` gives what `torch.fake_quantize_per_tensor_affine` and `_per_channel_affine` give, in every element:

    q  = nearbyint(x / scale) + zero_point
    y  = (clamp(q, quant_min, quant_max) - zero_point) * scale
    dx = dy where quant_min <= q <= quant_max, else 0

torch's own operators do this one element after the other and keep a mask for the backward. Compiled by Inductor it is
vectorised, and the backward computes the mask again from x, or passes the gradient as it is where the forward clipped
nothing (a weight within its own range). As both give the same numbers, a run may go from one to the other at any
moment, and a resumed one, too. They differ where torch's conversion to an integer is undefined: a NaN
stays NaN here, and what is beyond 2^63 steps is clipped to its own side.
"""

from __future__ import annotations

import functools
import math
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from nnicompress.errors import JobError
from nnicompress.events import Listener, Note, silent

Mode = Literal["auto", "always", "never"]
Kernel = Callable[..., tuple[Tensor, ...]]

SMALL = 65536
"""Below so many elements the call costs more than the work: torch's own operator is quicker."""
COMPILE_SECONDS = 30.0
"""What compiling is taken to cost before it was done in this process: measured with cold caches on a slow core."""
TYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Workload:
    """What a run will fake-quantize: elements in each step (forward and backward), how many steps, and where."""

    elements: int
    steps: int
    device: torch.device = torch.device("cpu")


@dataclass(frozen=True)
class Choice:
    """`compiled` or torch's own operators, and why, in a line."""

    compiled: bool
    reason: str

    def __str__(self) -> str:
        return f"fake quantization by {'a compiled kernel' if self.compiled else 'torch itself'}: {self.reason}"


@dataclass(frozen=True)
class Policy:
    """When to compile: where the seconds saved over the run are `margin` times those that compiling costs."""

    mode: Mode = "auto"
    margin: float = 2.0
    compile_seconds: float | None = None
    """null: what it took in this process, which is nothing more once it is done; before that COMPILE_SECONDS."""
    saved_per_element: float | None = None
    """Seconds, forward and backward together; null: measured, in a few hundredths of a second."""

    def choose(self, workload: Workload) -> Choice:
        """Decide for a run. `always` compiles wherever it is possible."""
        if self.mode == "never":
            return Choice(False, "compiling is switched off")
        if (obstacle := _obstacle(workload.device)) is not None:
            return Choice(False, obstacle)
        if self.mode == "always":
            return Choice(True, "asked for")
        if _KERNELS.made:
            return Choice(True, "it is compiled already")
        cost = COMPILE_SECONDS if self.compile_seconds is None else self.compile_seconds
        each = seconds_saved_per_element() if self.saved_per_element is None else self.saved_per_element
        saved = each * workload.elements * workload.steps
        sums = f"it would save {saved:.3g} s of this run, compiling takes about {cost:.3g} s"
        return Choice(saved >= self.margin * cost, sums)


@contextmanager
def chosen(policy: Policy, workload: Workload, listener: Listener = silent) -> Iterator[Choice]:
    """In this block `fake_quantize` does as `policy` chooses for the run, in all threads; the listener hears which."""
    global _active
    choice = policy.choose(workload)
    if choice.compiled and (failure := _KERNELS.failure) is not None:
        choice = Choice(False, failure)
    listener(Note(str(choice)))
    before, _active = _active, choice.compiled
    try:
        yield choice
    finally:
        _active = before


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int | None = None
) -> Tensor:
    """`x` moved to the nearest of the values `(q - zero_point) * scale`, quant_min <= q <= quant_max; shape of `x`.

    Args:
        x: of any shape and memory format, which the result has, too.
        scale: positive; one element, or with `axis` one for each index of that dimension of `x`.
        zero_point: whole numbers in [quant_min, quant_max], as many.
        quant_min: the smallest q.
        quant_max: the largest q.
        axis: the dimension of channels; None: one scale for all.

    The gradient is that of the straight-through estimator, to `x` alone (Jacob et al. 2018; Bengio et al. 2013).
    """
    layout = _layout(tuple(x.shape), x.stride(), axis) if _active and _is_plain(x) else None
    count = 1 if axis is None else x.shape[axis]
    fits = scale.numel() == zero_point.numel() == count  # else torch's operator says what is wrong
    if layout is not None and fits and _KERNELS.ready(layout.kind, x.dtype):
        result: Tensor = _Compiled.apply(x, scale, zero_point, quant_min, quant_max, layout)  # type: ignore[no-untyped-call]
        return result
    return by_torch(x, scale, zero_point, quant_min, quant_max, axis)


def by_torch(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int | None = None
) -> Tensor:
    """`fake_quantize` by torch's own operators."""
    scale, zero_point = scale.detach().float(), zero_point.detach().to(torch.int32)
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale.reshape(()), zero_point.reshape(()), quant_min, quant_max)
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis % x.dim(), quant_min, quant_max)


def seconds_saved_per_element() -> float:
    """What torch's own operator takes for an element, forward and backward, above a multiplication in its place."""
    x = torch.ones(1 << 18)
    scale, zero_point, mask = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), torch.ones_like(x)

    def fastest(work: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return min(times)

    # The backward is a multiplication by the mask either way.
    own = fastest(lambda: torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255))
    return max(own - fastest(lambda: x * mask), 0.0) / x.numel()


_active = False


def _obstacle(device: torch.device) -> str | None:
    """Why nothing can be compiled here, None where it can."""
    if device.type != "cpu":
        return f"on {device.type} torch's own operators are used"
    from torch._dynamo import config as dynamo
    from torch._inductor.cpp_builder import get_cpp_compiler

    if dynamo.disable:
        return "torch.compile is disabled"
    try:
        compiler = get_cpp_compiler()
    except Exception as error:  # Inductor raises its own InvalidCxxCompiler, or what running the compiler raised
        return f"there is no C++ compiler ({str(error).strip().partition(chr(10))[0]})"
    return None if shutil.which(compiler) else f"there is no C++ compiler {compiler!r}"


def _is_plain(x: Tensor) -> bool:
    """Whether `x` is an ordinary large tensor on the CPU that nobody traces: others see torch's own operators."""
    return (
        not torch.compiler.is_compiling()  # first: while Dynamo traces, nothing after it is asked
        and type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype in TYPES
        and x.numel() >= SMALL
        and x.layout == torch.strided
        and torch._C._get_tracing_state() is None
        and _get_current_dispatch_mode() is None
        and not torch._C._are_functorch_transforms_active()
    )


@dataclass(frozen=True)
class _Layout:
    """How a dense tensor of any memory format is one of three shapes, without a copy.

    `flat` is [n] and has one scale; `rows` [r, n], a scale a row; `columns` [r, n], a scale a column.
    """

    kind: Literal["flat", "rows", "columns"]
    order: tuple[int, ...]
    """Dimensions from the largest stride to the smallest: so permuted, the tensor is contiguous."""
    shape: tuple[int, ...]
    repeats: int = 1
    """For `rows`: how often all scales follow each other, the product of the dimensions outside `axis`."""
    in_order: bool = field(init=False)
    """Whether the dimensions lie as they are counted."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_order", self.order == tuple(range(len(self.order))))

    def of(self, x: Tensor) -> Tensor:
        """`x` in this shape, without a copy unless it lies otherwise than the tensor that the layout was made for."""
        return (x if self.in_order else x.permute(self.order)).reshape(self.shape).contiguous()

    def back(self, y: Tensor, like: Tensor) -> Tensor:
        """The inverse, in the shape and strides of `like`."""
        if self.in_order:
            return y.view(like.shape)
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return y.view([like.shape[dim] for dim in self.order]).permute(inverse)

    def parameters(self, values: Tensor) -> Tensor:
        """Float32 scales, or zero points, in a shape that broadcasts; always a copy, as an observer may change them."""
        values = _bare(values).to(torch.float32, copy=True)
        if self.kind == "flat":
            return values if values.dim() == 0 else _bare(values.reshape(()))
        if self.kind == "columns":
            return _bare(values[None])
        return _bare((values if self.repeats == 1 else values.repeat(self.repeats))[:, None])


@functools.lru_cache(maxsize=4096)  # a run has few shapes and asks at every call
def _layout(shape: tuple[int, ...], strides: tuple[int, ...], axis: int | None) -> _Layout | None:
    """The layout of a tensor; None where it has gaps or overlaps, or a shape that is for torch's own operator."""
    order = tuple(sorted(range(len(shape)), key=lambda dim: (-strides[dim], dim)))
    expected = 1
    for dim in reversed(order):
        if shape[dim] != 1 and strides[dim] != expected:
            return None
        expected *= shape[dim]
    if axis is None:
        return _Layout("flat", order, (math.prod(shape),))
    place = order.index(axis % len(shape))
    sizes = [shape[dim] for dim in order]
    outer, channels, inner = math.prod(sizes[:place]), sizes[place], math.prod(sizes[place + 1 :])
    if inner > 1 and outer * channels > 1:
        return _Layout("rows", order, (outer * channels, inner), outer)
    if inner == 1 and outer > 1 and channels > 1:
        return _Layout("columns", order, (outer, channels))
    return None


def _forward(
    x: Tensor, scale: Tensor, inverse: Tensor, zero_point: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The result, and whether all of `x` is inside: then the backward has nothing to do."""
    q = torch.round(x.float() * inverse) + zero_point
    return ((q.clamp(low, high) - zero_point) * scale).to(x.dtype), ((q >= low) & (q <= high)).all()


def _backward(
    gradient: Tensor, x: Tensor, inverse: Tensor, zero_point: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor]:
    q = torch.round(x.float() * inverse) + zero_point
    return (gradient * ((q >= low) & (q <= high)),)


class _Kernels:
    """The compiled functions: a pair for each layout and element type, made when they are first used.

    Bounds, scales and sizes are arguments, so that one pair serves all schemes, layers and batches. Each function is
    compiled as a code object of its own: Dynamo counts recompilations by code object, and the user's are not touched.
    """

    def __init__(self) -> None:
        self.made: dict[tuple[str, torch.dtype], tuple[Kernel, Kernel]] = {}
        self.failure: str | None = None
        """Why compiling failed; then torch's own operators are used for the rest of the process."""
        self._lock = threading.RLock()

    def ready(self, kind: str, dtype: torch.dtype) -> bool:
        """Compile the pair where it isn't yet; False where that fails."""
        if (kind, dtype) in self.made:
            return True
        with self._lock:
            if (kind, dtype) not in self.made and self.failure is None:
                try:
                    self.made[kind, dtype] = _compile(kind, dtype)
                except Exception as error:  # a compiler of anybody's may fail in any way, and nothing depends on it
                    self.failure = f"compiling failed ({str(error).strip().partition(chr(10))[0]})"
        return self.failure is None


_KERNELS = _Kernels()


def _compile(kind: str, dtype: torch.dtype) -> tuple[Kernel, Kernel]:
    # No size of 0 or 1, and no tensor twice: Dynamo would take either for a property of all calls.
    shape = {"flat": (67,), "rows": (5, 67), "columns": (5, 67)}[kind]
    x, gradient = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    scale, inverse, zero_point = (torch.ones({"flat": (), "rows": (5, 1), "columns": (1, 67)}[kind]) for _ in range(3))
    bounds = _bounds(0, 255)
    with torch.no_grad(), _no_autocast(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor's own imports meet deprecated parts of torch
        return (
            _compiled(_copy_of(_forward, f"_forward_{kind}"), (x, scale, inverse, zero_point, *bounds)),
            _compiled(_copy_of(_backward, f"_backward_{kind}"), (gradient, x, inverse, zero_point, *bounds)),
        )


def _compiled(function: Kernel, example: tuple[Tensor, ...]) -> Kernel:
    """What Inductor makes of `function`, without what Dynamo does at each call, which may take as long as the work.

    Dynamo's guards ask for nothing that a layout doesn't see to: element type, contiguity, sizes above 1. The order of
    the arguments of the code, tensors and sizes, is read off one call.
    """
    from torch._functorch import config as functorch
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    made: list[Any] = []

    def inner(graph: Any, inputs: Any, **settings: Any) -> Any:
        made.append(compile_fx_inner(graph, inputs, **settings))
        return made[-1]

    def backend(graph: Any, inputs: Any) -> Any:
        # In this process: Inductor's pool of compiling processes would not survive a fork.
        return compile_fx(graph, inputs, inner_compile=inner, config_patches={"compile_threads": 1})

    whole = torch.compile(function, backend=backend, dynamic=True, fullgraph=True)
    with functorch.patch(enable_autograd_cache=False):  # it knows the whole of an earlier process; Inductor's own stays
        whole(*example)
    (graph,) = made
    code, seen = graph.current_callable, list[Any]()

    def spy(given: list[Any]) -> Any:
        seen[:] = given
        return code(given)

    graph.current_callable = spy
    try:
        whole(*example)
    finally:
        graph.current_callable = code
    places = [_place(argument, example) for argument in seen]

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = code([tensors[i] if dim is None else tensors[i].shape[dim] for i, dim in places])
        return result

    return call


def _place(argument: Any, example: tuple[Tensor, ...]) -> tuple[int, int | None]:
    """Which tensor of `example` an argument is, or which size of which tensor."""
    for index, tensor in enumerate(example):
        if isinstance(argument, Tensor):
            if argument.data_ptr() == tensor.data_ptr():
                return index, None
        elif argument in tensor.shape:
            return index, tensor.shape.index(argument)
    raise JobError(f"Inductor's code takes an argument that is none of the kernel's: {argument!r}")


def _copy_of(function: Kernel, name: str) -> Kernel:
    assert isinstance(function, FunctionType)
    return FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)


@functools.lru_cache(maxsize=256)
def _bounds(low: int, high: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(float(low)), torch.tensor(float(high))


def _bare(x: Tensor) -> Tensor:
    """`x` as a tensor that is no view and asks for no gradient: Dynamo compiles anew for each kind of base."""
    return x.data


def _no_autocast() -> AbstractContextManager[object]:
    """Dynamo compiles anew where autocast is on, though nothing here depends on it."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


def _saved(ctx: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What the forward kept; torch's own operator keeps a mask instead, and doesn't mind."""
    try:
        x, inverse, zero_point = ctx.saved_tensors
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise JobError(
            "a tensor was written to in place after it was fake-quantized (by inplace=True, or +=), and the compiled "
            "kernel needs it for the gradient; let torch's own operators do it: kernel: torch"
        ) from error
    return x, inverse, zero_point


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, layout: _Layout
    ) -> Tensor:
        scale, zero_point, bounds = (
            layout.parameters(scale),
            layout.parameters(zero_point),
            _bounds(quant_min, quant_max),
        )
        inverse = scale.reciprocal()
        forward, _ = _KERNELS.made[layout.kind, x.dtype]
        with _no_autocast():
            result, inside = forward(_bare(layout.of(x)), scale, inverse, zero_point, *bounds)
        ctx.layout, ctx.bounds, ctx.inside = layout, bounds, bool(inside)
        if not ctx.inside:
            ctx.save_for_backward(x, inverse, zero_point)
        return layout.back(result, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.inside:
            return gradient, None, None, None, None, None
        x, inverse, zero_point = _saved(ctx)
        layout: _Layout = ctx.layout
        others = (inverse, zero_point, *ctx.bounds)
        if torch.is_grad_enabled() or not _is_plain(gradient):  # somebody differentiates the backward, or traces it
            (result,) = _backward(layout.of(gradient), layout.of(x), *others)
        else:
            _, backward = _KERNELS.made[layout.kind, x.dtype]
            with _no_autocast():
                (result,) = backward(_bare(layout.of(gradient)), _bare(layout.of(x)), *others)
        return layout.back(result, x), None, None, None, None, None
