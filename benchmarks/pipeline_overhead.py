"""The recipe beside a hand-written script that does the same training, pruning and fine-tuning.

Both train ResNet-20 for 12 epochs with validation after each, score channels by Taylor importance over 80 batches,
remove 40 % of them, and fine-tune the narrow model for 4 epochs. Rounds alternate in one process; imports are not
counted. The recipe's own extras (export, report, interleaved latency) are timed apart.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import nnicompress
from nnicompress.data.digits import Digits
from nnicompress.models.resnet import ResNet, resnet20

CORE = ["~stages.export", "~stages.evaluate"]


def train(model: nn.Module, data: Digits, epochs: int, lr: float) -> None:
    """SGD with OneCycle and an accuracy on the validation data after each epoch."""
    loader = data.train_loader(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=epochs * len(loader))
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            scheduler.step()
        accuracy(model, data)


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """On the validation role."""
    model.eval()
    right = [(model(images).argmax(1) == labels).float() for images, labels in data.validation_loader()]
    return float(torch.cat(right).mean())


def taylor(model: ResNet, data: Digits, batches: int) -> dict[str, Tensor]:
    """Weight name -> sum over batches of (gradient times weight) squared."""
    scores = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model.train()
    for images, labels in itertools.islice(
        itertools.chain.from_iterable(itertools.repeat(data.train_loader(0))), batches
    ):
        model.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            scores[name] += (parameter.grad * parameter.detach()).square()
    model.zero_grad()
    return scores


def narrow(module: nn.Module, out: Tensor, into: Tensor | None = None) -> None:
    """Keep these outputs (and inputs) of a convolution, batch norm or linear layer."""
    tensors = [*module._parameters, *(n for n in module._buffers if n != "num_batches_tracked")]
    for name in tensors:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        kept = tensor.detach()[out]
        if into is not None and tensor.dim() > 1:
            kept = kept[:, into]
        setattr(module, name, nn.Parameter(kept.clone()) if isinstance(tensor, nn.Parameter) else kept.clone())


def prune(model: ResNet, data: Digits) -> None:
    """Every inner and every residual width loses the 40 % of its channels with the smallest score."""
    scores = taylor(model, data, 80)

    def best(*weights: str) -> Tensor:
        total = sum(scores[name].flatten(1).sum(1) for name in weights)
        assert isinstance(total, Tensor)
        return total.topk(round(0.6 * len(total))).indices.sort().values

    residual = torch.arange(1)
    for number, stage in enumerate((model.layer1, model.layer2, model.layer3), start=1):
        path = f"layer{number}"
        producers = [f"{path}.{i}.conv2.weight" for i in range(3)]
        producers.append("conv1.weight" if number == 1 else f"{path}.0.downsample.0.weight")
        outputs = best(*producers)
        if number == 1:
            narrow(model.conv1, outputs)
            narrow(model.bn1, outputs)
            residual = outputs
        for index, block in enumerate(stage):
            inner = best(f"{path}.{index}.conv1.weight")
            narrow(block.conv1, inner, residual)
            narrow(block.bn1, inner)
            narrow(block.conv2, outputs, inner)
            narrow(block.bn2, outputs)
            if block.downsample is not None:
                narrow(block.downsample[0], outputs, residual)
                narrow(block.downsample[1], outputs)
            residual = outputs
    narrow(model.fc, torch.arange(10), residual)


def by_hand() -> float:
    """The validation accuracy of the hand-written script."""
    torch.manual_seed(0)
    data = Digits()
    model = resnet20(in_channels=1)
    train(model, data, epochs=12, lr=0.1)
    prune(model, data)
    train(model, data, epochs=4, lr=0.005)
    return accuracy(model, data)


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"hand-written": [], "recipe, the same stages": [], "recipe, all stages": []}
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "hand-written": by_hand,
            "recipe, the same stages": lambda: nnicompress.run(
                "taylorfo_resnet", [*CORE, f"run_dir={Path(folder) / 'core'}"]
            ),
            "recipe, all stages": lambda: nnicompress.run("taylorfo_resnet", [f"run_dir={Path(folder) / 'all'}"]),
        }
        nnicompress.run("taylorfo_resnet", [f"run_dir={Path(folder) / 'warm'}"], smoke=True)
        for _ in range(rounds):
            for name, side in sides.items():
                started = time.perf_counter()
                side()
                seconds[name].append(time.perf_counter() - started)
                print(f"{name:26} {seconds[name][-1]:6.1f} s", flush=True)
    base = seconds["hand-written"]
    for name, values in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(base, values, strict=True))
        print(f"{name:26} median {statistics.median(values):6.1f} s   ratio to hand-written {ratio:.3f}")


if __name__ == "__main__":
    main()
