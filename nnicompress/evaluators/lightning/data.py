"""The data that a Trainer is given: a LightningDataModule, loaders by role, or the module's own hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from nnicompress.data.roles import Data
from nnicompress.errors import UserError, did_you_mean
from nnicompress.evaluators.lightning.package import Package
from nnicompress.trace import Traced

ROLES = ("train", "validation", "test")
_HOOKS = {"train": "train_dataloader", "validation": "val_dataloader", "test": "test_dataloader"}
_ARGUMENTS = {"train": "train_dataloaders", "validation": "val_dataloaders", "test": "dataloaders"}


class Loaders:
    """Where the loaders of each role come from.

    With a datamodule, or with hooks of the LightningModule, `datamodule` or the module itself is asked by Lightning;
    otherwise `get` returns loaders.
    """

    def __init__(self, data: Any, seed: int, package: Package) -> None:
        self.seed, self._package = seed, package
        self._datamodule_class = package.get("LightningDataModule")
        self._data, self._roles = data, dict[str, Any]()
        traced = data.cls if isinstance(data, Traced) else None
        if isinstance(data, self._datamodule_class) or data is None:
            return
        if traced is not None and isinstance(traced, type) and issubclass(traced, self._datamodule_class):
            return
        if traced is not None:
            data = self._data = data.build()
        if isinstance(data, Mapping):
            self._roles = self._checked(data)
        elif isinstance(data, Data):
            self._roles = {
                "train": lambda: data.train_loader(seed),
                "validation": data.validation_loader,
                "test": data.test_loader,
            }
        else:
            other = Package.of(data)
            raise UserError(
                f"data is {type(data).__name__}{f' of {other.name}' if other else ''}; it must be a "
                f"{package.name}.LightningDataModule, a mapping of loaders {{'train': ..., 'validation': ..., "
                "'test': ...}, or an object with train_loader(seed), validation_loader() and test_loader()"
            )

    @property
    def datamodule(self) -> Any:
        """The LightningDataModule, built once, or None."""
        if isinstance(self._data, Traced):
            self._data = self._data.build()
        return self._data if isinstance(self._data, self._datamodule_class) else None

    def missing(self, role: str) -> bool:
        """Whether it is certain that there are no loaders for `role`."""
        return bool(self._roles) and role not in self._roles

    def owner(self, module: nn.Module) -> Any:
        """Whose `*_dataloader` hooks Lightning asks: the datamodule's or the module's; None where loaders are given."""
        return None if self._roles else self.datamodule or module

    def hook(self, role: str) -> str:
        """The name of the hook that Lightning asks for `role`."""
        return _HOOKS[role]

    def check(self, role: str, module: nn.Module) -> None:
        """Raise a UserError where there are no loaders for `role`."""
        owner = self.owner(module)
        if owner is None:
            if role not in self._roles:
                raise UserError(
                    f"there are no data for {role!r}: data has {', '.join(map(repr, self._roles))}; add {role!r}"
                )
            return
        base = self._package.get("core.hooks.DataHooks")
        name = _HOOKS[role]
        if getattr(type(owner), name, None) is getattr(base, name) and name not in vars(owner):
            raise UserError(
                f"there are no data for {role!r}: {type(owner).__name__} has no {name}(); add it, or give the "
                f"evaluator data={{{role!r}: loader}}"
            )

    def arguments(self, *roles: str, **names: str) -> dict[str, Any]:
        """Keyword arguments of `Trainer.fit`, `validate` or `test` for these roles; `names` override those of `fit`."""
        if self._roles:
            return {names.get(role, _ARGUMENTS[role]): self.get(role) for role in roles if role in self._roles}
        return {} if self.datamodule is None else {"datamodule": self.datamodule}

    def get(self, role: str) -> Any:
        """The loaders of `role`, one or a collection."""
        given = self._roles[role]
        return given() if callable(given) else given

    @staticmethod
    def _checked(data: Mapping[str, Any]) -> dict[str, Any | Callable[[], Any]]:
        if not data:
            raise UserError("data is an empty mapping; give {'train': loader, 'validation': loader}")
        for role, given in data.items():
            if role not in ROLES:
                near = did_you_mean(str(role), ROLES) or f"; there are {', '.join(map(repr, ROLES))}"
                raise UserError(f"data has the key {role!r}{near}")
            if not (callable(given) or hasattr(given, "__iter__")):
                raise UserError(
                    f"data[{role!r}] is {type(given).__name__}; it must be a loader, a collection of loaders or a "
                    "function that returns one"
                )
        return dict(data)
