"""Fake quantization: every element beside torch's own operators, forward and backward; what is compiled, and when."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import JobError
from nnicompress.events import Event, Note
from nnicompress.quantization import kernel
from nnicompress.quantization.kernel import Choice, Policy, Workload, by_torch, chosen, fake_quantize

ALWAYS, ANY = Policy("always"), Workload(elements=1, steps=1)
Bounds = tuple[int, int]


# The compiled half takes two minutes where Inductor's cache is empty.
@pytest.fixture(params=["expressions", pytest.param("compiled", marks=pytest.mark.slow)])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel in force, as plain expressions (what is to be compiled) and compiled."""
    if request.param == "expressions":
        monkeypatch.setattr(kernel, "_KERNELS", kernel._Kernels())
        monkeypatch.setattr(kernel, "_compile", lambda kind, dtype: (kernel._forward, kernel._backward))
    monkeypatch.setattr(kernel, "SMALL", 4096)
    with chosen(ALWAYS, ANY) as choice:
        assert choice.compiled, choice
        yield
    assert kernel._KERNELS.failure is None


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layouts that were computed by the kernel."""
    found: list[str] = []
    original = kernel._Compiled.apply

    def apply(*arguments: object) -> object:
        found.append(arguments[-1].kind)
        return original(*arguments)

    monkeypatch.setattr(kernel._Compiled, "apply", apply)
    return found


def values(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Numbers around zero, every fifth a tie between two steps of 0.25, every eleventh far outside the range."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(math.prod(shape), generator=generator) * 4
    flat[::5] = (torch.arange(len(flat[::5])) % 64 - 32 + 0.5) * 0.25
    flat[::11] *= 1e3
    return flat.to(dtype).reshape(shape)


def both(
    x: Tensor, scale: Tensor, zero_point: Tensor, bounds: Bounds, axis: int | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Output and gradient by the kernel, and by torch's own operator."""
    results = []
    for function in (fake_quantize, by_torch):
        leaf = x.detach().requires_grad_()
        y = function(leaf, scale, zero_point, *bounds, axis)
        gradient = values(tuple(y.shape), y.dtype, seed=1)
        (dx,) = torch.autograd.grad(y, leaf, gradient)
        results.append((y.detach(), dx))
    return results[0], results[1]


def assert_equal(x: Tensor, scale: Tensor, zero_point: Tensor, bounds: Bounds, axis: int | None = None) -> None:
    (y, dx), (wanted, wanted_dx) = both(x, scale, zero_point, bounds, axis)
    assert torch.equal(y, wanted)
    assert torch.equal(dx, wanted_dx)
    assert y.dtype == wanted.dtype == x.dtype
    assert y.stride() == wanted.stride()


BOUNDS = [(0, 255), (-128, 127), (-127, 127), (-8, 7), (0, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_one_scale(kernels: None, used: list[str], bounds: Bounds, dtype: torch.dtype) -> None:
    for scale in (0.25, 0.1, 3e-5, 1e4):  # 0.25 meets the ties, 3e-5 clips nearly all
        for zero_point in (0, bounds[0], (bounds[0] + bounds[1]) // 2 + 1):
            assert_equal(
                values((4, 16, 16, 16), dtype), torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), bounds
            )
    assert used == ["flat"] * 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("axis", "memory_format", "layout"),
    [
        (0, torch.contiguous_format, "rows"),
        (1, torch.contiguous_format, "rows"),
        (-1, torch.contiguous_format, "columns"),
        (0, torch.channels_last, "rows"),
        (1, torch.channels_last, "columns"),
        (2, torch.channels_last, "rows"),
    ],
    ids=str,
)
def test_a_scale_for_each_channel(
    kernels: None, used: list[str], axis: int, memory_format: torch.memory_format, layout: str, dtype: torch.dtype
) -> None:
    x = values((6, 24, 10, 9), dtype).to(memory_format=memory_format)
    count = x.shape[axis]
    scale = torch.linspace(0.01, 0.5, count)
    zero_point = torch.arange(count, dtype=torch.int32) % 16
    assert_equal(x, scale, zero_point, (0, 15), axis)
    assert used == [layout]


def test_a_tensor_of_any_dense_order(kernels: None, used: list[str]) -> None:
    x = values((16, 24, 40)).permute(2, 0, 1)
    assert_equal(x, torch.tensor(0.25), torch.tensor(3, dtype=torch.int32), (0, 255))
    assert_equal(x, torch.linspace(0.1, 1, 16), torch.zeros(16, dtype=torch.int32), (-8, 7), 1)
    assert used == ["flat", "rows"]


def test_gaps_overlaps_and_small_tensors_are_left_to_torch(kernels: None, used: list[str]) -> None:
    scale, zero_point = torch.tensor(0.25), torch.tensor(0, dtype=torch.int32)
    for x in (
        values((64, 512))[:, ::2],
        values((1, 512)).expand(64, 512),
        values((16, 16)),
        values((128, 128)).double(),
        values((128, 128)).half(),
    ):
        assert_equal(x, scale, zero_point, (-128, 127))
    assert_equal(values((9000,)), torch.full((9000,), 0.25), torch.zeros(9000, dtype=torch.int32), (-8, 7), 0)
    assert used == []


@pytest.mark.parametrize(("count", "axis"), [(1, 0), (3, 0), (2, None)])
def test_scales_that_do_not_fit_are_refused_as_by_torch(kernels: None, count: int, axis: int | None) -> None:
    x, scale, zero_point = values((64, 128)), torch.ones(count), torch.zeros(count, dtype=torch.int32)
    for function in (by_torch, fake_quantize):
        with pytest.raises(RuntimeError, match="consistent with input tensor|invalid for input of size"):
            function(x, scale, zero_point, -8, 7, axis)


def test_by_hand(kernels: None) -> None:
    x = torch.zeros(kernel.SMALL)
    x[:8] = torch.tensor([0.24, 0.25, 0.75, 1.25, -0.25, -0.75, 40.0, -40.0])
    x.requires_grad_()
    y = fake_quantize(x, torch.tensor(0.5), torch.tensor(2, dtype=torch.int32), 0, 7)
    y.sum().backward()
    assert x.grad is not None
    # 0.25 / 0.5 = 0.5 goes to the even 0, 1.5 to 2, 2.5 to 2; the range is (0 - 2) * 0.5 to (7 - 2) * 0.5.
    assert y[:8].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, -1.0, 2.5, -1.0]
    assert x.grad[:8].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]


def test_a_scale_that_changes_before_the_backward_changes_no_gradient(kernels: None) -> None:
    """As an observer does that sees a module's second call."""
    x = values((128, 128)).requires_grad_()
    scale, zero_point = torch.tensor(0.25), torch.tensor(0, dtype=torch.int32)
    y, wanted = (f(x, scale, zero_point, -8, 7) for f in (fake_quantize, by_torch))
    scale.fill_(100.0)
    zero_point.fill_(5)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(wanted.sum(), x)[0])


def test_a_gradient_passes_as_it_is_only_where_nothing_was_clipped(
    kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One element outside, wherever it lies, is found: none is taken for the tail of a vector."""
    backwards: list[str] = []
    for key in [(kind, torch.float32) for kind in ("flat", "rows", "columns")]:
        assert kernel._KERNELS.ready(*key)
        forward, backward = kernel._KERNELS.made[key]

        def spy(*tensors: Tensor, kind: str = key[0], original: kernel.Kernel = backward) -> tuple[Tensor, ...]:
            backwards.append(kind)
            return original(*tensors)

        monkeypatch.setitem(kernel._KERNELS.made, key, (forward, spy))
    scale, zero_point = torch.linspace(0.5, 1, 97), torch.arange(97, dtype=torch.int32) % 3
    for axis in (None, 0, 1):
        own = (scale[0], zero_point[0]) if axis is None else (scale, zero_point)
        inside = values((97, 97)).clamp(-3, 3)
        assert_equal(inside, *own, (-8, 9), axis)
        assert not backwards
        for place in (0, 4_500, 97 * 97 - 1):
            for value in (1e3, -1e3):
                x = inside.clone()
                x.view(-1)[place] = value
                assert_equal(x, *own, (-8, 9), axis)
                assert backwards == [{None: "flat", 0: "rows", 1: "columns"}[axis]]
                backwards.clear()


def test_the_backward_can_be_differentiated(kernels: None) -> None:
    results = []
    for function in (fake_quantize, by_torch):
        x = values((128, 128)).requires_grad_()
        y = function(x, torch.tensor(0.25), torch.tensor(0, dtype=torch.int32), -8, 7)
        (first,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        results.append((first.detach(), *torch.autograd.grad((first**2).sum(), x)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_tensor_changed_in_place_is_explained(kernels: None) -> None:
    x = values((128, 128)).requires_grad_() * 1
    y = fake_quantize(x, torch.tensor(0.25), torch.tensor(0, dtype=torch.int32), -8, 7)
    x.relu_()
    with pytest.raises(JobError, match=r"in place after it was fake-quantized.*kernel: torch"):
        y.sum().backward()


def test_what_is_no_number_stays_none(kernels: None) -> None:
    x = torch.zeros(kernel.SMALL)
    x[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    y = fake_quantize(x, torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), -8, 7)
    assert y[0].isnan()
    assert y[1:3].tolist() == [3.5, -4.0]


def test_autocast_changes_nothing(kernels: None) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(values((128, 128)), torch.tensor(0.25), torch.tensor(0, dtype=torch.int32), (-8, 7))


class Simulated(nn.Module):
    """A linear layer on a fake-quantized input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(128, 4)
        self.register_buffer("scale", torch.tensor(0.25))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(fake_quantize(x, self.scale, self.zero_point, -8, 7))


def test_what_traces_sees_the_operator_of_torch(kernels: None, used: list[str]) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, x = Simulated(), values((128, 128))
    program = torch.export.export(model, (x,), strict=False)
    assert any("fake_quantize_per_tensor_affine" in str(node.target) for node in program.graph.nodes)
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert torch.equal(compiled(x), model.linear(by_torch(x, model.scale, model.zero_point, -8, 7)))
    assert any("fake_quantize" in target for target in seen)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(x).shape == (128, 4)
    assert torch.func.grad(lambda inputs: model(inputs).sum())(x).shape == x.shape
    assert used == []


def test_batch_sizes_schemes_and_gradients_of_any_layout_compile_nothing_more(kernels: None) -> None:
    from torch._dynamo.utils import counters

    for kind in ("flat", "rows", "columns"):
        assert kernel._KERNELS.ready(kind, torch.float32)
    before = counters["stats"]["unique_graphs"]
    zero_points = torch.zeros(16, dtype=torch.int32)
    for batch, bounds in ((2, (-8, 7)), (3, (-128, 127)), (1, (0, 255)), (8, (0, 15))):
        x = values((batch, 16, 32, 32))
        assert_equal(x, torch.tensor(0.3), zero_points[0], bounds)
        assert_equal(x, torch.linspace(0.1, 1, 16), zero_points, bounds, 1)
        assert_equal(x.movedim(1, 3).contiguous(), torch.linspace(0.1, 1, 16), zero_points, bounds, 3)
        x.requires_grad_()
        fake_quantize(x[:, :, 1:].relu() * 1, torch.tensor(0.3), zero_points[:1], *bounds).sum().backward()
    assert counters["stats"]["unique_graphs"] == before


def test_threads_and_a_forked_process_compute_the_same(kernels: None) -> None:
    x, scale, zero_point = values((16, 32, 32)), torch.tensor(0.25), torch.tensor(0, dtype=torch.int32)
    wanted = by_torch(x, scale, zero_point, -8, 7)
    agree: list[bool] = []
    work = lambda: agree.append(torch.equal(fake_quantize(x, scale, zero_point, -8, 7), wanted))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert agree == [True] * 4
    child = os.fork()
    if child == 0:
        try:
            ok = torch.equal(fake_quantize(x, scale, zero_point, -8, 7), wanted)
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_compiler_that_fails_leaves_the_work_to_torch(monkeypatch: pytest.MonkeyPatch, used: list[str]) -> None:
    def fail(kind: str, dtype: torch.dtype) -> tuple[kernel.Kernel, kernel.Kernel]:
        raise RuntimeError("no space left\non the device")

    monkeypatch.setattr(kernel, "_KERNELS", kernel._Kernels())
    monkeypatch.setattr(kernel, "_compile", fail)
    monkeypatch.setattr(kernel, "SMALL", 4096)
    with chosen(ALWAYS, ANY):
        assert_equal(values((128, 128)), torch.tensor(0.25), torch.tensor(0, dtype=torch.int32), (-8, 7))
    assert used == []
    with chosen(ALWAYS, ANY) as choice:
        assert choice == Choice(False, "compiling failed (no space left)")


def test_outside_the_block_torch_does_it(used: list[str]) -> None:
    assert_equal(values((128, 128)), torch.tensor(0.25), torch.tensor(0, dtype=torch.int32), (-8, 7))
    assert used == []


def test_compiling_is_chosen_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_KERNELS", kernel._Kernels())
    policy = Policy(compile_seconds=30.0, saved_per_element=5e-9)
    # 2 * 30 s are worth it from 60 / (5e-9 * 2e6) = 6000 steps on.
    assert not policy.choose(Workload(2_000_000, 5_999)).compiled
    assert policy.choose(Workload(2_000_000, 6_001)).compiled
    kernel._KERNELS.made["flat", torch.float32] = (kernel._forward, kernel._backward)
    assert policy.choose(Workload(1, 1)).compiled
    assert not Policy("never").choose(Workload(2_000_000, 10**9)).compiled
    assert not ALWAYS.choose(Workload(1, 1, torch.device("cuda"))).compiled


def test_without_a_compiler_the_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Event] = []
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "/nowhere/g++")
    with chosen(ALWAYS, ANY, heard.append) as choice:
        assert not choice.compiled
    assert heard == [Note("fake quantization by torch itself: there is no C++ compiler '/nowhere/g++'")]


def test_the_saving_is_measured() -> None:
    """Between nothing and a microsecond an element, on any machine."""
    assert 0 <= kernel.seconds_saved_per_element() < 1e-6
