"""A quick capture for ordinary forwards: the operators that torch.export would see, without all that follows them.

torch.export traces a forward with torch's proxy mode at the pre-dispatch key, on fake tensors, and then spends three
quarters of its time on what nobody here reads: code generation, verification, names, signatures. `trace` runs the same
forward under the same modes and only writes the operators down. Whatever it isn't made for (autocast and gradient
switches in the forward, functorch, higher-order operators, constants, sizes that depend on data) it gives up on by
returning None; the caller then asks torch.export, which has the answer or the reason. The tests compare the channel
groups of both ways on every network they have.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._export.utils import _compiling_state_context
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import PreDispatchTorchFunctionMode, ProxyTorchDispatchMode, PythonKeyTracer
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from nnicompress.graph.fakes import Unusual, as_it_was, swapped
from nnicompress.graph.provenance import CALL, RecordCalls

_SWITCHES = frozenset({"_set_grad_enabled", "_enter_autocast", "_exit_autocast"})
"""Functions that torch.export turns into regions of the graph; those of autocast only tell of what is done already."""


class _TellsOfAutocast(PreDispatchTorchFunctionMode):
    """torch.autocast announces itself to modes of this class only."""

    def __init__(self) -> None:
        TorchFunctionMode.__init__(self)


class _OrdinaryCalls(RecordCalls, _TellsOfAutocast):
    """Records calls like its first parent, and knows which one is running."""

    current: int | None = None
    switched = False

    def _run(self, call: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        name, module = getattr(func, "__name__", ""), str(getattr(func, "__module__", ""))
        if name in _SWITCHES:
            # Not raised here: a context that can't be entered is never left, and autocast would stay on.
            self.switched = True
            return func(*args, **kwargs) if name == "_set_grad_enabled" else None
        if module.startswith("torch._functorch"):
            raise Unusual(func)
        self.current = call
        try:
            return func(*args, **kwargs)
        finally:
            self.current = None


class _RecordOperators(ProxyTorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes every operator into a graph.

    It is a proxy mode because torch lets no other kind see operators before composite ones are taken apart.
    """

    def __init__(self, calls: _OrdinaryCalls) -> None:
        super().__init__(PythonKeyTracer(), "real", pre_dispatch=True)
        self.recorded = Graph()
        self.modules = ["model"]
        self._calls = calls
        self._nodes: MutableMapping[Tensor, Node] = WeakTensorKeyDictionary()

    def placeholder(self, tensor: Tensor, name: str) -> Node:
        """A tensor that the forward starts from."""
        node = self._nodes[tensor] = self.recorded.placeholder(name)
        node.meta["val"] = tensor
        return node

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if torch.Tag.inplace_view in func.tags:  # it would change the shape of a value already written down
            raise Unusual(func)
        node = self._node(func, self._of(args), {name: self._of(value) for name, value in kwargs.items()})
        result = func(*args, **kwargs)
        self._write(node, result)
        if not node.all_input_nodes and isinstance(result, Tensor):
            # torch hands a factory's tensor on as it is only while nobody else holds it.
            node.meta["val"] = result.detach()
        return result

    def output(self, result: Any) -> None:
        """What the forward returned."""
        leaves = pytree.tree_leaves(result)
        if not all(isinstance(leaf, (Tensor, int, float, bool, str, type(None))) for leaf in leaves):
            raise Unusual(type(result))
        self.recorded.output(tuple(self._of(leaves)))

    def _of(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            node = self._nodes.get(value)
            if node is None:
                raise Unusual("a constant")
            return node
        return [self._of(part) for part in value] if isinstance(value, (list, tuple)) else value

    def _node(self, target: Any, args: Any, kwargs: dict[str, Any]) -> Node:
        node = self.recorded.call_function(target, tuple(args), kwargs)
        node.meta["nn_module_stack"] = {"": (self.modules[-1], "")}
        if self._calls.current is not None:
            node.meta["custom"] = {CALL: self._calls.current}
        return node

    def _write(self, node: Node, result: Any) -> None:
        node.meta["val"] = result
        if isinstance(result, Tensor):
            self._nodes[result] = node
        elif isinstance(result, (list, tuple)):
            for position, part in enumerate(result):
                self._write(self._node(operator.getitem, (node, position), {}), part)
        elif result is not None:
            raise Unusual(node.target)


def trace(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: tuple[str, ...] = ()
) -> tuple[Graph, dict[str, str], RecordCalls] | None:
    """The operators of `model`'s forward on these inputs, or None where that takes torch.export.

    Returned are the graph, the parameter or buffer behind each placeholder's name, and the torch calls. The model is in
    eval mode already, and is left as it was.
    """
    calls = _OrdinaryCalls()
    if len(list(model.named_modules(remove_duplicate=False))) > len(list(model.modules())):
        return None  # torch.export calls a module of two names by the one that the forward used
    fake = FakeTensorMode(allow_non_fake_inputs=False, static_shapes=True, export=True)
    try:
        fakes: dict[int, Tensor] = {}
        inputs, options = pytree.tree_map_only(Tensor, fake.from_tensor, (args, dict(kwargs)))
        operators = _RecordOperators(calls)
        behind: dict[str, str] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            fakes[id(tensor)] = fake.from_tensor(tensor)
            behind[operators.placeholder(fakes[id(tensor)], name).name] = name
        for leaf in pytree.tree_leaves((inputs, options)):
            if isinstance(leaf, Tensor):
                operators.placeholder(leaf, "input")
        with (
            as_it_was(model), swapped(model, fakes), _paths(model, operators.modules),
            _compiling_state_context(), _no_fused_attention(), fake, enable_python_dispatcher(), operators, calls,
        ):  # fmt: skip
            result = model(*inputs, **options)
        if calls.switched:
            return None
        operators.output(tuple(result[name] for name in outputs) if outputs else result)
    except Exception:  # the forward's own errors too: torch.export meets them again, and its reason is reported
        return None
    return operators.recorded, behind, calls


@contextmanager
def _paths(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Within the context the end of `stack` is the path of the module whose forward runs, as torch.export has it."""
    paths = {module: f"model.{name}" if name else "model" for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        if module in paths:
            stack.append(paths[module])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if module in paths:
            stack.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    """Within the context torch's attention modules take no fused path, as when torch.export traces them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
