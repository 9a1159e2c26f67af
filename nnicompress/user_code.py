"""The user's own code behind a recipe: which files it lies in, and what they hold."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import nnicompress

_OWN = Path(nnicompress.__file__).resolve().parent
_LIBRARIES = tuple(
    Path(path).resolve() for name, path in sysconfig.get_paths().items() if name in ("stdlib", "platstdlib")
)


def user_code(config: Mapping[str, Any]) -> dict[str, str]:
    """File -> digest, for the modules of every object that `config` names, and those that they use in turn.

    The standard library, installed packages and nnicompress itself are not among them: their versions stand for them.
    Modules are followed through what they have imported, so a module that is only imported inside a function that has
    not run yet is not seen.
    """
    found: dict[str, ModuleType] = {}
    waiting = [module for name in _dotted_names(config) if (module := _module_of(name)) is not None]
    while waiting:
        module = waiting.pop()
        if module.__name__ in found or not _is_users(module):
            continue
        found[module.__name__] = module
        for value in list(vars(module).values()):
            home = getattr(value, "__module__", None)  # of a class or function: where it was defined
            used = value if isinstance(value, ModuleType) else sys.modules.get(home) if isinstance(home, str) else None
            if used is not None:
                waiting.append(used)
    return {name: _digest(Path(str(module.__file__))) for name, module in sorted(found.items())}


@cache
def own_code() -> str:
    """A digest of nnicompress's own files: in a checkout they change without a new version."""
    digest = hashlib.sha256()
    for file in sorted(_OWN.rglob("*.py")):
        digest.update(file.relative_to(_OWN).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _dotted_names(node: Any) -> Iterator[str]:
    """Every text of the config that could name an object: `my_model.Net`."""
    if isinstance(node, Mapping):
        for child in node.values():
            yield from _dotted_names(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from _dotted_names(child)
    elif isinstance(node, str) and "." in node and " " not in node:
        yield node


def _module_of(name: str) -> ModuleType | None:
    """The loaded module that `package.module.Name` lies in."""
    while name:
        if (module := sys.modules.get(name)) is not None:
            return module
        name = name.rpartition(".")[0]
    return None


def _is_users(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return False
    path = Path(file).resolve()
    if "site-packages" in path.parts or "dist-packages" in path.parts:
        return False
    return not any(path.is_relative_to(folder) for folder in (_OWN, *_LIBRARIES))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
