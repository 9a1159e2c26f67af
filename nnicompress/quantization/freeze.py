"""Freeze a fake-quantized model: integers in place of its weights, and the same outputs in eval mode, bit for bit."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export.program import capture_program, with_named_arguments
from nnicompress.quantization.attach import simulated
from nnicompress.quantization.frozen import DEQUANTIZE, PYTHON, QUANTIZE, FrozenModel, quantize, references
from nnicompress.quantization.marking import SIMULATION, mark
from nnicompress.quantization.program import needed, writes
from nnicompress.quantization.result import QuantizationResult

_CHECKS = ("aten._assert_tensor_metadata.default", "aten._assert_scalar.default")
"""What a capture notes about itself."""


def freeze(model: nn.Module, inputs: ModelInput, result: QuantizationResult | None = None) -> FrozenModel:
    """`model`, quantized, with the integers that its weights are rounded to in their place.

    It computes as `result` says, or with None as the fake quantizers in it simulate now. The forward is captured in
    evaluation mode on `inputs` (at least two samples); the batch may vary, and so may the length of sequences of
    tokens. Activations are quantized and dequantized by the arithmetic of the simulation, all other operators stay as
    they are, batch norms included. So the outputs are equal bit for bit, which is checked on `inputs`. The model itself
    is left as it was; the frozen one is on the CPU.

    Raises:
        UserError: nothing in the model simulates quantization, or not in a way that can be frozen (see `mark`), or a
            parameter is in another precision than float32.
        JobError: the forward can't be captured, or doesn't compute the same twice.
    """
    if result is not None:
        with simulated(model, result):
            return freeze(model, inputs)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UserError(
                f"{name} is {str(tensor.dtype).removeprefix('torch.')}, and a quantized model computes in float32 "
                "between its integers: model.float() before it is frozen"
            )
    before = copy.deepcopy(model).cpu().eval()
    marked = copy.deepcopy(before)
    if not mark(marked):
        raise UserError(
            f"nothing in {type(model).__name__} simulates quantization; run a quantizer before it is frozen"
        )
    args, kwargs = inputs
    exported = capture_program(marked, inputs)
    around = "" if with_named_arguments(marked, inputs) is marked else "model."
    frozen = _Builder(exported, type(model).__name__, around).build(forward_arguments(exported, model, len(args)))
    with torch.no_grad():
        # Each gets copies: a forward may write into its inputs.
        results = [pytree.tree_leaves(m(*copy.deepcopy(args), **copy.deepcopy(kwargs))) for m in (before, frozen)]
    for number, (a, b) in enumerate(zip(*results, strict=True)):
        if isinstance(a, Tensor) and not torch.equal(a.nan_to_num(), b.nan_to_num()):
            raise JobError(
                f"{type(model).__name__} can't be frozen: output {number} isn't that of the simulation; a forward that "
                "draws random numbers in evaluation mode, or depends on earlier calls, has no fixed result"
            )
    return frozen


class _Builder:
    """Turns a captured graph into a program, node by node in their order."""

    def __init__(self, exported: ExportedProgram, model_name: str, around: str) -> None:
        """`around`: what the capture put before the model's own paths."""
        self.exported = exported
        self.model_name = model_name
        self.around = around
        self.names = {node: path.removeprefix(around) for node, path in _tensor_names(exported).items()}
        self.constant: dict[Node, bool] = {}
        self.constants: dict[Node, Tensor] = {}
        self.encoded: dict[Node, Any] = {}
        self.quantized: list[_Quantized] = []
        self.tensors: dict[str, Tensor] = {}
        self.steps: list[list[Any]] = []

    def build(self, arguments: Mapping[str, Any]) -> FrozenModel:
        """The whole program, without the steps that nothing reads; `arguments` are its part about the inputs."""
        *body, output = self.exported.graph.nodes
        for node in body:
            if node.op == "call_function":
                self.add(node)
            elif node.op != "placeholder":
                raise JobError(f"{self.model_name} can't be frozen: its graph holds a {node.op}, {node.target}")
        spec = self.exported.call_spec.out_spec
        assert spec is not None
        results = self.encode(output.args[0])
        steps = needed(self.steps, results)
        used = {name for step in steps for name in references(step[2:4], "buffer")} | set(references(results, "buffer"))
        program = {
            **arguments,
            "buffers": [name for name in self.tensors if name in used],
            "steps": steps,
            "output": _plain(pytree.tree_unflatten([_Leaf(result) for result in results], spec)),
        }
        return FrozenModel(program, self.tensors, spec)

    def add(self, node: Node) -> None:
        """One operator."""
        name = _operator(node)
        if name in _CHECKS or self.is_constant(node):  # a constant becomes a buffer where it is read
            return
        if name == SIMULATION:
            self.encoded[node] = self.simulation(node)
        elif name == "aten.dropout.default":
            self.encoded[node] = self.encode(node.args[0])
        elif name.startswith("aten.") or name in PYTHON:
            args, kwargs = self.encode(node.args), {key: self.encode(value) for key, value in node.kwargs.items()}
            self.steps.append([node.name, name, args, kwargs, self.module_of(node)])
            if writes(name):  # what was quantized before may have changed
                self.quantized = [known for known in self.quantized if "constant" in known.source]
        else:
            raise JobError(f"{self.model_name} can't be frozen: {name} is no operator of ATen")

    def simulation(self, node: Node) -> dict[str, str]:
        """Quantize and dequantize, or the integers of a weight and dequantize; the dequantized value."""
        x: Any
        low: Any
        high: Any
        axis: Any
        x, *parameters, low, high, axis = node.args
        constant = self.is_constant(x)
        source = {"constant": x.name} if constant else self.encode(x)
        scale, zero_point = (self.value_of(parameter) for parameter in parameters)  # type: ignore[arg-type]
        this = _Quantized(source, {"value": node.name}, (low, high, axis), (scale, zero_point))
        for earlier in self.quantized:
            # Quantized in the same way for another consumer, or so already: a second time changes nothing.
            if earlier.same_grid(this) and source in (earlier.source, earlier.value):
                return earlier.value
        self.quantized.append(this)
        base, place = self.base_name(node, x), self.module_of(node)
        given = [self.buffer(f"{base}_scale", scale), self.buffer(f"{base}_zero_point", zero_point.to(torch.int32))]
        if constant:
            integers = self.buffer(base, quantize(self.value_of(x), scale, zero_point, low, high, axis))
        else:
            integers = {"value": f"{node.name}_integers"}
            self.steps.append([integers["value"], QUANTIZE, [source, *given, low, high, axis], {}, place])
        self.steps.append([node.name, DEQUANTIZE, [integers, *given, axis], {}, place])
        return this.value

    def base_name(self, node: Node, x: Node) -> str:
        """`conv1.weight` for what is made of that weight, else the module and the name of the node."""
        if self.is_constant(x):
            while x not in self.names:
                x = x.all_input_nodes[0]
            return self.names[x]
        return ".".join(filter(None, (self.module_of(node), node.name)))

    def module_of(self, node: Node) -> str:
        """The path of the innermost module whose forward made `node`; empty for the model itself."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return f"{stack[-1][0]}.".removeprefix(self.around).removesuffix(".") if stack else ""

    def is_constant(self, node: Node) -> bool:
        """Whether the value is computed of float tensors of the model alone, and nothing writes into it."""
        if node not in self.constant:
            if node.op != "call_function":
                self.constant[node] = node in self.names
            else:
                operator = _operator(node)
                self.constant[node] = (
                    (operator.startswith("aten.") or operator == "operator.getitem")
                    and bool(node.all_input_nodes)
                    and all(map(self.is_constant, node.all_input_nodes))
                    and not any(writes(_operator(n)) for n in (node, *node.users))
                )
        return self.constant[node]

    def value_of(self, node: Node) -> Tensor:
        """The value of a constant node, by the operators of the graph themselves."""
        if node not in self.constants:
            if node.op == "placeholder":
                value = _tensor(self.exported, node)
            else:
                assert self.is_constant(node) and callable(node.target)
                args, kwargs = map_arg((node.args, node.kwargs), self.value_of)
                with torch.no_grad():
                    value = node.target(*args, **kwargs)
            self.constants[node] = value
        return self.constants[node]

    def buffer(self, name: str, tensor: Tensor) -> dict[str, str]:
        """A new buffer of this name, or of one like it where another tensor has that."""
        chosen, number = name, 2
        while chosen in self.tensors:
            chosen, number = f"{name}_{number}", number + 1
        self.tensors[chosen] = tensor.detach().clone().contiguous()
        return {"buffer": chosen}

    def encode(self, value: Any) -> Any:
        """An argument as a program holds it."""
        if isinstance(value, Node):
            if value not in self.encoded:
                constant = self.is_constant(value)
                self.encoded[value] = (
                    self.buffer(self.base_name(value, value), self.value_of(value))
                    if constant
                    else {"value": value.name}
                )
            return self.encoded[value]
        if isinstance(value, (list, tuple)):
            return [self.encode(item) for item in value]
        if isinstance(value, torch.device):
            return {"device": "model"}
        for kind in ("dtype", "layout", "memory_format"):
            if isinstance(value, getattr(torch, kind)):
                return {kind: str(value).removeprefix("torch.")}
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise JobError(f"{self.model_name} can't be frozen: an operator takes a {type(value).__name__}")


class _Quantized:
    """A quantized value: of what, under which name, and how."""

    def __init__(self, source: Any, value: dict[str, str], within: tuple[Any, ...], grid: tuple[Tensor, ...]) -> None:
        self.source, self.value, self.within, self.grid = source, value, within, grid

    def same_grid(self, other: _Quantized) -> bool:
        """Whether the same numbers can be represented, by the same integers."""
        return self.within == other.within and all(map(torch.equal, self.grid, other.grid))


class _Leaf:
    """An encoded output, which pytree takes for no container."""

    def __init__(self, content: Any) -> None:
        self.content = content


def _operator(node: Node) -> str:
    """`aten.conv2d.default`, a name in PYTHON, or another namespace's."""
    for name, function in PYTHON.items():
        if node.target is function:
            return name
    return str(node.target)


def _tensor_names(exported: ExportedProgram) -> dict[Node, str]:
    """Placeholders that are tensors of the model -> their names in it."""
    signature = exported.graph_signature
    behind = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    named = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in behind:
            named[node] = behind[node.name]
    return named


def _tensor(exported: ExportedProgram, node: Node) -> Tensor:
    signature = exported.graph_signature
    constant = signature.inputs_to_lifted_tensor_constants.get(node.name)
    if constant is not None:
        value: Any = exported.constants[constant]
        return torch.as_tensor(value)
    name = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}[node.name]
    # Buffers that a state_dict lacks lie among the constants.
    found: Any = exported.state_dict.get(name)
    return torch.as_tensor(exported.constants[name] if found is None else found)


def forward_arguments(exported: ExportedProgram, model: nn.Module, num_positional: int) -> dict[str, Any]:
    """The part of a program about its inputs."""
    kinds = inspect.signature(model.forward).parameters
    names = [n for n, p in kinds.items() if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
    if any(p.kind is Parameter.VAR_POSITIONAL for p in kinds.values()):
        names = [f"input_{number}" for number in range(num_positional)]
    spec = exported.call_spec.in_spec
    specs = [s.arg for s in exported.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    assert spec is not None
    args, kwargs = pytree.tree_unflatten([_Leaf(arg) for arg in specs], spec)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    inputs, constants = [], []
    for path, leaf in pytree.tree_flatten_with_path(given)[0]:
        keys = [getattr(key, "key", getattr(key, "idx", None)) for key in path]
        if isinstance(leaf.content, ConstantArgument):
            constants.append([keys, leaf.content.value])
        else:
            inputs.append([leaf.content.name, keys])
    return {"parameters": names + [n for n in given if n not in names], "inputs": inputs, "constants": constants}


def _plain(output: Any) -> Any:
    """The output's structure in lists and mappings, encoded."""
    if isinstance(output, _Leaf):
        return output.content
    if isinstance(output, Mapping):
        return {"mapping": {str(key): _plain(value) for key, value in output.items()}}
    if isinstance(output, (list, tuple)):
        return [_plain(item) for item in output]
    return output
