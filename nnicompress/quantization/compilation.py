"""Whether a training compiles its fake quantization: what it has to do, and a length that may not be known before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn

from nnicompress.evaluators.preserve import same_random_states, same_tensors, same_training_mode
from nnicompress.events import Listener, Note
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.kernel import SMALL, Mode, Policy, Workload, chosen

MODES: Mapping[str, Mode] = {"auto": "auto", "compiled": "always", "torch": "never"}
"""By the setting `kernel`."""


class Compilation:
    """Within the context `fake_quantize` works as is best for the training.

    Where its length is known that is decided at the beginning. Elsewhere as many steps are expected as have been made,
    and the question is put again each time their number has doubled: at worst a training takes little longer than
    twice what compiling costs. Both ways give the same numbers, so it doesn't matter when one takes over.
    """

    def __init__(self, kernel: str, elements: int, device: torch.device, listener: Listener) -> None:
        """`kernel`: the setting; `elements`: quantized in each step."""
        self._policy, self._listener = Policy(MODES[kernel]), listener
        self._elements, self._device = elements, device
        self._asking = False
        self._stack = ExitStack()

    def begin(self, steps: int | None) -> Self:
        """A training of so many steps begins; None: nobody knows."""
        known = self._workload(steps or 0)
        unknown = steps is None and self._policy.mode == "auto"
        self._asking = unknown and not self._policy.choose(known).compiled
        if self._asking:
            text = (
                "fake quantization by torch itself until compiling pays: how long the training is shows as it goes on"
            )
            self._listener(Note(text))
        else:
            self._stack.enter_context(chosen(self._policy, known, self._listener))
        return self

    def after_step(self, done: int) -> None:
        """So many steps are made."""
        if self._asking and done & (done - 1) == 0 and self._policy.choose(self._workload(done)).compiled:
            self._asking = False
            self._stack.enter_context(chosen(self._policy, self._workload(done), self._listener))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _workload(self, steps: int) -> Workload:
        return Workload(self._elements, steps, self._device)


def elements_per_step(
    model: nn.Module, quantizers: Iterable[FakeQuantizer], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int:
    """Elements that pass `quantizers` in one forward, in tensors that are large enough for the compiled kernel."""
    count = 0

    def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal count
        count += given[0].numel() if given[0].numel() >= SMALL else 0

    handles = [quantizer.register_forward_pre_hook(add) for quantizer in quantizers]
    try:
        with torch.no_grad(), same_training_mode(model), same_tensors(model), same_random_states():
            model.eval()
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return count
