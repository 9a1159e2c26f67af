"""The quick capture finds what torch.export's capture finds, and leaves to it what it isn't made for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.parametrizations import weight_norm

from nnicompress.graph import capture, find_channel_groups
from nnicompress.graph.capture import Captured
from nnicompress.graph.provenance import tracked_attributes
from nnicompress.graph.tracer import trace
from tests.graph.families import FAMILIES
from tests.zoo import ZOO

TRACER = "nnicompress.graph.tracer"
EXPORTED = {"segformer", "llama", "qwen2", "t5", "detr"}


def plain(value: Any) -> Any:
    """Channel groups as nested lists and dicts, to be compared with ==."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, tuple) else value


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    """The capture of torch.export, as on a torch that has not what the quick one is built on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, TRACER, None)
        return capture(model, args, kwargs)


def is_traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the quick capture takes this forward."""
    with torch.no_grad(), tracked_attributes(model):
        return trace(model.eval(), args, kwargs) is not None


def operators(captured: Captured) -> list[tuple[str, str, list[int] | None]]:
    """Operator, module and shape of each node that computes something."""
    nodes = [node for node in captured.graph.nodes if node.op == "call_function" and node.meta["val"] is not None]
    shapes = [list(n.meta["val"].shape) if isinstance(n.meta["val"], Tensor) else None for n in nodes]
    return [(str(n.target), captured.module_of(n), shape) for n, shape in zip(nodes, shapes, strict=True)]


def assert_equal_ways(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Both captures see the same operators and find the same groups, reasons, ties and outputs."""
    quick, slow = capture(model, args, kwargs), exported(model, args, kwargs)
    assert operators(quick) == operators(slow)
    assert plain(find_channel_groups(quick)) == plain(find_channel_groups(slow))


@pytest.mark.parametrize("name", ZOO)
def test_both_ways_find_the_same(name: str) -> None:
    model, (args, kwargs) = ZOO[name]()
    assert is_traced(model, args, kwargs) == (name != "shared_module")
    assert_equal_ways(model, args, kwargs)


def test_parametrized_weights_and_torch_attention() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    model = nn.Sequential(weight_norm(nn.Linear(8, 16)), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    assert is_traced(model, (torch.randn(3, 5, 8),), {})
    assert_equal_ways(model, (torch.randn(3, 5, 8),), {})
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_find_the_same_in_transformers(family: str) -> None:
    model, (args, kwargs), _ = FAMILIES[family]()
    # What switches gradients or has constants is torch.export's.
    assert is_traced(model, args, kwargs) == (family not in EXPORTED)
    assert_equal_ways(model, args, kwargs)


class Forward(nn.Module):
    """A linear layer with the given function behind it."""

    def __init__(self, function: Callable[[Forward, Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.count, self.seen, self.constant = 0, [torch.zeros(1)], torch.ones(4)
        self.register_buffer("last", torch.zeros(4))
        self._function = function

    def forward(self, x: Tensor) -> Any:
        return self._function(self, self.linear(x))


def writes_attribute(self: Forward, x: Tensor) -> Tensor:
    self.hidden = x
    return x


def writes_list(self: Forward, x: Tensor) -> Tensor:
    self.seen.append(x)
    return x


def writes_counter(self: Forward, x: Tensor) -> Tensor:
    self.count += 1
    return x


def writes_buffer(self: Forward, x: Tensor) -> Tensor:
    self.last = x[0]
    return x


def fails_after_writing(self: Forward, x: Tensor) -> Tensor:
    self.hidden = x
    raise ValueError("no")


def switches_gradients(self: Forward, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return x * 2


def autocasts(self: Forward, x: Tensor) -> Tensor:
    with torch.autocast("cpu"):
        return self.linear(x)


GIVEN_UP = {
    "an attribute is written": writes_attribute,
    "a list is written": writes_list,
    "a counter is written": writes_counter,
    "a buffer is replaced": writes_buffer,
    "it fails": fails_after_writing,
    "gradients are switched": switches_gradients,
    "autocast": autocasts,
    "a constant": lambda self, x: x + self.constant,
    "a literal tensor": lambda self, x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "control flow on values": lambda self, x: x if x.sum() > 0 else -x,
    "a size that depends on values": lambda self, x: x[x > 0],
    "vmap": lambda self, x: torch.vmap(torch.sin)(x),
    "a shape is changed in place": lambda self, x: x.clone().unsqueeze_(0),
    "an unknown output": lambda self, x: object(),
}


@pytest.mark.parametrize("function", GIVEN_UP.values(), ids=GIVEN_UP)
def test_it_gives_up_and_leaves_no_trace(function: Callable[[Forward, Tensor], Any]) -> None:
    model = Forward(function)
    before = {path: {**vars(part), "seen": list(model.seen)} for path, part in model.named_modules()}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert not is_traced(model, (torch.randn(2, 4),), {})
    for path, part in model.named_modules():
        now = {**vars(part), "seen": list(model.seen)}
        assert {**now, "training": True} == {**before[path], "training": True}
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(after[name] is tensor for name, tensor in tensors.items()) and after.keys() == tensors.keys()
    assert not torch_module._global_forward_hooks and not torch_module._global_forward_pre_hooks
    assert torch.is_grad_enabled() and not torch.compiler.is_compiling()
    assert not torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()
    with torch.autocast("cpu"):  # the nesting is counted, too: only the outermost one clears the cache
        assert torch.autocast_increment_nesting() == 2 and torch.autocast_decrement_nesting() == 1


def test_what_it_gives_up_on_is_exported() -> None:
    model = Forward(lambda self, x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]))
    groups = find_channel_groups(capture(model, (torch.randn(2, 4),)))
    assert {entry.tensor for entry in groups.unprunable} == {"linear.weight", "linear.bias"} | {"last"}


def test_factories_and_buffers_written_in_place_are_seen() -> None:
    def function(self: Forward, x: Tensor) -> Tensor:
        self.last.add_(1)
        return x * torch.arange(4, device=x.device) + self.last + torch.zeros(x.shape[-1])

    model = Forward(function)
    assert is_traced(model, (torch.randn(2, 4),), {})
    assert_equal_ways(model, (torch.randn(2, 4),), {})
    assert torch.equal(model.last, torch.zeros(4))
