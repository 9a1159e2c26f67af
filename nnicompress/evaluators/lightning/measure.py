"""One measurement of a LightningModule: `Trainer.validate` or `Trainer.test`, quiet and without a trace."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from nnicompress.errors import UserError
from nnicompress.evaluators.lightning.fit import Given
from nnicompress.evaluators.lightning.metrics import averaged, with_default
from nnicompress.evaluators.lightning.package import interrupts_pass
from nnicompress.evaluators.lightning.put_back import no_engine_left, no_trainer_left, replaced

_VALIDATION_HOOKS = (
    "{}_step",
    "on_{}_start",
    "on_{}_end",
    "on_{}_epoch_start",
    "on_{}_epoch_end",
    "on_{}_batch_start",
    "on_{}_batch_end",
)


def measure(given: Given, module: Any, split: str) -> dict[str, float]:
    """The metrics that `module` logs on `split`, with the key `default`.

    A module without `test_step` is tested by its validation hooks on the test data.
    """
    given.loaders.check(split, module)
    lightning_module = given.package.get("LightningModule")
    arguments = given.loaders.arguments(split, validation="dataloaders")
    datamodule = arguments.get("datamodule")
    with (
        given.source.measuring() as trainer,
        no_engine_left(module, lightning_module, everything=True),
        nullcontext() if datamodule is None else no_trainer_left(datamodule),
        interrupts_pass(),
    ):
        try:
            if split == "validation":
                logged = trainer.validate(module, verbose=False, **arguments)
            else:
                with _validation_as_test(module, lightning_module):
                    logged = trainer.test(module, verbose=False, **arguments)
        except given.package.get("utilities.exceptions.MisconfigurationException") as error:
            raise UserError(f"the {split} can't be run: {error}") from error
    return with_default(averaged(logged), given.metric, split)


def served_by(model: nn.Module, module: Any) -> tuple[Any, list[int]]:
    """The LightningModule `module` again, with a forward that calls `model`, a served program, and counts its calls.

    A shallow copy: its parameters are the module's own, and no attribute set on it is.
    """
    stand_in, calls = copy.copy(module), [0]

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return model(*args, **kwargs)

    stand_in.forward = forward
    return stand_in, calls


@contextmanager
def _validation_as_test(module: Any, lightning_module: type[nn.Module]) -> Iterator[None]:
    if type(module).test_step is not lightning_module.test_step:  # type: ignore[attr-defined]
        yield
        return
    hooks = {name.format("test"): getattr(module, name.format("validation")) for name in _VALIDATION_HOOKS}
    with replaced(module, **hooks):
        yield
