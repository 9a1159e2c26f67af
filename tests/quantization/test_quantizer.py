"""The quantizer from end to end: what it calibrates, trains, leaves behind and resumes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from nnicompress.errors import InputErrors, JobError, UserError
from nnicompress.evaluators.contract import StepEvent
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.evaluators.training_step import SupervisedStep
from nnicompress.events import Event, StepDone
from nnicompress.quantization.attach import simulated, without_quantizers
from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.fixed import GradientQuantizer, quantize_gradient
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.result import QuantizationResult
from nnicompress.trace import trace

BATCHES = 6


class Net(nn.Module):
    """Convolution, batch norm, a residual add, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.block, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.middle(x)).relu()
        return self.head(x.mean(dim=(2, 3)))

    def middle(self, x: Tensor) -> Tensor:
        return self.block(x)


def make_net(cls: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return cls()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCHES, 8, 2, 6, 6, generator=generator)
    return [(x, (x.mean(dim=(1, 2, 3)) > 0).long()) for x in images]


def loop(model: nn.Module, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
    model.train()
    steps = 0
    for _ in range(max_epochs or 10**9):
        for batch in batches():
            optimizers.zero_grad()
            step(batch, model).backward()
            optimizers.step()
            steps += 1
            if steps == max_steps:
                return


def training_step(batch: Any, model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def make_evaluator(model: nn.Module, training_func: Any = loop) -> TorchEvaluator:
    return TorchEvaluator(
        training_func, trace(torch.optim.SGD)(model.parameters(), lr=0.05, momentum=0.9), training_step
    )


METHODS: dict[str, dict[str, Any]] = {
    "observed": {},
    "lsq": {"method": "lsq"},
    "lsq_plus": {"method": "lsq_plus"},
    "dorefa": {"method": "dorefa", "gradient_bits": 6},
    "bnn": {"method": "bnn", "backend": "none"},
}
FOUR_BITS = {"target_settings": {"weight": {"quant_dtype": "int4"}}}


def compressed(model: nn.Module, **settings: Any) -> QuantizationResult:
    length = {} if settings.get("trains") is False else {"max_steps": settings.pop("max_steps", 8)}
    target = settings.pop("target", FOUR_BITS)
    settings.setdefault("calibration_steps", 3)
    return Quantizer([target], make_evaluator(model), **settings).compress(model, **length)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_on_the_model(method: str) -> None:
    model = make_net()
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    parameters = [id(parameter) for parameter in model.parameters()]
    result = compressed(model, **METHODS[method])
    assert list(model.state_dict()) == keys and [type(module) for module in model.modules()] == classes
    assert [id(parameter) for parameter in model.parameters()] == parameters
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert {"stem/weight", "block/weight", "head/weight"} <= result.tensors.keys()


@pytest.mark.parametrize("method", METHODS)
def test_the_result_simulates_the_trained_model_bit_for_bit(method: str) -> None:
    model, x = make_net(), batches()[0][0]
    outputs: list[Tensor] = []

    def watched(model: nn.Module, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
        loop(model, optimizers, step, schedulers, max_steps, max_epochs)
        with torch.no_grad():
            outputs.append(model.eval()(x))  # as it is simulated when the training ends

    quantizer = Quantizer([FOUR_BITS], make_evaluator(model, watched), calibration_steps=3, **METHODS[method])
    result = quantizer.compress(model, max_steps=8)
    model.eval()
    with torch.no_grad():
        plain = model(x)
        with simulated(model, result):
            assert torch.equal(model(x), outputs[-1])
        assert torch.equal(model(x), plain) and not torch.equal(plain, outputs[-1])


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


def test_simulation_is_the_formula() -> None:
    """A network of one layer, quantized by hand."""
    model = nn.Sequential(nn.Linear(4, 3))
    nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def one(model: nn.Module, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
        optimizers.zero_grad()
        step(x, model).backward()
        optimizers.step()

    def loss(batch: Any, model: nn.Module) -> Tensor:
        return model(batch).square().mean()

    evaluator = TorchEvaluator(one, trace(torch.optim.SGD)(model.parameters(), lr=0.1), loss)
    result = Quantizer([{}], evaluator, observer="min_max", calibration_steps=1, trains=False).compress(model)
    weight, data = result.tensors["0/weight"], result.tensors["0/input_0"]
    torch.testing.assert_close(weight.scale, model[0].weight.detach().abs().amax(dim=1) / 127)
    torch.testing.assert_close(data.scale, (x.max() - x.min()) / 255)
    torch.testing.assert_close(result.tensors["0/bias"].scale, data.scale * weight.scale)
    w = fake_quantize(model[0].weight, weight.scale, weight.zero_point, -127, 127, 0)
    a = fake_quantize(x, data.scale, data.zero_point, 0, 255)
    step = data.scale * weight.scale
    b = torch.round(model[0].bias / step) * step
    with simulated(model, result):
        torch.testing.assert_close(model(x), a @ w.t() + b)


class Spoiled(nn.Module):
    """Two layers, and between them what a calibration may meet."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.between = between
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x.mean(dim=(1, 2)))))


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda x: x - torch.inf, "/sub_0/output_0 has no range: the calibration found infinity or NaN"),
        (lambda x: x / 0 - x / 0, "/sub_0/output_0.* NaN"),
    ],
)
@pytest.mark.parametrize("method", ["observed", "lsq"])
def test_values_without_a_range_are_one_line(between: Any, message: str, method: str) -> None:
    model = Spoiled(between)
    evaluator = TorchEvaluator(loop, trace(torch.optim.SGD)(model.parameters(), lr=0.1), training_step)
    quantizer = Quantizer([{}], evaluator, method=method, trains=method == "lsq")
    with pytest.raises(JobError, match=message):
        quantizer.compress(model, **({"max_steps": 1} if method == "lsq" else {}))


def test_a_training_step_that_calls_only_a_part_is_one_line() -> None:
    model = make_net()
    evaluator = TorchEvaluator(
        loop,
        trace(torch.optim.SGD)(model.parameters(), lr=0.1),
        lambda batch, model: model.stem(batch[0]).square().mean(),
        dummy_input=batches()[0][0],
    )
    for correct in (False, True):
        quantizer = Quantizer([{}], evaluator, trains=False, bias_correction=correct)
        with pytest.raises(
            JobError, match="the calibration found no numbers at .*training_step doesn't call the model"
        ):
            quantizer.compress(model)


def test_a_calibration_that_is_interrupted_leaves_the_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_net()
    before = copy.deepcopy(model.state_dict())

    def interrupted(*args: Any) -> None:
        assert any(
            not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name in before
        )
        raise KeyboardInterrupt

    monkeypatch.setattr("nnicompress.quantization.quantizer.calibrate_activations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compressed(model, trains=False, target={}, bias_correction=True)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_weight_that_is_computed_is_named() -> None:
    model = make_net()
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model.head)
    with pytest.raises(UserError, match=r"head.weight is computed in each forward \(by weight_norm"):
        compressed(model)


def test_calibration_without_training_moves_no_weight_and_quantizes_well() -> None:
    model = make_net()
    compressed(model, max_steps=12)  # some training, so that there is something to keep
    before = copy.deepcopy(model.state_dict())
    result = compressed(model, trains=False, target={}, calibration_steps=BATCHES)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    model.eval()
    x = torch.cat([x for x, _ in batches()])
    with torch.no_grad():
        plain = model(x)
        with simulated(model, result):
            quantized = model(x)
    noise, signal = (quantized - plain).pow(2).mean(), plain.pow(2).mean()
    assert noise < 1e-3 * signal  # 8 bits: better than 30 dB
    assert not torch.equal(quantized, plain)


@pytest.mark.parametrize("observer", ["min_max", "moving_average", "histogram", "percentile", "mse"])
def test_ranges_by_every_observer_are_within_the_values(observer: str) -> None:
    model = make_net()
    result = compressed(
        model, trains=False, target={}, calibration_steps=BATCHES, observer={"name": observer, "percentile": 99.0}
    )
    x = torch.stack([x for x, _ in batches()])
    low, high = x.min().item(), x.max().item()
    data = result.tensors["stem/input_0"]
    found = (-data.zero_point * data.scale).item(), ((255 - data.zero_point) * data.scale).item()
    step = data.scale.item()
    if observer == "min_max":
        assert found == pytest.approx((low, high), abs=step)
    elif observer == "moving_average":
        want_low, want_high = x[0].min().item(), x[0].max().item()
        for batch in x[1:]:
            want_low += 0.1 * (batch.min().item() - want_low)
            want_high += 0.1 * (batch.max().item() - want_high)
        assert found == pytest.approx((want_low, want_high), abs=step)
    elif observer == "percentile":
        ends = torch.quantile(x.flatten(), torch.tensor([0.005, 0.995])).tolist()
        assert found == pytest.approx(ends, abs=(high - low) / 2048 + step)
    else:
        assert low - step <= found[0] < 0 < found[1] <= high + step


@pytest.mark.parametrize("method", ["observed", "lsq"])
def test_activations_with_one_scale_a_channel(method: str) -> None:
    """By the formula, one channel at a time, at any batch size."""
    model = make_net()
    target = {"target_settings": {"_input_": {"granularity": "channel"}}}
    settings = {"backend": "none", "observer": "min_max"} if method == "observed" else {"backend": "none"}
    result = compressed(model, target=target, method=method, **settings, max_steps=2)
    data = result.tensors["stem/input_0"]
    assert data.scale.shape == (2,) and "head/bias" not in result.tensors
    x = batches()[0][0][:3]
    if method == "observed":
        seen = torch.stack([x for x, _ in batches()[:3]])  # in the calibration, and two of them in the training
        low, high = seen.amin(dim=(0, 1, 3, 4)), seen.amax(dim=(0, 1, 3, 4))
        torch.testing.assert_close(data.scale, (high - low) / 255)
    model.eval()
    with torch.no_grad(), simulated(model, result):
        assert torch.isfinite(model(x)).all()


def test_bias_correction_restores_the_mean_output() -> None:
    """With three-bit weights the mean over the calibration's batches is that of the float layer again."""
    target = {"target_names": ["weight"], "target_settings": {"weight": {"quant_dtype": "int3"}}}
    x = torch.cat([x for x, _ in batches()])
    shifts = {}
    for correct in (False, True):
        model = make_net().eval()
        with torch.no_grad():
            wanted = model.norm(model.stem(x)).mean(dim=(0, 2, 3))
        result = compressed(
            model, trains=False, target=target, functions=[], bias_correction=correct, calibration_steps=BATCHES
        )
        model.eval()
        with torch.no_grad(), simulated(model, result):
            shifts[correct] = (model.norm(model.stem(x)).mean(dim=(0, 2, 3)) - wanted).abs().max().item()
    assert shifts[True] < 1e-5 < 1e-3 < shifts[False]


def trained_by(quantizer: Quantizer, model: nn.Module, max_steps: int) -> list[tuple[int, bool, bool, float]]:
    """Step, switches (simulating, observing) and scale of the stem's input, after each number of steps from 0 on."""
    seen: list[tuple[int, bool, bool, float]] = []

    def look(step: int) -> None:
        tensors = quantizer.state_dict()["tensors"]
        observing, simulating = tensors["stem/input_0:flags"].tolist()
        seen.append((step, simulating, observing, tensors["stem/input_0:scale"].item()))

    def before_step(event: StepEvent) -> None:
        look(event.step - 1)

    handle = quantizer.evaluator.before_step(before_step)
    quantizer.compress(model, max_steps=max_steps)
    handle.remove()
    look(max_steps)
    return seen[-max_steps - 1 :]  # the calibration's steps come first


def test_the_schedule() -> None:
    model = make_net()
    schedule = {"simulate_from": 2, "observe_until": 4, "freeze_batch_norm_at": 3}
    quantizer = Quantizer([{}], make_evaluator(model), calibration_steps=2, schedule=schedule)
    statistics: list[Tensor] = []
    handle = quantizer.evaluator.after_step(lambda event: statistics.append(model.norm.running_mean.clone()))
    seen = trained_by(quantizer, model, max_steps=6)
    handle.remove()
    assert [(s, sim, obs) for s, sim, obs, _ in seen] == [
        (0, False, True), (1, False, True), (2, True, True), (3, True, True), (4, True, False), (5, True, False),
        (6, True, False),
    ]  # fmt: skip
    scales = [scale for *_, scale in seen]
    assert len(set(scales[:5])) == 5 and len(set(scales[4:])) == 1  # ranges follow the values until step 4
    trained = statistics[-6:]  # the calibration's steps come first
    assert not torch.equal(trained[1], trained[2]) and all(torch.equal(s, trained[2]) for s in trained[3:])
    assert model.norm.training


def test_ranges_follow_the_training_from_a_step_on() -> None:
    model = make_net()
    schedule = {"observe_from": 2, "observe_until": 5}
    settings = {"observer": "moving_average", "schedule": schedule}
    quantizer = Quantizer([{}], make_evaluator(model), calibration_steps=2, **settings)
    seen = trained_by(quantizer, model, max_steps=6)
    assert [obs for _, _, obs, _ in seen] == [False, False, True, True, True, False, False]
    scales = [scale for *_, scale in seen]
    assert len(set(scales[:3])) == 1 and len(set(scales[2:6])) == 4 and scales[5] == scales[6]
    x = batches()[2][0]  # of the first step whose range counts, a tenth of the moving average
    calibrated = [(x.min().item(), x.max().item()) for x, _ in batches()[:2]]
    low, high = (a + 0.1 * (b - a) for a, b in zip(*calibrated, strict=True))
    low, high = low + 0.1 * (x.min().item() - low), high + 0.1 * (x.max().item() - high)
    assert scales[3] == pytest.approx((high - low) / 255, rel=1e-5)


def test_a_training_that_never_simulates_is_told() -> None:
    model, notes = make_net(), []
    evaluator = make_evaluator(model)
    quantizer = Quantizer([{}], evaluator, notes.append, calibration_steps=1, schedule={"simulate_from": BATCHES})
    with pytest.raises(UserError, match="schedule.simulate_from: simulated from step 6, a training of 6 steps never"):
        quantizer.compress(model, max_steps=BATCHES)
    quantizer.compress(model, max_epochs=1)
    (told,) = [note.text for note in notes if "nothing was simulated" in getattr(note, "text", "")]
    assert told == "nothing was simulated: simulate_from is 6, and the training ended after 6 steps"


class Killed(Exception):
    pass


def resumable(method: str, stop_at: int | None, state: Any = None) -> tuple[dict[str, Tensor], Any]:
    """The trained weights and the ranges; or, killed after `stop_at` steps, what was saved there."""
    model = make_net()
    saved: dict[str, Any] = {}

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == stop_at:
            saved["weights"] = {k: v.clone() for k, v in without_quantizers(model.state_dict()).items()}
            saved["quantizer"], saved["evaluator"] = quantizer.state_dict(), evaluator.state_dict()
            raise Killed

    def loader(seed: int) -> Any:
        samples = [pair for x, y in batches() for pair in zip(x, y, strict=True)]
        return DataLoader(samples, 8, shuffle=True, generator=torch.Generator().manual_seed(seed))

    evaluator = TorchEvaluator(
        TrainingLoop(loader, seed=3, validate_every=0),
        trace(torch.optim.SGD)(model.parameters(), lr=0.05, momentum=0.9),
        SupervisedStep(nn.CrossEntropyLoss()),
        listener=listen,
    )
    schedule = {"freeze_batch_norm_at": 6}
    if METHODS[method].get("method", "observed") == "observed":
        schedule["observe_until"] = 7
    quantizer = Quantizer([FOUR_BITS], evaluator, calibration_steps=3, schedule=schedule, **METHODS[method])
    torch.manual_seed(5)
    if state is not None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        model.load_state_dict(state["weights"])
        quantizer.load_state_dict(state["quantizer"])
        evaluator.load_state_dict(state["evaluator"])
    try:
        result = quantizer.compress(model, max_steps=9)
    except Killed:
        return {}, saved
    ranges = {f"{place}.{kind}": getattr(tensor, kind) for place, tensor in result.tensors.items()
              for kind in ("scale", "zero_point")}  # fmt: skip
    return {**model.state_dict(), **ranges}, None


@pytest.mark.parametrize("stop_at", [4, 7])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_ends_with_the_same_bits(method: str, stop_at: int) -> None:
    want, _ = resumable(method, None)
    _, state = resumable(method, stop_at)
    assert state["quantizer"]["step"] == stop_at
    found, _ = resumable(method, None, state)
    assert found.keys() == want.keys() and len(want) > 10
    for name, tensor in want.items():
        assert torch.equal(found[name], tensor), name


class Checkpointed(Net):
    """Computes its middle again in the backward pass."""

    def middle(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False) if self.training else self.block(x)


@pytest.mark.parametrize("method", ["observed", "lsq"])
def test_gradient_checkpointing_changes_nothing(method: str) -> None:
    want, got = make_net(), make_net(Checkpointed)
    one, other = compressed(want, **METHODS[method]), compressed(got, **METHODS[method])
    for place, tensor in one.tensors.items():
        assert torch.equal(other.tensors[place].scale, tensor.scale), place
    for name, value in want.state_dict().items():
        assert torch.equal(got.state_dict()[name], value), name


def test_what_is_computed_again_for_gradients_is_not_observed() -> None:
    """Between forward and backward a bias grows, so that a recomputed forward has larger values than the step's own."""
    scales = []
    for cls in (Net, Checkpointed):
        model = make_net(cls)

        def step(batch: Any, model: Any) -> Tensor:
            loss = training_step(batch, model)
            model.block.bias.data += 3.0
            return loss

        evaluator = TorchEvaluator(loop, trace(torch.optim.SGD)(model.parameters(), lr=0.0), step)
        result = Quantizer([{}], evaluator, calibration_steps=1, observer="min_max").compress(model, max_steps=2)
        scales.append(result.tensors["block/output_0"].scale)
    assert torch.equal(*scales)


class One(nn.Module):
    """A network of one layer; its training makes `upstream` the gradient of the output."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.layer = nn.Linear(4, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.upstream = torch.randn(8, 3, generator=generator)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def train_one(model: One, lr: float, steps: int, **settings: Any) -> QuantizationResult:
    def train(model: nn.Module, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
        model.train()
        for x, _ in batches()[:max_steps]:
            optimizers.zero_grad()
            step(x[:, 0, 0, :4], model).backward()
            optimizers.step()

    def loss(x: Tensor, model: Any) -> Tensor:
        model.seen.append(model.layer.weight.detach().clone())
        return (model(x) * model.upstream).sum()

    evaluator = TorchEvaluator(train, trace(torch.optim.SGD)(model.parameters(), lr=lr), loss)
    return Quantizer([FOUR_BITS], evaluator, calibration_steps=1, **settings).compress(model, max_steps=steps)


def test_lsqs_first_scales_are_the_papers() -> None:
    """2 mean|v| / sqrt(Qp), section 2.1; without a learning rate they stay."""
    model, x = One(), batches()[0][0][:, 0, 0, :4]
    result = train_one(model, 0.0, 1, method="lsq")
    weight, data = result.tensors["layer/weight"], result.tensors["layer/input_0"]
    torch.testing.assert_close(weight.scale, 2 * model.layer.weight.detach().abs().mean(dim=1) / 7**0.5)
    torch.testing.assert_close(data.scale, 2 * x.abs().mean() / 127**0.5)  # of 256 integers half lie above zero
    assert data.zero_point == 128 and float(x.min()) < 0


def test_dorefa_trains_with_gradients_of_few_bits() -> None:
    """A bias sums the gradients of its layer's output, each quantized by equation 12 with the noise of its step."""
    model = One()
    before = model.layer.bias.detach().clone()
    train_one(model, 1.0, 2, method="dorefa", gradient_bits=2)
    moved = torch.zeros(3)
    for step in range(2):
        quantizer = GradientQuantizer(2)
        quantizer.begin(step)
        moved += quantize_gradient(model.upstream, 3, quantizer.noise(model.upstream)).sum(dim=0)
    torch.testing.assert_close(before - model.layer.bias.detach(), moved)
    assert not torch.allclose(moved, 2 * model.upstream.sum(dim=0), atol=0.1)


def test_binary_weights_are_clamped_after_each_step() -> None:
    """Courbariaux et al., algorithm 1: clip(W, -1, 1); beyond that no gradient would ever bring a weight back."""
    model = One()
    train_one(model, 0.3, 3, method="bnn", backend="none")
    assert float(model.seen[0].abs().max()) > 1
    for weight in model.seen[-2:]:  # as the second and the third step begin
        assert float(weight.abs().max()) == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_models(method: str) -> None:
    model = make_net().to(torch.bfloat16)

    def step(batch: Any, model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0].to(torch.bfloat16)).float(), batch[1])

    evaluator = TorchEvaluator(loop, trace(torch.optim.SGD)(model.parameters(), lr=0.05), step)
    result = Quantizer([FOUR_BITS], evaluator, calibration_steps=2, **METHODS[method]).compress(model, max_steps=4)
    for place, tensor in result.tensors.items():
        assert tensor.scale.dtype == torch.float32 and torch.isfinite(tensor.scale).all(), place
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_a_folded_batch_norm_is_in_the_weights_range() -> None:
    model = make_net()
    target = {"target_settings": {"weight": {"granularity": "tensor"}}}
    result = compressed(model, target=target, fold_batch_norm=True)
    assert result.folded == {"stem/weight": "norm"}
    factor = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    folded = model.stem.weight * factor.reshape(-1, 1, 1, 1)
    assert result.tensors["stem/weight"].scale.item() == pytest.approx(folded.abs().max().item() / 127, rel=1e-5)
    plain = compressed(make_net(), target=target)
    assert plain.folded == {} and plain.tensors["stem/weight"].scale != result.tensors["stem/weight"].scale


def test_check_changes_nothing_and_says_what_would_be_quantized() -> None:
    model = make_net()
    before = copy.deepcopy(model.state_dict())
    plan = Quantizer([{}], make_evaluator(model)).check(model)
    assert plan.layers == ["stem", "block", "head"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_error_in_training_leaves_the_model_as_it_was() -> None:
    model = make_net()
    keys = list(model.state_dict())

    def broken(batch: Any, model: nn.Module) -> Tensor:
        if any("quantizers" in key for key in model.state_dict()):
            raise ZeroDivisionError
        return training_step(batch, model)

    evaluator = TorchEvaluator(
        loop, trace(torch.optim.SGD)(model.parameters(), lr=0.05), broken, dummy_input=batches()[0][0]
    )
    with pytest.raises(ZeroDivisionError):
        Quantizer([{}], evaluator).compress(model, max_steps=2)
    assert list(model.state_dict()) == keys and type(model.stem) is nn.Conv2d


def test_a_simulated_model_can_be_copied() -> None:
    model = make_net()
    quantizer = Quantizer([FOUR_BITS], make_evaluator(model), calibration_steps=2)
    result = quantizer.compress(model, max_steps=2)
    model.eval()
    x = batches()[0][0]
    with torch.no_grad(), simulated(model, result):
        want = model(x)
        other = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(other(x), want)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lqs"}, "no method named 'lqs'; did you mean 'lsq'"),
        ({"observer": "histogramm"}, "no observer named 'histogramm'; did you mean 'histogram'"),
        (
            {"schedule": {"observe_from": 5, "observe_until": 5}},
            "schedule: observe_until 5 is not after observe_from 5",
        ),
        (
            {"schedule": {"observe_until": 5, "simulate_from": 9}},
            "schedule: observe_until 5 comes before simulate_from",
        ),
        ({"method": "bnn"}, "onnxruntime_x86 can't run in integers; set backend: none"),
        ({"gradient_bits": 4}, "gradient_bits belongs to dorefa, and the method is observed"),
        ({"bias_correction": True}, "needs trains: false"),
        ({"functions": ["ad"]}, "no function named 'ad'; did you mean 'add'"),
        ({"calibration_steps": 0}, "calibration_steps"),
        ({"weight_observer": "histogram"}, "weight_observer is one of min_max, mse"),
        ({"shedule": {}}, "shedule: unknown key; did you mean 'schedule'"),
        ({"method": "dorefa"}, "targets.0: dorefa's weights need a quant_dtype of 2 to 7 bits"),
        ({"method": "lsq", "observer": "mse"}, "observer belongs to method observed: lsq finds its scales without one"),
        ({"method": "lsq", "weight_observer": "mse"}, "weight_observer belongs to method observed"),
        ({"method": "lsq", "schedule": {"observe_until": 5}}, "schedule.observe_until belongs to method observed: lsq"),
        ({"trains": False, "schedule": {"simulate_from": 5}}, "schedule counts the steps of a training"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputErrors, match=message):
        Quantizer([{}], make_evaluator(make_net()), **settings)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"quant_dtype": "int16"}, "targets.0.quant_dtype: no quant_dtype named 'int16'"),
        ({"granularity": "chanel"}, "no granularity named 'chanel'; did you mean 'channel'"),
        ({"granularity": {"axis": 1, "blocksize": 4}}, "unknown key; did you mean 'block_size'"),
        ({"quant_dtype": "int4"}, "unsigned activations alone; give activations uint4, and int4 to weight in target"),
        ({"target_settings": {"_input_0": {"quant_dtype": "int8"}}}, "unsigned activations alone; give activations"),
        ({"granularity": "channel"}, "runs activations in integers with one scale a tensor"),
        ({"target_names": ["weight"], "granularity": {"axis": 1, "block_size": 4}}, "no integer kernels for blocks"),
        ({"target_names": []}, "target_names is empty"),
        ({"target_names": ["_inptu_"]}, "no tensor '_inptu_'; did you mean '_input_'?"),
        ({"target_names": ["weight"], "target_settings": {"weigth": {}}}, "did you mean 'weight'"),
        ({"op_typs": ["Linear"]}, "targets.0.op_typs: unknown key; did you mean 'op_types'"),
        ({"op_names_re": ["("]}, "is not a regular expression"),
        ({"fuse_names": 5}, r"targets.0.fuse_names: 5 is no list of chains; give \[\[conv1"),
        ({"fuse_names": "conv1"}, "'conv1' is no list of chains"),
        ({"fuse_names": ["conv1", "bn1"]}, r"it is a list of chains; give \[\[conv1, bn1\]\]"),
        ({"fuse_names": [["conv1"]]}, r"\[conv1\] is no chain: it takes two modules"),
        ({"fuse_names": [[]]}, r"\[\] is no chain: it takes two modules"),
        ({"target_names": ["weight", "_output_4"]}, "_output_4: of what a module returns only the first tensor"),
        ({"target_settings": {"_output_4": {}}}, "_output_4: of what a module returns only the first tensor"),
        ({"target_settings": {"_output_x": {}}}, "no tensor '_output_x'; did you mean '_output_'"),
        ({"target_names": ["bias"]}, "target_names with bias need weight and _input_"),
        ({"target_names": ["bias", "weight"]}, "target_names with bias need weight and _input_"),
        ({"target_settings": {"bias": {"quant_dtype": "int8"}}}, "settings of bias, which has none: it is int32"),
        ({"target_settings": {"weight": {"observer": "percentile"}}}, "targets.0: a weight's observer is one of"),
    ],
)
def test_wrong_targets(target: dict[str, Any], message: str) -> None:
    with pytest.raises(InputErrors, match=message):
        Quantizer([target], make_evaluator(make_net()))


CHANNELS = {"target_settings": {"_input_": {"granularity": "channel"}}}
WEIGHT_BY_ERROR = {"target_settings": {"weight": {"observer": "mse"}}}


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ({"target_settings": {"_input_": {"granularity": {"axis": 1, "block_size": 2}}}}, {}, "not one a block"),
        (CHANNELS, {"observer": "mse"}, "ranges of single channels of activations are found by min_max and moving"),
        (CHANNELS, {"method": "lsq_plus"}, "ranges of single channels of activations are found by min_max and moving"),
        (
            {"target_settings": {"_input_": {"observer": "mse"}}},
            {"method": "lsq"},
            "observer belongs to method observed",
        ),
        (WEIGHT_BY_ERROR, {"method": "lsq"}, "observer belongs to method observed"),
        (CHANNELS, {"method": "bnn"}, "bnn takes one scale a tensor, which is fixed"),
        (
            {"target_settings": {"weight": {"granularity": "channel"}}},
            {"method": "bnn"},
            "bnn takes one scale a tensor",
        ),
    ],
)
def test_wrong_targets_of_any_backend(target: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputErrors, match=f"^targets.0: .*{message}"):
        Quantizer([target], make_evaluator(make_net()), backend="none", **settings)


def test_what_the_evaluator_lacks_is_named() -> None:
    with pytest.raises(UserError, match="the observed quantizer needs .*to follow the model's values"):
        Quantizer([{}], TorchEvaluator()).compress(make_net())
    with pytest.raises(UserError, match="settings say trains: false"):
        Quantizer([{}], make_evaluator(make_net()), trains=False).compress(make_net(), max_steps=3)


def test_a_state_of_other_settings_is_refused() -> None:
    model = make_net()
    quantizer = Quantizer([{"op_types": ["Linear"]}], make_evaluator(model), calibration_steps=2)
    quantizer.compress(model, max_steps=2)
    other = Quantizer([{}], make_evaluator(model), calibration_steps=2)
    other.load_state_dict(quantizer.state_dict())
    with pytest.raises(UserError, match="the quantizer's state is for other settings or another model"):
        other.compress(model, max_steps=2)


def test_a_module_that_has_quantizers_of_its_own_is_refused() -> None:
    model = make_net()
    model.block.quantizers = nn.Identity()
    with pytest.raises(UserError, match="module 'block' has an attribute 'quantizers' already"):
        compressed(model)
    assert type(model.stem) is nn.Conv2d and not hasattr(model.stem, "quantizers")
