"""A LightningDataModule as the data of a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from nnicompress.data.roles import Loader
from nnicompress.evaluators.inputs import tensors_in


def is_datamodule(data: object) -> bool:
    """Whether `data` is a LightningDataModule, of whichever package; neither is imported to tell."""
    return any(cls.__name__ == "LightningDataModule" for cls in type(data).__mro__)


class DataModuleData:
    """What a run asks of its data beside the training: a datamodule's loaders by role, and a hash of what they give.

    The training itself uses `datamodule`, whose hooks a Trainer calls. Without a test loader, the validation data serve
    for both.
    """

    def __init__(self, datamodule: Any) -> None:
        self.datamodule = datamodule
        self.num_classes = getattr(datamodule, "num_classes", 0)
        for name in ("preprocessing", "class_names", "tokenizer"):
            setattr(self, name, getattr(datamodule, name, None))
        self._ready: set[str] = set()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first tensor of a validation batch, without the batch dimension."""
        first = next(tensors_in(next(iter(self.validation_loader()))))
        return tuple(first.shape[1:])

    def train_loader(self, seed: int) -> Loader:
        """The datamodule's; its order is the datamodule's own affair."""
        return self._loader("fit", "train_dataloader")

    def validation_loader(self) -> Loader:
        """The datamodule's `val_dataloader`, or the first of several."""
        return self._loader("validate", "val_dataloader")

    def test_loader(self) -> Loader:
        """The datamodule's `test_dataloader`, where it has one."""
        hook = getattr(type(self.datamodule), "test_dataloader", None)
        has_one = getattr(hook, "__module__", "").partition(".")[0] not in ("pytorch_lightning", "lightning")
        return self._loader("test", "test_dataloader") if has_one else self.validation_loader()

    def fingerprint(self) -> str:
        """The datamodule's own `fingerprint()`; else a hash of all validation and test data and the training's size."""
        own = getattr(self.datamodule, "fingerprint", None)
        if callable(own):
            return str(own())
        digest = hashlib.sha256(str(_length(self.train_loader(0))).encode())
        for loader in (self.validation_loader(), self.test_loader()):
            for batch in loader:
                for tensor in tensors_in(batch):
                    digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
                    digest.update(_bytes(tensor))
        return digest.hexdigest()

    def _loader(self, stage: str, hook: str) -> Loader:
        if stage not in self._ready:
            if not self._ready:
                self.datamodule.prepare_data()
            self.datamodule.setup(stage)
            self._ready.add(stage)
        found = getattr(self.datamodule, hook)()
        loader: Loader = next(_flat(found))
        return loader


def _flat(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        for loader in loaders:
            yield from _flat(loader)
    else:
        yield loaders


def _length(loader: Any) -> int | None:
    dataset = getattr(loader, "dataset", None)
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:
        return None


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
