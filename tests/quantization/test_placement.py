"""Where fake quantizers go, on small networks by hand and on every architecture of the zoo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import ConfigError, UserError
from nnicompress.models.resnet import BasicBlock
from nnicompress.quantization.attach import Attached
from nnicompress.quantization.build import build_quantizers
from nnicompress.quantization.modules import SWAPS
from nnicompress.quantization.placement import make_plan
from nnicompress.quantization.plan import Plan
from nnicompress.quantization.record import record
from nnicompress.quantization.scheme import Granularity
from nnicompress.quantization.settings import QuantizerSettings
from tests.zoo import ZOO

LAYERS = {"op_types": ["Conv2d", "Linear"]}


def plan_of(model: nn.Module, *args: Tensor, targets: Any = None, **settings: Any) -> Plan:
    asked = QuantizerSettings.from_targets(targets or [{}], **settings)
    return make_plan(model, asked, record(model, args, {}))


class Residual(nn.Module):
    """A shared ReLU, a residual add, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.one(x)))
        x = self.relu(x + self.two(x))
        return self.head(self.pool(x).flatten(1))


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_residual_network_as_an_integer_runtime_needs_it() -> None:
    plan = plan_of(Residual(), images())
    assert set(plan.activations) == {
        "one/input_0",  # the network's input
        "/relu_0/output_0",  # batch norm and ReLU are folded; both readers share it
        "two/output_0",  # an operand of the add
        "/relu_1/output_0",  # the add's result, its ReLU folded
        "pool/output_0",  # what the linear layer reads
    }  # the head's output is the network's, and stays in float
    assert {weight.place: weight.batch_norm for weight in plan.weights} == {
        "one/weight": "norm",
        "two/weight": None,
        "head/weight": None,
    }
    assert {(bias.module, bias.input) for bias in plan.biases} == {
        ("two", "/relu_0/output_0"),
        ("head", "pool/output_0"),
    }
    schemes = {a.scheme.dtype for a in plan.activations.values()} | {w.scheme.dtype for w in plan.weights}
    assert schemes == {"uint8", "int8"}
    assert all(w.scheme.symmetric and w.scheme.granularity.axis == 0 for w in plan.weights)


def test_a_resnet_block_without_downsampling() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), BasicBlock(4, 4, 1, None, 1, 64))
    plan = plan_of(model, images())
    assert set(plan.activations) == {
        "0/input_0", "0/output_0", "1/relu_0/output_0", "1.bn2/output_0", "1/relu_1/output_0",
    }  # fmt: skip


class Attention(nn.Module):
    """Heads by views, and torch's functional attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


def test_functional_attention() -> None:
    plan = plan_of(Attention(), torch.randn(2, 5, 8))
    assert set(plan.activations) == {
        "norm/output_0",
        "qkv/output_0",  # query, key and value are views of it
        "/scaled_dot_product_attention_0/probabilities",
        "/scaled_dot_product_attention_0/output_0",
    }  # the add stands behind a linear layer and stays in float


def test_what_a_sequential_runs_twice_is_quantized_once_for_both_runs() -> None:
    layer = nn.Linear(8, 8)
    plan = plan_of(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 8))
    assert set(plan.activations) == {"0/input_0"}  # the first run reads what nobody made
    assert [(bias.module, bias.input) for bias in plan.biases] == [("0", "0/input_0")]


def test_attention_that_runs_twice_is_known_by_itself() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = self.attention(x, x, x, need_weights=False)[0]
            return self.head(x)

    model, x = Twice(), torch.randn(3, 2, 8)
    plan = plan_of(model, x)
    inside = {f"attention/{name}" for name in ("query", "key", "value", "probabilities", "context")}
    reads = {f"attention/input_{index}" for index in range(3)}
    assert set(plan.activations) == inside | reads | {"attention/output_0"}
    settings = QuantizerSettings.from_targets([{}])
    attached = Attached(model, build_quantizers(model, plan, settings))
    attached.prove((x,), {})
    attached.remove()


def test_attention_shifts_no_call_of_the_forward_around_it() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 3, 1)
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            steps = x.permute(2, 0, 1)
            mask = torch.zeros(len(steps), len(steps))
            mixed: Tensor = self.attention(steps, steps, steps, attn_mask=mask, need_weights=False)[0]
            return self.after(torch.permute(mixed, (1, 2, 0)) + x)

    model, x, settings = Mixed(), torch.randn(2, 3, 5), QuantizerSettings.from_targets([{}])
    plan = make_plan(model, settings, record(model, (x,), {}))
    quantizers = build_quantizers(model, plan, settings)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for place, quantizer in quantizers.items():
        quantizer.register_forward_hook(
            lambda module, args, output, place=place: shapes.setdefault(place, []).append(tuple(args[0].shape))
        )
    attached = Attached(model, quantizers)
    with torch.no_grad():
        model(x)
    attached.remove()
    assert shapes["/add_0/output_0"] == [(2, 4, 5)]  # not the scores with their mask, (2, 2, 5, 5)
    assert shapes["attention/probabilities"] == [(2, 2, 5, 5)]


def test_without_functions_only_modules_are_quantized() -> None:
    plan = plan_of(Residual(), images(), functions=["matmul"])
    assert "two/output_0" in plan.activations  # a convolution's output all the same
    assert not any("add" in place for place in plan.activations)


def test_weights_alone() -> None:
    plan = plan_of(Residual(), images(), targets=[{**LAYERS, "target_names": ["weight"]}])
    assert not plan.activations and not plan.biases and len(plan.weights) == 3
    x = torch.randn(2, 5, 8)
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for model in (attention, Attention()):
        plan = plan_of(model, x, targets=[{"target_names": ["weight"]}])
        assert not plan.activations and len(plan.weights) >= 2


def test_products_beside_no_selected_layer_stay_in_float() -> None:
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Attention(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    x, head = torch.randn(2, 5, 8), {"op_names": ["head"]}
    assert set(plan_of(Headed(), x, targets=[head]).activations) == {"body/add_0/output_0"}  # what the head reads
    inside = "body/scaled_dot_product_attention_0/probabilities"
    assert inside in plan_of(Headed(), x, targets=[head], functions=["scaled_dot_product_attention"]).activations
    for beside in ("body.qkv", "body.out"):
        assert inside in plan_of(Headed(), x, targets=[{"op_names": [beside]}]).activations


def test_settings_of_single_tensors() -> None:
    target = {
        "op_types": ["Conv2d", "Linear"],
        "quant_dtype": "uint8",
        "target_settings": {
            "weight": {"quant_dtype": "int4", "granularity": "tensor"},
            "_output_": {"quant_scheme": "symmetric"},
            "_input_0": {"quant_dtype": "uint4"},
        },
    }
    plan = plan_of(Residual(), images(), targets=[target])
    assert {w.scheme.dtype for w in plan.weights} == {"int4"}
    assert {w.scheme.granularity.axis for w in plan.weights} == {None}
    assert plan.activations["one/input_0"].scheme.dtype == "uint4"
    two = plan.activations["two/output_0"].scheme
    assert two.dtype == "uint8" and two.symmetric


def test_inputs_are_named_as_the_forward_names_them() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            attended: Tensor = self.attn(x.neg(), x.abs(), x.exp(), need_weights=False)[0]
            return self.head(attended)

    types = ["MultiheadAttention", "Linear"]
    target = {"op_types": types, "target_names": ["_input_key", "_input_input", "weight"]}
    target["target_settings"] = {"_input_key": {"quant_dtype": "uint4"}}
    inputs = torch.randn(2, 5, 8)
    plan = plan_of(Attention(), inputs, targets=[target], functions=[], backend="none")
    assert "attn/key" in plan.activations and not {"attn/query", "attn/value"} & set(plan.activations)
    dtypes = {place: at.scheme.dtype for place, at in plan.activations.items()}
    assert dtypes["/abs_0/output_0"] == "uint4" and dtypes["attn/output_0"] == "uint8"
    assert "/neg_0/output_0" not in dtypes and "/exp_0/output_0" not in dtypes, dtypes
    target = {"op_types": ["Linear"], "target_names": ["_input_inptu"]}
    with pytest.raises(ConfigError, match="no selected module takes an input 'inptu'.* 'input'") as caught:
        plan_of(Attention(), inputs, targets=[target])
    assert caught.value.key == "targets.0.target_names"


def test_a_layer_says_how_its_input_is_quantized_before_what_makes_or_adds_it() -> None:
    blocks = [BasicBlock(4, 4, 1, None, 1, 64) for _ in range(2)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *blocks)
    target = {"op_types": ["Conv2d"], "target_settings": {"_input_": {"quant_dtype": "uint4"}}}
    plan = plan_of(model, images(), targets=[target, {"op_names": ["0"]}])
    dtypes = {place: at.scheme.dtype for place, at in plan.activations.items()}
    assert dtypes == {
        "0/input_0": "uint8",
        "0/output_0": "uint4",  # made by a layer that says nothing
        "1/relu_0/output_0": "uint4",
        "1.bn2/output_0": "uint8",  # only added
        "1/relu_1/output_0": "uint4",  # a sum that a convolution reads
        "2/relu_0/output_0": "uint4",
        "2.bn2/output_0": "uint8",
        "2/relu_1/output_0": "uint8",
    }


def test_the_last_target_that_selects_a_module_holds() -> None:
    special = {"op_names": ["head"], "target_settings": {"weight": {"quant_dtype": "int2"}}}
    plan = plan_of(Residual(), images(), targets=[LAYERS, special])
    assert {w.module: w.scheme.dtype for w in plan.weights} == {"one": "int8", "two": "int8", "head": "int2"}


def test_excluded_frames_keep_their_functions_in_float() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), BasicBlock(4, 4, 1, None, 1, 64))
    plan = plan_of(model, images(), targets=[{"exclude_op_names": ["1"]}])
    assert set(plan.activations) == {"0/input_0", "0/output_0"}


def test_what_follows_no_other_is_no_chain() -> None:
    plan = plan_of(Residual(), images(), targets=[{**LAYERS, "fuse_names": [["one", "norm"]]}])
    assert plan.weights[0].batch_norm == "norm"
    with pytest.raises(ConfigError, match=r"targets.0.fuse_names: norm does not read what two makes"):
        plan_of(Residual(), images(), targets=[{**LAYERS, "fuse_names": [["two", "norm"]]}])
    with pytest.raises(ConfigError, match="no module named 'nrom'"):
        plan_of(Residual(), images(), targets=[{**LAYERS, "fuse_names": [["two", "nrom"]]}])


class Scaled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, 2 * self.weight, self.bias)


def test_a_subclass_keeps_its_own_forward_and_is_told() -> None:
    model = nn.Sequential(Scaled(3, 4, 3), nn.Conv2d(4, 2, 3))
    plan = plan_of(model, images())
    assert [weight.module for weight in plan.weights] == ["1"]
    assert plan.unquantized == ["0: Scaled is a subclass with a forward of its own"]


class Plain(nn.Conv2d):
    """A convolution under another name."""


class Spelled(nn.Module):
    """Layers that nothing here quantizes: a recurrent one, and one that is spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.head(self.cell(x)[0]), self.head.weight.t())


def test_layers_that_stay_in_float_are_told() -> None:
    assert plan_of(nn.Sequential(Plain(3, 4, 3), nn.Conv2d(4, 2, 3)), images()).unquantized == [
        "0: Plain is a subclass, and only exact types are quantized"
    ]
    assert plan_of(Spelled(), torch.randn(2, 5, 8)).unquantized == [
        "cell: there is no quantized GRU",
        "/linear_1: a layer that is no module",
    ]


def test_a_product_with_a_transposed_attribute_is_one_of_views() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.query(x) @ self.key(x).mT

    x = torch.randn(2, 5, 8)
    assert set(plan_of(Scores(), x).activations) == {"query/input_0", "key/input_0", "query/output_0", "key/output_0"}


def test_a_synchronized_batch_norm_is_one() -> None:
    norm = nn.SyncBatchNorm(4)
    plan = plan_of(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), images())
    assert [weight.batch_norm for weight in plan.weights] == ["1", None]


def test_a_forward_through_all_children_is_told_what_was_added() -> None:
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            for child in self.children():
                x = child(x) + x
            return x

    model, settings = All(), QuantizerSettings.from_targets([{}])
    attached = Attached(model, build_quantizers(model, plan_of(model, images()), settings))
    with pytest.raises(UserError, match=r"the forward of the model runs all its children, of which .* adds one"):
        attached.prove((images(),), {})
    attached.remove()
    assert [name for name, _ in model.named_children()] == ["one", "two"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"op_types": ["Conv3d"]}, r"targets.0.op_types: no module of type 'Conv3d'.*did you mean 'Conv2d'"),
        ({"op_types": ["BatchNorm2d"]}, r"targets.0: norm is BatchNorm2d, and there are quantized Conv1d"),
        ({"op_types": ["ReLU"]}, r"relu is ReLU, which has no weight; give target_names: \[_output_\]"),
        ({**LAYERS, "target_settings": {"weight": {"quant_scheme": "affine"}}}, "with symmetric weights"),
        (
            {**LAYERS, "target_settings": {"weight": {"granularity": {"axis": 7}}}},
            r"targets.0.target_settings.weight.granularity: .* of shape \(4, 3, 3, 3\) has no dimension 7",
        ),
        (
            {"target_settings": {"weight": {"granularity": {"axis": 1}}}},
            r"targets.0.target_settings.weight.granularity: onnxruntime_x86 runs one in integers with one scale an "
            "output channel, axis 0 of its weight",
        ),
        (
            {"target_settings": {"_output_": {"quant_scheme": "symmetric"}}},
            "targets.0: /relu_0/output_0: onnxruntime_x86 runs a convolution with its ReLU in integers where zero is",
        ),
    ],
)
def test_what_can_not_be_placed(target: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(Residual(), images(), targets=[target])


def test_what_the_runtime_has_no_kernel_for_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 3))
    target = {"op_types": ["Conv2d", "ConvTranspose2d"]}
    with pytest.raises(ConfigError, match="targets.0: 1: onnxruntime_x86 has no integer kernel for ConvTranspose2d"):
        plan_of(model, images(), targets=[target])
    assert len(plan_of(model, images(), targets=[target], backend="none").weights) == 2
    assert plan_of(model, images()).unquantized == ["1: onnxruntime_x86 has no integer kernel for ConvTranspose2d"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"target_names": ["weight", "_input_3"]}, "target_names: _input_3 is no input .*Linear has 1 input"),
        ({"target_settings": {"_input_9": {"quant_dtype": "uint4"}}}, "target_settings: _input_9 is no input"),
        ({"target_settings": {"_input_foo": {}}}, "target_settings: no selected module takes an input 'foo'"),
        (
            {"op_types": ["Conv2d"], "target_settings": {"weight": {"granularity": {"axis": 1, "block_size": 2}}}},
            "targets.0.target_settings.weight.granularity: one.weight: a block of 2 does not divide the 3 along axis 1",
        ),
    ],
)
def test_what_no_module_has(target: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(Residual(), images(), targets=[target], backend="none")


def test_attention_has_three_inputs_that_are_quantized() -> None:
    model = nn.MultiheadAttention(8, 2)
    x = torch.randn(5, 2, 8)
    for name, message in {"_input_3": "MultiheadAttention has 3 inputs", "_input_need_weights": "has 3 inputs"}.items():
        target = {"op_types": ["MultiheadAttention"], "target_names": [name]}
        with pytest.raises(ConfigError, match=message):
            plan_of(model, x, x, x, targets=[target])


def test_negative_axes_count_from_the_end() -> None:
    weight = {"weight": {"granularity": {"axis": -4}}}
    convolutions = {"op_types": ["Conv2d"], "target_settings": weight}
    plan = plan_of(Residual(), images(), targets=[convolutions])
    assert {weight.scheme.granularity for weight in plan.weights} == {Granularity(0)}
    assert [bias.module for bias in plan.biases] == ["two"]


def test_channels_of_activations_lie_where_their_layer_has_them() -> None:
    target = {"target_settings": {"_input_": {"granularity": "channel"}}}
    plan = plan_of(Residual(), images(), targets=[target], functions=[], backend="none")
    axes = {place: at.scheme.granularity.axis for place, at in plan.activations.items()}
    assert axes["one/input_0"] == 1 and axes["/relu_0/output_0"] == 1
    assert axes["head/input_0"] == 1  # [N, 4] behind a pooling of [N, 4, 1, 1]
    assert not plan.biases  # products of different units have no sum in integers
    plan = plan_of(Attention(), torch.randn(2, 5, 8), targets=[target], functions=[], backend="none")
    shapes = {place: at.scheme.shape(at.shape) for place, at in plan.activations.items()}
    assert shapes == {"norm/output_0": (8,), "out/input_0": (8,)}
    with pytest.raises(ConfigError, match=r"one/input_0 can't have scales along axis 0: dimension 0 is the batch"):
        plan_of(
            Residual(), images(), targets=[{"target_names": ["_input_"], "granularity": {"axis": 0}}], backend="none"
        )


def test_the_groups_of_a_transposed_convolution_have_no_bias_in_integers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 3, groups=2))
    assert [bias.module for bias in plan_of(model, images(), backend="none").biases] == ["0"]
    whole = {"target_settings": {"weight": {"granularity": "tensor"}}}
    plan = plan_of(model, images(), targets=[whole], backend="none")
    assert [bias.module for bias in plan.biases] == ["0", "1"]


def test_an_output_of_a_module_without_weights() -> None:
    plan = plan_of(Residual(), images(), targets=[{"op_names": ["pool"], "target_names": ["_output_"]}], functions=[])
    assert set(plan.activations) == {"pool/output_0"}


class Detour(nn.Module):
    """Adds in evaluation only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(y) if self.training else self.two(y + x)


def test_a_forward_that_differs_in_training_is_found_out() -> None:
    model = Detour()
    settings = QuantizerSettings.from_targets([{}])
    plan = make_plan(model, settings, record(model, (images(),), {}))
    attached = Attached(model, build_quantizers(model, plan, settings))
    try:
        with pytest.raises(UserError, match=r"/add_0/input_1 .and 1 more. is not reached in training mode"):
            attached.prove((images(),), {})
    finally:
        attached.remove()


TYPES = {"Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "Linear", "Embedding"}


@pytest.mark.parametrize("name", ZOO)
def test_every_architecture_is_reached_stays_near_and_is_left_as_it_was(name: str) -> None:
    model, (args, kwargs) = ZOO[name]()
    types = sorted({type(module).__name__ for module in model.modules()} & TYPES)
    settings = QuantizerSettings.from_targets([{"op_types": types}], backend="none")
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    with torch.no_grad():
        before = _tensors(model(*args, **kwargs))
    plan = make_plan(model, settings, record(model, args, kwargs))
    swappable = [n for n, m in model.named_modules() if type(m) in SWAPS]
    assert set(plan.layers) == set(swappable)
    quantizers = build_quantizers(model, plan, settings)
    attached = Attached(model, quantizers)
    attached.prove(args, kwargs, plan.inputs)
    for key in keys:
        assert key in model.state_dict()
    with torch.no_grad():
        for found, want in zip(_tensors(model(*args, **kwargs)), before, strict=True):
            assert torch.equal(found, want)  # nothing is simulated yet
    attached.remove()
    assert list(model.state_dict()) == keys and [type(module) for module in model.modules()] == classes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [tensor for part in values for tensor in _tensors(part)]
