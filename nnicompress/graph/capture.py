"""Capture a model once, as torch.export does; everything that needs the graph reads this capture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from nnicompress.errors import ConfigError, JobError, did_you_mean
from nnicompress.exporters import quiet, reason
from nnicompress.graph.provenance import CALL, Call, Origin, RecordCalls, tracked_attributes
from nnicompress.models.outputs import class_name


class _Recorded(nn.Module):
    """Runs the model's forward under RecordCalls, from inside the capture."""

    def __init__(self, model: nn.Module, calls: RecordCalls, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self._calls = calls
        self._outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._calls:
            return selected(self.model(*args, **kwargs), self._outputs)


def selected(result: Any, outputs: tuple[str, ...]) -> Any:
    """Those entries of a forward's result, or all of it where none are named."""
    return tuple(result[name] for name in outputs) if outputs else result


@dataclass(frozen=True, eq=False)
class Captured:
    """One captured forward of a model in eval mode.

    `graph` holds ATen operators. `tensors` maps a placeholder's name to the parameter or buffer behind it (its name in
    the model, the first one where tied), `shapes` their shapes by that name, `parameters` the names of the former;
    `calls` are the Python-level arguments of each torch call, with the provenance of every size, and `escaped` the
    sizes that were used as plain numbers. `outputs` are the entries of the result that count; none: all of it.
    """

    graph: torch.fx.Graph
    tensors: Mapping[str, str]
    shapes: Mapping[str, torch.Size]
    parameters: frozenset[str]
    calls: tuple[Call, ...]
    escaped: frozenset[Origin]
    outputs: tuple[str, ...] = ()

    def module_of(self, node: Node) -> str:
        """The path of the innermost module whose forward made `node`; empty for the model itself."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return str(stack[-1][0]).removeprefix("model").removeprefix(".") if stack else ""

    def call_of(self, node: Node) -> int | None:
        """The number of the Python-level torch call that made `node`."""
        call = (node.meta.get("custom") or {}).get(CALL)
        return None if call is None else int(call)


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    outputs: Sequence[str] = (),
) -> Captured:
    """Capture `model` in eval mode on these inputs (static shapes); the model is left as it was.

    Ordinary forwards are traced directly (see `tracer`), the others exported; both give the same channel groups.
    `outputs` names the entries of the result that matter (`("logits",)`), where the others may change their size: an
    encoder's hidden states, which a model returns besides, would else keep the hidden width.

    Raises:
        ConfigError: the result has no entry of such a name.
        JobError: the forward can't be captured, with torch.export's own reason.
    """
    _check_outputs(model, args, kwargs or {}, outputs := tuple(outputs))
    kwargs = dict(kwargs or {})
    with evaluating(model), torch.no_grad(), tracked_attributes(model), _without_stack_traces(), quiet():
        graph, tensors, calls = _traced(model, args, kwargs, outputs) or _exported(model, args, kwargs, outputs)
    shapes = {name: tensor.shape for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    parameters = frozenset(name for name, _ in model.named_parameters())
    return Captured(graph, tensors, shapes, parameters, tuple(calls.calls), frozenset(calls.escaped), outputs)


_Parts = tuple[torch.fx.Graph, Mapping[str, str], RecordCalls]


def _check_outputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: tuple[str, ...]
) -> None:
    if not outputs:
        return
    with evaluating(model), torch.no_grad():
        result = model(*args, **kwargs)
    known = [name for name in result if isinstance(name, str)] if isinstance(result, Mapping) else []
    for name in outputs:
        if name not in known:
            has = f"; it returns {', '.join(known)}" if known else ": what it returns has no named entries"
            raise ConfigError(
                f"{class_name(model)} returns no {name!r}{did_you_mean(name, known) or has}", key="outputs"
            )


def _traced(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: tuple[str, ...]
) -> _Parts | None:
    try:
        from nnicompress.graph.tracer import trace
    except ImportError:  # a torch whose tracing modes have other places
        return None
    return trace(model, args, kwargs, outputs)


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: tuple[str, ...]) -> _Parts:
    calls = RecordCalls()
    try:
        program = torch.export.export(_Recorded(model, calls, outputs), args, kwargs, strict=False)
    except Exception as error:  # torch.export raises whatever the user's forward and its own checks raise
        raise JobError(f"{type(model).__name__} can't be captured by torch.export: {reason(error)}") from error
    signature = program.graph_signature
    behind = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    canonical = _first_names(model)
    tensors = {
        placeholder: canonical.get(name.removeprefix("model."), name.removeprefix("model."))
        for placeholder, name in behind.items()
    }
    return program.graph, tensors, calls


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context all modules are in evaluation mode; afterwards each is in its own again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """A seventh of the capture's time goes into formatting a Python stack for each node, which nothing here reads."""
    before = torch.fx.config.do_not_emit_stack_traces
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer -> the first name of the same tensor."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    everything: list[tuple[str, Tensor]] = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in everything:
        names[name] = first.setdefault(id(tensor), name)
    return names
