"""Fake quantization by the compiled kernel beside torch's own operators: forward and backward on 2M elements.

Both sides work in turn in one process and one thread, and which goes first alternates; every result is compared in
every element. Printed are medians for an element, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from nnicompress.quantization.kernel import Policy, Workload, by_torch, chosen, fake_quantize

SHAPE = (32, 64, 32, 32)
CASES: dict[str, tuple[int | None, torch.memory_format, torch.dtype]] = {
    "one scale": (None, torch.contiguous_format, torch.float32),
    "one scale, bfloat16": (None, torch.contiguous_format, torch.bfloat16),
    "a scale a channel": (1, torch.contiguous_format, torch.float32),
    "a scale a channel, channels last": (1, torch.channels_last, torch.float32),
}


def once(function: Callable[..., Tensor], x: Tensor, scale: Tensor, axis: int | None) -> tuple[float, Tensor, Tensor]:
    """Seconds, output and gradient of one forward and backward."""
    leaf, ones = x.detach().requires_grad_(), torch.ones_like(x)
    zero_point = torch.full(scale.shape, 3, dtype=torch.int32)
    begin = time.perf_counter()
    y = function(leaf, scale, zero_point, 0, 255, axis)
    (gradient,) = torch.autograd.grad(y, leaf, ones)
    return time.perf_counter() - begin, y.detach(), gradient


def main() -> None:
    """Print both sides of each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("nanoseconds an element, forward and backward   torch   compiled   ratio   elements that differ")
    with chosen(Policy("always"), Workload(1, 1)) as choice:
        if not choice.compiled:
            raise SystemExit(str(choice))
        for name, (axis, memory_format, dtype) in CASES.items():
            x = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 10).to(dtype)
            x = x.to(memory_format=memory_format)
            scale = torch.tensor(0.1) if axis is None else torch.linspace(0.05, 0.2, SHAPE[axis])
            begin = time.perf_counter()
            results = [once(function, x, scale, axis)[1:] for function in (by_torch, fake_quantize)]
            seconds = time.perf_counter() - begin
            differ = sum(int((a != b).sum()) for a, b in zip(*results, strict=True))
            times: dict[Callable[..., Tensor], list[float]] = {by_torch: [], fake_quantize: []}
            for number in range(options.repeats):
                for function in list(times)[:: -1 if number % 2 else 1]:
                    times[function].append(once(function, x, scale, axis)[0])
            own, ours = (statistics.median(taken) * 1e9 / x.numel() for taken in times.values())
            print(f"{name:<44} {own:7.2f} {ours:10.2f} {ours / own:7.2f}   {differ}   (compiled in {seconds:.1f} s)")


if __name__ == "__main__":
    main()
