"""A step of quantization-aware training over the same step in float, and those of torchao and brevitas beside it.

Three figures, each of forward, backward and optimizer: ResNet-18 with CIFAR's stem at batch 32, weights and inputs of
every convolution and linear layer in 8 bits (aim: at most 1.10 of float); the same with the batch norms folded into the
weights that are quantized (1.25); an encoder of MiniLM's size on 8 times 128 tokens, weights and inputs of its linear
layers (1.16). Beside them, where they are installed: torchao's PT2E quantization, which folds batch norms, and brevitas
with the same layers, an input and a weight quantizer each.

All models train in turn, a step each, in one process, and the order turns round; every model has a thread of its own,
of which one runs at a time, and the processor time of that thread is taken. Printed are ratios of medians.

    pip install --target RIVALS --no-deps torchao brevitas dependencies unfoldNd
    PYTHONPATH=RIVALS .venv/bin/python benchmarks/qat_step.py [--steps 15]
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import nnicompress
from nnicompress.models.resnet import BasicBlock, resnet18

COLD = 2
"""Steps of each model that are not counted: kernels are compiled in them."""
BATCH, TOKENS = 32, (8, 128)
Step = Callable[[], None]
Contender = Callable[[], Callable[["Turns"], None]]
"""Prepares a model (torch.export wants the main thread), and returns what trains it."""


class Turns:
    """The turns of one model."""

    def __init__(self) -> None:
        self.mine, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.seconds: list[float] = []
        self.over = False
        self.failure: str | None = None

    def take(self, step: Step) -> bool:
        """Wait for the next turn and run `step` in it; False where there are no more."""
        self.mine.acquire()
        if self.over:
            return False
        started = time.thread_time()
        step()
        self.seconds.append(time.thread_time() - started)
        self.done.release()
        return True


def train(model: nn.Module, inputs: tuple[Tensor, ...], loss: Callable[[Any], Tensor], turns: Turns) -> None:
    """The bare loop, of float models and of rivals."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(*inputs)).backward()
        optimizer.step()

    while turns.take(step):
        pass


def train_quantized(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    loss: Callable[[Any], Tensor],
    steps: int,
    turns: Turns,
    **settings: Any,
) -> None:
    """The same loop, around which a Quantizer works."""

    def loop(model: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: int, max_epochs: None) -> None:
        def one() -> None:
            optimizer.zero_grad()
            step(inputs, model).backward()
            optimizer.step()

        model.train()
        if max_steps == 1:  # the calibration
            one()
            return
        while turns.take(one):
            pass

    evaluator = nnicompress.TorchEvaluator(
        loop,
        nnicompress.trace(torch.optim.SGD)(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4),
        lambda batch, model: loss(model(*batch)),
        dummy_input=inputs,
    )
    target = {"op_types": ["Conv2d", "Linear"], "target_names": ["weight", "_input_"]}
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        target["op_types"] = ["Linear"]
    quantizer = nnicompress.Quantizer(
        [target], evaluator, functions=[], calibration_steps=1, kernel="compiled", **settings
    )
    quantizer.compress(model, max_steps=COLD + steps)


def pt2e(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The model as torchao prepares it for training."""
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    for module in model.modules():
        if type(module) is BasicBlock:
            module.__class__ = OwnActivations
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    prepared: nn.Module = prepare_qat_pt2e(torch.export.export(model.train(), inputs).module(), quantizer)
    return move_exported_model_to_train(prepared)


class OwnActivations(BasicBlock):
    """A block that calls a function where its one ReLU runs twice: torchao's quantizer for x86 refuses the latter."""

    def forward(self, x: Tensor) -> Tensor:
        """As the block it was."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + shortcut)


def brevitas(model: nn.Module) -> nn.Module:
    """The model with brevitas's layers, a scale an output channel, and a learned scale for each input."""
    from brevitas.nn import QuantConv2d, QuantLinear
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    quantizers = {"input_quant": Int8ActPerTensorFloat, "weight_quant": Int8WeightPerChannelFloat}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            bias = getattr(child, "bias", None) is not None
            if type(child) is nn.Conv2d:
                sizes = (child.in_channels, child.out_channels, child.kernel_size)
                new = QuantConv2d(*sizes, child.stride, child.padding, bias=bias, **quantizers)
            elif type(child) is nn.Linear:
                new = QuantLinear(child.in_features, child.out_features, bias=bias, **quantizers)
            else:
                continue
            new.load_state_dict(child.state_dict(), strict=False)
            setattr(parent, name, new)
    return model.train()


def compare(title: str, contenders: Mapping[str, Contender], steps: int) -> None:
    """Print each contender's median and its ratio to the first one's; who fails is named."""
    turns = {name: Turns() for name in contenders}

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # a rival that isn't there, or can't do this model
            turns[name].failure = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            turns[name].done.release()

    prepared = {name: attempt(name, prepare) for name, prepare in contenders.items()}

    def run(name: str) -> None:
        torch.set_num_threads(1)
        attempt(name, lambda: prepared[name](turns[name]))

    threads = [threading.Thread(target=run, args=(name,)) for name in contenders if turns[name].failure is None]
    for thread in threads:
        thread.start()
    for number in range(COLD + steps):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            if turns[name].failure is None:
                turns[name].mine.release()
                turns[name].done.acquire()
    for turn in turns.values():
        turn.over = True
        turn.mine.release()
    for thread in threads:
        thread.join()
    print(f"== {title}")
    medians = {name: statistics.median(t.seconds[COLD:]) for name, t in turns.items() if t.failure is None}
    base = next(iter(medians.values()))
    for name, turn in turns.items():
        if turn.failure is not None:
            print(f"{name:<44} left out ({turn.failure})")
        else:
            print(f"{name:<44} {1e3 * medians[name]:8.1f} ms a step  {medians[name] / base:6.3f} of float", flush=True)


def cifar_resnet18() -> nn.Module:
    """A 3x3 stem and no pooling behind it, for images of 32x32."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model.train()


class Encoder(nn.Module):
    """Six layers of width 384, as all-MiniLM-L6-v2 has them, without dropout; returns the last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[batch, tokens, width]."""
        hidden: Tensor = self.bert(input_ids, attention_mask).last_hidden_state
        return hidden


def main() -> None:
    """Both networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--only", default="", help="a part of a network's title: ResNet, MiniLM")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = (torch.randn(BATCH, 3, 32, 32, generator=generator),)
    labels = torch.randint(10, (BATCH,), generator=generator)
    ids = torch.randint(1000, 30000, TOKENS, generator=generator)
    tokens = (ids, torch.ones_like(ids))

    def classified(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels)

    def squared(hidden: Tensor) -> Tensor:
        return hidden.square().mean()

    steps = options.steps
    networks: dict[str, dict[str, Contender]] = {
        "ResNet-18, CIFAR's stem, batch 32": {
            "float": lambda: partial(train, cifar_resnet18(), images, classified),
            "nnicompress, weights and inputs": lambda: partial(
                train_quantized, cifar_resnet18(), images, classified, steps
            ),
            "nnicompress, batch norms folded": lambda: partial(
                train_quantized, cifar_resnet18(), images, classified, steps, fold_batch_norm=True
            ),
            "brevitas, weights and inputs": lambda: partial(train, brevitas(cifar_resnet18()), images, classified),
            "torchao PT2E, batch norms folded": lambda: partial(
                train, pt2e(cifar_resnet18(), images), images, classified
            ),
        },
        "MiniLM's size, 8 x 128 tokens": {
            "float": lambda: partial(train, Encoder().train(), tokens, squared),
            "nnicompress, weights and inputs": lambda: partial(
                train_quantized, Encoder().train(), tokens, squared, steps
            ),
            "brevitas, weights and inputs": lambda: partial(train, brevitas(Encoder()), tokens, squared),
            "torchao PT2E": lambda: partial(train, pt2e(Encoder(), tokens), tokens, squared),
        },
    }
    for title, contenders in networks.items():
        if options.only in title:
            compare(title, contenders, steps)


if __name__ == "__main__":
    main()
