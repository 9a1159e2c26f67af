"""Peak memory of inference: the bytes of all tensors alive at the worst moment of one forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnicompress.evaluators.contract import ModelInput


def peak_memory(model: nn.Module, inputs: ModelInput) -> int:
    """Bytes of weights, buffers, inputs and intermediate tensors at the worst moment of `model(*args, **kwargs)`.

    On CUDA this is what the caching allocator reports. On the CPU every storage is counted from the operator that
    makes it to its release, which is the same at every call and needs no process of its own; what a kernel keeps
    for itself while it runs (a convolution's scratch space) is in neither the tensors nor this number.
    """
    args, kwargs = inputs
    device = next((tensor.device for tensor in _tensors(model)), torch.device("cpu"))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            if device.type == "cuda":
                model(*args, **kwargs)
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
                # Other models of the run may lie on the device: count what this forward adds, and the model itself.
                before = torch.cuda.memory_allocated(device)
                model(*args, **kwargs)
                torch.cuda.synchronize(device)
                added = torch.cuda.max_memory_allocated(device) - before
                return int(added) + sum(tensor.untyped_storage().nbytes() for tensor in _tensors(model))
            counter = _LiveBytes()
            for tensor in (*_tensors(model), *(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))):
                counter.count(tensor)
            with counter:
                model(*args, **kwargs)
            return counter.peak
    finally:
        for module, training in modes.items():
            module.training = training


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds a storage's bytes when an operator first returns it and takes them away when it is released."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._live = 0
        self.peak = 0

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._release, size).atexit = False

    def _release(self, size: int) -> None:
        self._live -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return result


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
