"""What a model's forward may do, and where the quantizer then quantizes or why it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnicompress.errors import UserError
from nnicompress.quantization.attach import simulated
from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.quantizer import Quantizer
from tests.quantization.simple import Net, batches, compressed, make_evaluator, make_net


class Writes(nn.Module):
    """Convolutions around a call that writes into a tensor, and reads that tensor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        self.relu, self.how = nn.ReLU(inplace=True), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        z = self.two(y)
        if self.how == "method":
            z.add_(y)
        elif self.how == "alias":
            same = z
            z += y
            z = same
        elif self.how == "function":
            nn.functional.relu(z, inplace=True)
        elif self.how == "operator":
            torch.ops.aten.relu_.default(z)
        elif self.how == "module":
            self.relu(z)
        elif self.how == "module's result":
            z = self.relu(z)
        elif self.how == "view":
            view = z.flatten(1)
            z.add_(y)
            z = view.unflatten(1, z.shape[1:])
        elif self.how == "part":
            z[:, 1:] += y[:, 1:]
        return self.three(z).mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("how", "place"),
    [
        ("method", "/add_0/output_0"),
        ("alias", "/add_0/output_0"),
        ("function", "/relu_0/output_0"),
        ("operator", "/relu_0/output_0"),
        ("module", "/relu_0/output_0"),
        ("module's result", "relu/output_0"),
        ("view", "three/input_0"),  # memory that was written into under another name
        ("part", "three/input_0"),
    ],
)
def test_what_was_written_in_place_is_read_as_integers(how: str, place: str) -> None:
    torch.manual_seed(0)
    model = Writes(how)
    result = compressed(model, max_steps=2)
    read: list[Tensor] = []
    with simulated(model, result), torch.no_grad():
        model.three.register_forward_pre_hook(lambda module, args: read.append(args[0].clone()))
        model.eval()(batches()[0][0])
    at = result.tensors[place]
    again = fake_quantize(read[0], at.scale, at.zero_point, at.scheme.quant_min, at.scheme.quant_max)
    assert torch.equal(again, read[0]) and read[0].any()


class Bytes(nn.Module):
    """Floats that no float was read for: of an image in bytes, of a choice, of a class."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mask, self.label = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(2, 6, 1), nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        image = (100 * x).to(torch.uint8)
        y = self.stem(image.float()) + self.mask(torch.where(image > 10, 1.0, 0.0))
        classes = nn.functional.one_hot(image.amax((1, 2, 3)).long() % 4, 4)
        return self.head(y.mean(dim=(2, 3)) + self.label(classes.float()))


def test_floats_made_of_no_floats_are_quantized_where_they_are_read() -> None:
    torch.manual_seed(0)
    model = Bytes()
    result = compressed(model, max_steps=2)
    assert {"stem/input_0", "mask/input_0", "label/input_0"} <= result.tensors.keys()
    assert not any("float" in place or "where" in place for place in result.tensors)
    assert abs(float(result.tensors["mask/input_0"].scale) * 255 - 1.0) < 1e-5  # from 0 to 1


class Remembers(nn.Module):
    """Reads the last state of an LSTM, which returns it in a tuple within a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(36, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(x.flatten(2))
        return self.head(hidden[-1])


def test_a_result_in_a_nest_is_quantized() -> None:
    torch.manual_seed(0)
    model, x = Remembers(), batches()[0][0]
    result = compressed(model, trains=False)
    at = result.tensors["lstm/output_1"]
    with torch.no_grad():
        state = model.lstm(x.flatten(2))[1][0][-1]
        with simulated(model, result):
            found = model(x)
        state = fake_quantize(state, at.scale, at.zero_point, at.scheme.quant_min, at.scheme.quant_max)
        weight, bias = (result.tensors[f"head/{name}"] for name in ("weight", "bias"))
        integers = [
            fake_quantize(p, q.scale, q.zero_point, q.scheme.quant_min, q.scheme.quant_max, 0)
            for p, q in ((model.head.weight, weight), (model.head.bias, bias))
        ]
    torch.testing.assert_close(found, nn.functional.linear(state, *integers), atol=1e-6, rtol=0)


class Noisy(Net):
    """Has one more ReLU in training, in front of the one whose result is quantized."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        if self.training:
            x = x + (x - 100.0).relu()
        x = (x + self.middle(x)).relu()
        return self.head(x.mean(dim=(2, 3)))


def test_calls_in_training_alone_shift_no_quantizer() -> None:
    found = [compressed(make_net(cls), max_steps=3, observer="moving_average") for cls in (Net, Noisy)]
    assert found[0].tensors.keys() == found[1].tensors.keys()
    for place, tensor in found[0].tensors.items():
        torch.testing.assert_close(found[1].tensors[place].scale, tensor.scale, rtol=1e-5, atol=0)


class CheckpointedPart(Net):
    """Checkpoints a function that adds; `middle` alone, which only calls a module, could be."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = checkpoint(self.part, x, use_reentrant=False)
        return self.head(x.mean(dim=(2, 3)))

    def part(self, x: Tensor) -> Tensor:
        return (x + self.middle(x)).relu()


def test_a_checkpointed_function_with_quantizers_is_refused() -> None:
    model = make_net(CheckpointedPart)
    quantizer = Quantizer([{}], make_evaluator(model))
    message = "/relu_1 is in a function that is checkpointed, whose second run is in no module's forward"
    with pytest.raises(UserError, match=message):
        quantizer.check(model)
    assert compressed(model, trains=False).tensors.keys() == compressed(make_net(), trains=False).tensors.keys()


def test_a_compiled_model_is_refused() -> None:
    model = make_net()
    with pytest.raises(UserError, match=r"compiled by torch.compile.*quantize it before that"):
        Quantizer([{}], make_evaluator(model)).check(torch.compile(model, backend="eager"))  # type: ignore[arg-type]


class Detour(Net):
    """Runs its block in evaluation mode alone."""

    def middle(self, x: Tensor) -> Tensor:
        return x.neg() if self.training else self.block(x)


def test_a_check_proves_what_a_quantization_would() -> None:
    model = make_net(Detour)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"more. is not reached in training mode"):
        Quantizer([{}], make_evaluator(model)).check(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(Quantizer([{}], make_evaluator(sound := make_net())).check(sound).weights) == 3
    assert type(sound.block) is nn.Conv2d and not hasattr(sound.block, "quantizers")


class PassesBy(Net):
    """Writes into a tensor of a list, which no recording sees."""

    def middle(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        torch._foreach_exp_([y])
        return self.block(y)


def test_a_layer_that_reads_past_its_quantizer_is_found_out() -> None:
    with pytest.raises(
        UserError, match=r"block does not read the values that are quantized at /_foreach_exp__0/output_0"
    ):
        Quantizer([{}], make_evaluator(model := make_net(PassesBy))).check(model)


def test_attention_takes_no_path_around_its_quantizers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    model = nn.Sequential(nn.Flatten(2), nn.Linear(36, 6), layer, nn.Flatten(), nn.Linear(12, 3))
    target = {
        "op_names": ["2.linear1"],
        "target_names": ["weight"],
        "target_settings": {"weight": {"quant_dtype": "int2"}},
    }
    result = compressed(model, trains=False, target=target, functions=[])
    x = batches()[0][0]
    at = result.tensors["2.linear1/weight"]
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        weight = by_hand[2].linear1.weight
        weight.copy_(fake_quantize(weight, at.scale, at.zero_point, at.scheme.quant_min, at.scheme.quant_max, 0))
        before = torch.backends.mha.get_fastpath_enabled()
        with simulated(model.eval(), result):
            torch.testing.assert_close(model(x), by_hand.eval()(x))
        assert torch.backends.mha.get_fastpath_enabled() is before is True


def test_a_weight_that_is_computed_is_named() -> None:
    model = make_net()
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model.head)
    with pytest.raises(UserError, match=r"head.weight is computed in each forward \(by weight_norm"):
        compressed(model)


def test_a_module_that_has_quantizers_of_its_own_is_refused() -> None:
    model = make_net()
    model.block.quantizers = nn.Identity()
    with pytest.raises(UserError, match="module 'block' has an attribute 'quantizers' already"):
        compressed(model)
    assert type(model.stem) is nn.Conv2d and not hasattr(model.stem, "quantizers")
