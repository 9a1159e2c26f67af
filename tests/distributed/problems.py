"""Trainings that one process and several do alike: each returns tensors and numbers, to be compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.events import Event, Listener, StepDone, silent
from nnicompress.pruning.pruner import Pruner
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.trace import trace

Result = dict[str, Any]
NUM_SAMPLES, BATCH_SIZE = 41, 8
"""Five full batches and one of a single sample, of which one of two processes has no share."""


class Network(nn.Module):
    """Batch-norm with frozen statistics, a layer that no forward uses, and a method that a training step calls."""

    def __init__(self, hidden: int = 12, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(5, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden)
        )
        self.head = nn.Linear(hidden, 3)
        self.unused = nn.Linear(4, 4)
        self.body[1].running_mean += torch.linspace(-0.3, 0.3, hidden)

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        self.body[1].eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(inputs)))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def network(**settings: Any) -> Network:
    torch.manual_seed(3)
    return Network(**settings)


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(NUM_SAMPLES, 5, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long())


def loader(seed: int) -> DataLoader[Any]:
    return DataLoader(dataset(), BATCH_SIZE, shuffle=True, generator=torch.Generator().manual_seed(seed))


def step(batch: Any, model: Any) -> Tensor:
    return model.loss(batch)


def score(model: nn.Module) -> Tensor:
    return model.eval()(torch.ones(2, 5)).sum()


def evaluator(
    model: nn.Module, loop: TrainingLoop | None = None, training_step: Any = step, listener: Listener = silent
) -> TorchEvaluator:
    optimizer = trace(torch.optim.SGD)(model.parameters(), lr=0.2, momentum=0.9)
    return TorchEvaluator(
        loop or TrainingLoop(loader),
        optimizer,
        training_step,
        dummy_input=torch.zeros(2, 5),
        evaluating_func=score,
        listener=listener,
    )


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trained(model: nn.Module, using: TorchEvaluator, epochs: int = 2, **registered: Any) -> Result:
    with using.bound(model):
        for penalty in registered.get("penalties", ()):
            using.add_penalty(penalty)
        if own := registered.get("own"):
            using.add_parameters([("scale", own)])
        result = using.train(max_epochs=epochs)
    return {"weights": tensors(model), "losses": result.losses, "metrics": [dict(m) for m in result.metrics]}


def plain() -> Result:
    model = network()
    left = {name for module in model.modules() for name in vars(module)}
    result = trained(model, evaluator(model))
    result["attributes"] = sorted({name for module in model.modules() for name in vars(module)} ^ left)
    result["hooks"] = sum(len(p._backward_hooks or ()) for p in model.parameters())
    result["unused"] = model.unused.weight.grad is None
    return result


def accumulated() -> Result:
    """Windows of 4 and 2 batches, the norm clipped, a penalty, and a parameter of a compressor that only it reaches."""
    model = network()
    own = nn.Parameter(torch.tensor(0.5))

    def penalty(bound: nn.Module) -> Tensor:
        return 0.05 * sum(p.square().sum() for p in bound.parameters()) + (own - 1.0) ** 2

    loop = TrainingLoop(loader, accumulate=4, clip_norm=0.3)
    result = trained(model, evaluator(model, loop), epochs=3, penalties=[penalty], own=own)
    result["own"] = own.detach().clone()
    return result


def pruned() -> Result:
    """Taylor scores of two batches, masks from them, and a training under them between two removals."""
    model = network()
    using = evaluator(model)
    pruner = Pruner(
        [{"op_types": ["Linear"], "exclude_op_names": ["unused"], "sparse_ratio": 0.5}],
        using,
        importance={"name": "taylor", "training_steps": 6},
        schedule={"name": "agp", "total_times": 2, "interval_steps": 7},
    )
    result = pruner.compress(model)
    return {"weights": tensors(model), "masks": dict(result.masks.keep)}


def dropped() -> Result:
    """Two epochs with dropout at once, and the same, cut off after 8 steps and gone on with from the main's state."""
    whole = network(dropout=0.5)
    expected = trained(whole, evaluator(whole))
    cut = network(dropout=0.5)
    states: list[Any] = []

    def keep(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 8:
            states.append(copy.deepcopy((using.state_dict(), tensors(cut))))

    using = evaluator(cut, listener=keep)
    trained(cut, using)
    found = [states[-1] if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(found, src=0)
    state, weights = found[0]
    resumed = network(dropout=0.5)
    resumed.load_state_dict(weights)
    torch.manual_seed(99)
    again = evaluator(resumed)
    with again.bound(resumed):
        again.load_state_dict(state)
        again.train(max_epochs=2)
    return {"weights": tensors(resumed), "expected": expected["weights"]}


def drawn() -> Result:
    """What each process draws in its training step, and afterwards."""
    numbers: list[float] = []

    def draws(batch: Any, model: Any) -> Tensor:
        numbers.append(float(torch.rand(())))
        return model.loss(batch)

    model = network()
    trained(model, evaluator(model, training_step=draws))
    return {"numbers": numbers, "afterwards": float(torch.rand(()))}


def buffered() -> Result:
    """Batch-norm that measures: each process sees another part, and the main's statistics are everybody's."""
    model = measuring()
    loop = TrainingLoop(lambda seed: DataLoader(dataset(), BATCH_SIZE, drop_last=True))
    return trained(model, evaluator(model, loop, lambda b, m: nn.functional.cross_entropy(m(b[0]), b[1])), epochs=1)


def measuring() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def dealt() -> Result:
    """A loader whose sampler has dealt out the data: its batches are shares already."""
    model = network()
    sizes: list[int] = []

    def sized(batch: Any, model: Any) -> Tensor:
        sizes.append(len(batch[0]))
        return model.loss(batch)

    def dealing(seed: int) -> DataLoader[Any]:
        return DataLoader(dataset(), 4, sampler=DistributedSampler(dataset(), shuffle=False))

    result = trained(model, evaluator(model, TrainingLoop(dealing), sized), epochs=1)
    return {**result, "sizes": sizes}


OBSERVERS = ("min_max", "moving_average", "percentile", "mse", "histogram")
TRAINED: Mapping[str, Mapping[str, Any]] = {
    "observed": {},
    "lsq": {"method": "lsq"},
    "lsq_plus": {"method": "lsq_plus"},
    "dorefa": {"method": "dorefa", "gradient_bits": 6},
    "bnn": {"method": "bnn", "backend": "none"},
}


def quantized(**settings: Any) -> Result:
    """The network's ranges and weights; batches of four, of which each of two processes has two."""
    model = network()
    loop = TrainingLoop(lambda seed: DataLoader(dataset(), 4, drop_last=True))
    target = {"exclude_op_names": ["unused"], "target_settings": {"weight": {"quant_dtype": "int4"}}}
    length = {} if settings.get("trains") is False else {"max_steps": 8}
    result = Quantizer([target], evaluator(model, loop), calibration_steps=6, **settings).compress(model, **length)
    ranges = {f"{place}.{kind}": getattr(t, kind) for place, t in result.tensors.items() for kind in KINDS}
    return {"weights": tensors(model), "ranges": ranges}


KINDS = ("scale", "zero_point")


def calibrated() -> Result:
    """By every observer, without training."""
    return {name: quantized(observer=name, trains=False, bias_correction=name == "mse")["ranges"] for name in OBSERVERS}


def trained_quantized() -> Result:
    """By every method, with training."""
    return {name: quantized(**settings) for name, settings in TRAINED.items()}


ALIKE: Mapping[str, Callable[[], Result]] = {"plain": plain, "accumulated": accumulated, "pruned": pruned}
"""What one process and several do alike."""
TOGETHER: Mapping[str, Callable[[], Result]] = {
    "dropped": dropped,
    "drawn": drawn,
    "buffered": buffered,
    "dealt": dealt,
    "calibrated": calibrated,
    "trained_quantized": trained_quantized,
}
"""What only several processes do."""
