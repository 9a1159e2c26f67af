"""Frozen models in onnxruntime: what runs in integers, how far it is from the frozen model, and what is dynamic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export.comparison import compare_outputs
from nnicompress.export.divergence import first_divergence, layer_differences
from nnicompress.export.formats import FORMATS
from nnicompress.export.integer_coverage import integer_coverage
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.freeze import freeze
from nnicompress.quantization.frozen import FrozenModel
from nnicompress.quantization.lowering import lower
from nnicompress.quantization.scheme import Granularity, Scheme
from tests.quantization.by_hand import Residual, calibrate, image, network, other_inputs, quantized, simulate

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def exported(model: nn.Module, inputs: ModelInput, file: Path, **settings: object) -> tuple[FrozenModel, nn.Module]:
    """The frozen model and the file as a module."""
    frozen = freeze(simulate(model, inputs, **settings), inputs)  # type: ignore[arg-type]
    FORMATS["onnx"].export(frozen, inputs, file)
    return frozen, FORMATS["onnx"].load(file, frozen, inputs)


def assert_near(frozen: nn.Module, loaded: nn.Module, inputs: ModelInput, channels: int = -1) -> None:
    """Within a fiftieth of the largest output, and of one opinion where the frozen model prefers one by more than that.

    Two values halfway between integers, one step away each, explain as much in networks this narrow.
    """
    args, kwargs = inputs
    compare_outputs(loaded, frozen, [inputs], tolerance=0.02, what="the file")
    with torch.no_grad():
        want, got = (tree_leaves(model(*args, **kwargs))[0].movedim(channels, -1) for model in (frozen, loaded))
    first, second = want.topk(2).values.unbind(-1)
    sure = first - second > 0.04 * want.abs().max()
    assert sure.any() and torch.equal(want.argmax(-1)[sure], got.argmax(-1)[sure])


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("residual", {"QLinearConv": 2, "QLinearAdd": 1, "QGemm": 1}),
        ("bert", {"QGemm": 8}),
        pytest.param("vit", {"QGemm": 7}, marks=pytest.mark.slow),
        pytest.param("gpt2", {"QGemm": 5}, marks=pytest.mark.slow),
        pytest.param("llama", {"QGemm": 8}, marks=pytest.mark.slow),
    ],
)
def test_layers_run_in_integers_at_any_batch_and_length(name: str, kernels: dict[str, int], tmp_path: Path) -> None:
    model, inputs = network(name)
    frozen, loaded = exported(model, inputs, tmp_path / "m.onnx")
    for batch, longer in ((1, 0), (2, 0), (5, 6)):
        assert_near(frozen, loaded, other_inputs(inputs, batch, longer))
    coverage = integer_coverage(tmp_path / "m.onnx")
    assert {kernel: coverage.integer.get(kernel, 0) for kernel in kernels} == kernels, coverage.summary


class Attending(nn.Module):
    """torch's own attention, whose three input projections are one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.attention, self.head = nn.Linear(6, 16), nn.MultiheadAttention(16, 4), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        mixed: Tensor = self.attention(hidden, hidden, hidden, need_weights=False)[0]
        return self.head(hidden + mixed)


@pytest.mark.parametrize("granularity", ["out_channel", "default"])
def test_projections_that_share_a_weight_run_in_integers(granularity: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Attending().eval(), ((torch.randn(3, 7, 6),), {})
    weight = {"weight": {"granularity": granularity}}
    targets = [{"op_types": ["Linear", "MultiheadAttention"], "target_settings": weight}]
    frozen = freeze(model, inputs, quantized(model, inputs, targets, trains=False))
    FORMATS["onnx"].export(frozen, inputs, tmp_path / "m.onnx")
    loaded = FORMATS["onnx"].load(tmp_path / "m.onnx", frozen, inputs)
    assert_near(frozen, loaded, ((torch.randn(3, 7, 6),), {}))
    coverage = integer_coverage(tmp_path / "m.onnx")
    assert coverage.integer["QGemm"] == 6, coverage.summary
    assert not coverage.weighted_in_float


class Fused(nn.Module):
    """Attention whose queries, keys and values are one product, divided as GPT-2 or as timm divides it."""

    def __init__(self, divide: str) -> None:
        super().__init__()
        self.divide = divide
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        whole: Tensor = self.qkv(x)
        if self.divide == "unbind":
            parts = whole.view(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            divided = whole.chunk(3, dim=2) if self.divide == "chunk" else whole.split(16, dim=2)
            parts = tuple(part.view(*x.shape[:2], 4, 4).transpose(1, 2) for part in divided)
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        return self.head(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("divide", ["chunk", "split", "unbind"])
def test_products_of_parts_of_one_projection_run_in_integers(divide: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Fused(divide).eval(), ((torch.randn(3, 7, 16),), {})
    frozen = freeze(model, inputs, quantized(model, inputs, [{"op_types": ["Linear"]}], trains=False))
    FORMATS["onnx"].export(frozen, inputs, tmp_path / "m.onnx")
    loaded = FORMATS["onnx"].load(tmp_path / "m.onnx", frozen, inputs)
    assert_near(frozen, loaded, ((torch.randn(5, 7, 16),), {}))
    coverage = integer_coverage(tmp_path / "m.onnx")
    assert not coverage.weighted_in_float, coverage.summary
    assert sum(count for kernel, count in coverage.integer.items() if "MatMul" in kernel) == 2


def test_a_batch_norm_turns_the_lowest_integer_around() -> None:
    """-128 has no opposite in 8 bits: the convolution is folded still, and a weight is one step off."""
    model, inputs = network("residual")
    model = simulate(model, inputs)
    convolution, norm = model.stem[0], model.stem[1]
    with torch.no_grad():
        norm.weight[:2] = torch.tensor([-0.9, 0.7])
        before = convolution.quantizers["weight"]
        convolution.weight[:, 0, 0, 0] = -128 * before.scale
        scheme = Scheme("int8", symmetric=True, granularity=Granularity(0), full_range=True)
        convolution.quantizers["weight"] = after = FakeQuantizer(scheme, convolution.weight.shape)
        after.set_parameters(before.scale, before.zero_point)
        after.observing, after.simulating = False, True
    frozen = freeze(model, inputs)
    stored = dict(frozen.named_buffers())["stem.0.weight"]
    assert int(stored.min()) == -128, "the test's premise"
    lowered = lower(frozen, inputs)
    assert "aten.batch_norm.default" not in [step[1] for step in lowered.frozen_program["steps"]]
    folded = next(t for name, t in lowered.named_buffers() if name.endswith("stem.0.weight_folded"))
    assert (int(folded[0, 0, 0, 0]), int(folded[1, 0, 0, 0])) == (127, -128)


@pytest.mark.parametrize(
    ("activations", "kernels"),
    [
        ({"quant_dtype": "uint8"}, {"QLinearConv": 2, "QLinearAdd": 1, "QGemm": 1}),
        # The stem's ReLU stands between it and integers whose zero is in their middle; the other convolution has none.
        ({"quant_dtype": "uint8", "quant_scheme": "symmetric"}, {"QLinearConv": 1, "QLinearAdd": 1, "QGemm": 1}),
        ({"quant_dtype": "int8"}, {"QLinearConv": 0, "QLinearAdd": 0, "QGemm": 1}),
    ],
)
def test_the_runtime_fuses_what_its_profile_allows(
    activations: dict[str, str], kernels: dict[str, int], tmp_path: Path
) -> None:
    """What it would leave in float, which `backend: none` shows, is refused for it."""
    torch.manual_seed(0)
    model, inputs = Residual(by_hand=False).eval(), image(3, 8, 8)
    target = {**activations, "target_settings": {"weight": {"quant_dtype": "int8", "quant_scheme": "symmetric"}}}
    frozen = freeze(model, inputs, quantized(model, inputs, [target], trains=False, backend="none"))
    FORMATS["onnx"].export(frozen, inputs, tmp_path / "m.onnx")
    coverage = integer_coverage(tmp_path / "m.onnx")
    assert {kernel: coverage.integer.get(kernel, 0) for kernel in kernels} == kernels, coverage.summary
    if kernels["QLinearConv"] < 2:
        with pytest.raises(
            UserError, match="onnxruntime_x86 (has integer kernels for|runs a convolution with its ReLU)"
        ):
            quantized(model, inputs, [target], trains=False)


def weights_with(granularity: object, file: Path) -> tuple[FrozenModel, nn.Module, ModelInput]:
    """A convolution and a linear layer whose weights have scales along their inputs, where no runtime wants them."""
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    model, inputs = nn.Sequential(*layers).eval(), ((torch.randn(8, 4, 6, 6),), {})
    targets = [{"target_settings": {"weight": {"granularity": granularity}}}]
    frozen = freeze(model, inputs, quantized(model, inputs, targets, trains=False, backend="none"))
    FORMATS["onnx"].export(frozen, inputs, file)
    return frozen, FORMATS["onnx"].load(file, frozen, inputs), inputs


def test_scales_of_input_channels_leave_biases_in_float(tmp_path: Path) -> None:
    frozen, loaded, inputs = weights_with({"axis": 1}, tmp_path / "m.onnx")
    compare_outputs(loaded, frozen, [inputs], tolerance=0.02, what="the file")


def test_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has one scale a block, which model.onnx can't hold; use granularity: channel"):
        weights_with({"axis": 1, "block_size": 2}, tmp_path / "m.onnx")


class Shared(nn.Module):
    """One layer that runs on what several others made: the input, itself, another layer."""

    def __init__(self, layer: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.layer, self.other, self.relu = layer, other, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(self.relu(self.layer(x)))
        return torch.cat([found, self.layer(20.0 * self.other(x).tanh())], dim=1)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_layer_that_runs_several_times_has_each_runs_own_units(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if kind == "linear":
        model, shape = Shared(nn.Linear(6, 6), nn.Linear(6, 6)).eval(), (4, 6)
    else:
        model, shape = Shared(nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)).eval(), (4, 6, 5, 5)
    inputs: ModelInput = ((torch.randn(shape),), {})
    frozen = freeze(model, inputs, result := quantized(model, inputs, [{}], trains=False))
    FORMATS["onnx"].export(frozen, inputs, tmp_path / "m.onnx")
    loaded = FORMATS["onnx"].load(tmp_path / "m.onnx", frozen, inputs)
    compare_outputs(loaded, frozen, [inputs, ((inputs[0][0][:1],), {})], tolerance=0.02, what="the file")
    operator = "linear" if kind == "linear" else "conv2d"
    read = {f"/{operator}_0/input_0", "relu/output_0", "/mul_0/output_0"}
    assert read <= result.tensors.keys() and "layer/input_0" not in result.tensors
    coverage = integer_coverage(tmp_path / "m.onnx")
    assert coverage.integer["QGemm" if kind == "linear" else "QLinearConv"] == 4, coverage.summary
    assert not coverage.weighted_in_float


def test_what_stays_in_float_is_listed_with_the_reason(tmp_path: Path) -> None:
    model, inputs = network("unet")
    frozen, loaded = exported(model, inputs, tmp_path / "m.onnx")
    assert_near(frozen, loaded, other_inputs(inputs, 3), channels=1)
    coverage = integer_coverage(tmp_path / "m.onnx")
    assert not coverage.integer and coverage.share == 0.0
    # Which activations become part of a convolution depends on the processor.
    reasons = {(operator.operator.removeprefix("Fused"), operator.reason) for operator in coverage.floating}
    assert ("ConvTranspose", "onnxruntime has no integer kernel for ConvTranspose") in reasons
    assert any(name == "Conv" and reason.startswith("QLinearConv needs its output") for name, reason in reasons)
    assert len(coverage.weighted_in_float) == 5
    assert coverage.summary.startswith("in integers: none; in float: 1 Concat, ")


class Between(nn.Module):
    """Layers between integers whose channels differ by a factor of 1000: one scale for all of them is of no use."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        wide = kind == "linear"
        self.first = nn.Linear(6, 16) if wide else nn.Conv2d(3, 16, 3)
        self.left_out = nn.Linear(16, 16) if wide else nn.Conv2d(16, 16, 3, groups=16)
        self.last = nn.Linear(16, 5) if wide else nn.Conv2d(16, 5, 1)
        with torch.no_grad():
            gain = torch.logspace(-3, 0, 16)
            self.left_out.weight.mul_(gain.view(-1, *[1] * (self.left_out.weight.dim() - 1)))
            self.last.weight.div_(gain.view(1, -1, *[1] * (self.last.weight.dim() - 2)))
        self.between = {"convolution": nn.ReLU(), "bounded": nn.ReLU6(), "linear": nn.Identity()}[kind]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.left_out(self.first(x).relu())))


@pytest.mark.parametrize("kind", ["convolution", "bounded", "linear"])
def test_onnxruntime_quantizes_no_layer_that_was_left_out(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Between(kind).eval()
    inputs = ((torch.randn(4, 7, 6),), {}) if kind == "linear" else image(3, 8, 8)
    targets = [{"op_names": ["first", "last"]}, {"op_names": ["left_out"], "target_names": ["_input_", "_output_"]}]
    frozen = freeze(model, inputs, quantized(model, inputs, targets, trains=False))
    FORMATS["onnx"].export(frozen, inputs, tmp_path / "m.onnx")
    coverage = integer_coverage(tmp_path / "m.onnx")
    assert sum(coverage.integer.values()) == 2, coverage.summary
    assert [one.operator.removeprefix("Fused") for one in coverage.floating if one.operator != "Clip"] == [
        "Gemm" if kind == "linear" else "Conv"
    ]
    assert [one.reason for one in coverage.weighted_in_float] == ["not quantized: left_out"]
    loaded = FORMATS["onnx"].load(tmp_path / "m.onnx", frozen, inputs)
    assert_near(frozen, loaded, inputs, channels=-1 if kind == "linear" else 1)


def test_a_float_model_has_no_coverage(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    FORMATS["onnx"].export(model, image(3, 8, 8), tmp_path / "m.onnx")
    coverage = integer_coverage(tmp_path / "m.onnx")
    assert coverage.share == 0.0 and not coverage.integer
    # Whether a ReLU becomes part of its convolution depends on the processor.
    assert [one.operator.removeprefix("Fused") for one in coverage.weighted_in_float] == ["Conv", "Gemm"]
    # By the modules' names, not by those under which onnxruntime keeps the weights of blocks of channels.
    assert [one.reason for one in coverage.weighted_in_float] == ["not quantized: 0", "not quantized: 3"]


def test_weights_and_biases_are_integers_in_the_file(tmp_path: Path) -> None:
    model, inputs = network("residual")
    frozen, _ = exported(model, inputs, tmp_path / "m.onnx")
    tensors = {tensor.name: tensor for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    large = {tensor.data_type for tensor in tensors.values() if len(tensor.dims) > 1}
    assert large == {onnx.TensorProto.INT8}
    assert {t.data_type for t in tensors.values() if len(t.dims) == 1 and "integers" in t.name} == {
        onnx.TensorProto.INT32
    }
    zero_points = {t.data_type for n, t in tensors.items() if n.endswith("_uint8")}
    assert zero_points == {onnx.TensorProto.UINT8}


@pytest.mark.parametrize(
    "activation", [Scheme("int8", symmetric=True), Scheme("uint4"), Scheme("uint8", symmetric=True)]
)
def test_activations_of_other_types_and_widths(activation: Scheme, tmp_path: Path) -> None:
    model, inputs = network("residual")
    frozen, loaded = exported(model, inputs, tmp_path / "m.onnx", activation=activation)
    differences = layer_differences(frozen, tmp_path / "m.onnx", other_inputs(inputs, 3))
    assert max(one.largest for one in differences) <= 1
    with torch.no_grad():
        compare_outputs(loaded, frozen, [other_inputs(inputs, 3)], tolerance=0.1, what="the file")
    if activation.bits < 8:
        # The first convolution's output is quantized in two widths, so that it is needed in float.
        integer = integer_coverage(tmp_path / "m.onnx").integer
        assert integer == {"QLinearConv": 1, "QLinearAdd": 1, "QGemm": 1}, "a clip is in no kernel's way"


def test_folding_batch_norms_changes_nothing_but_rounding() -> None:
    model, inputs = network("residual")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[0].weight[:2] = torch.tensor([0.0, -0.7])
    frozen = freeze(simulate(model, inputs), inputs)
    lowered = lower(frozen, inputs)
    operators = [step[1] for step in lowered.frozen_program["steps"]]
    before = [step[1] for step in frozen.frozen_program["steps"]]
    assert (before.count("aten.batch_norm.default"), operators.count("aten.batch_norm.default")) == (2, 0)
    with torch.no_grad():
        compare_outputs(lowered, frozen, [other_inputs(inputs, 4)], tolerance=0.02, what="the folded model")


class Words(nn.Module):
    """An embedding whose table is quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(16, 4)
        self.table = FakeQuantizer(Scheme("int8", symmetric=True))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows = nn.functional.embedding(input_ids, self.table(self.embedding.weight))
        return self.head((rows * attention_mask[..., None]).mean(1))


def test_an_embedding_looks_integers_up(tmp_path: Path) -> None:
    inputs = network("bert")[1]
    frozen, loaded = exported(Words().eval(), inputs, tmp_path / "m.onnx")
    compare_outputs(loaded, frozen, [other_inputs(inputs, 3, 4)], tolerance=0.02, what="the file")
    graph = onnx.load(tmp_path / "m.onnx").graph
    lookup = next(node for node in graph.node if node.op_type == "Gather" and "embedding" in node.input[0])
    table = next(tensor for tensor in graph.initializer if tensor.name == lookup.input[0])
    assert (table.data_type, list(table.dims)) == (onnx.TensorProto.INT8, [50, 16])


def test_the_first_layer_that_diverges_is_named(tmp_path: Path) -> None:
    model, inputs = network("bert")
    frozen, _ = exported(model, inputs, tmp_path / "m.onnx")
    assert first_divergence(frozen, tmp_path / "m.onnx", other_inputs(inputs, 3, 2)) is None
    broken = onnx.load(tmp_path / "m.onnx")
    weight = next(t for t in broken.graph.initializer if t.name.endswith("intermediate.dense.weight"))
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(broken, tmp_path / "broken.onnx")
    found = first_divergence(frozen, tmp_path / "broken.onnx", inputs)
    assert found is not None and found.module == "bert.encoder.layer.0.output.dense.quantizers.input"
    assert found.largest > 1 and found.share > 0.1


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    model, inputs = network("residual")
    frozen, _ = exported(model, inputs, tmp_path / "m.onnx")
    other = freeze(simulate(*network("vit")), network("vit")[1])
    with pytest.raises(UserError, match="m.onnx wasn't exported from this quantized model"):
        layer_differences(other, tmp_path / "m.onnx", inputs)
    FORMATS["onnx"].export(nn.Conv2d(3, 4, 3), inputs, tmp_path / "float.onnx")
    with pytest.raises(UserError, match="float.onnx wasn't exported from this quantized model"):
        layer_differences(frozen, tmp_path / "float.onnx", inputs)


class Singular(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quantizer = FakeQuantizer(Scheme("uint8"))

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(self.quantizer(x))


def test_what_cannot_be_translated_says_so_in_one_line(tmp_path: Path) -> None:
    model, inputs = Singular().eval(), image(4, 4)
    calibrate(model, inputs)
    frozen = freeze(model, inputs)
    for refused in (FORMATS["onnx"].attempt, lambda m, i: FORMATS["onnx"].export(m, i, tmp_path / "m.onnx")):
        with pytest.raises(JobError, match="the quantized model can't be translated to ONNX: .*linalg_svd") as caught:
            refused(frozen, inputs)
        assert "\n" not in str(caught.value)
