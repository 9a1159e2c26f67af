"""Which objects a config may name by `_target_`, and the one place where such a name becomes an object.

A name is checked twice: as it is written, before anything is imported, and again by where the object that it leads
to is defined. The first check alone would let `torch.nn.init.torch.hub.load` pass. Allowed are

- the model, data and evaluator parts of this package, and the parts of torch, torchmetrics, torchvision, timm,
  transformers, pytorch_lightning and lightning.pytorch in `ALLOWED`,
- code in the current directory, and code that ships beside a recipe,
- packages that the user trusts: `--trust PACKAGE`, the environment variable NNICOMPRESS_TRUST (names divided by
  commas) or `with allow([...])`. A config can't widen the trust.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from nnicompress.errors import ConfigError, TrustError, did_you_mean
from nnicompress.light_torchmetrics import import_torchmetrics
from nnicompress.paths import recipe_folders, shipped

ENVIRONMENT_VARIABLE = "NNICOMPRESS_TRUST"

_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


@contextmanager
def allow(packages: Iterable[str]) -> Iterator[None]:
    """Trust the code of `packages` (dotted names) inside the `with` block, beside what is trusted already."""
    token = _trusted.set(_trusted.get() | frozenset(packages))
    try:
        yield
    finally:
        _trusted.reset(token)


def trusted_packages() -> frozenset[str]:
    """The packages that the user trusts, from `allow` and from the environment."""
    names = os.environ.get(ENVIRONMENT_VARIABLE, "").replace(",", " ").split()
    return _trusted.get() | frozenset(names)


def resolve(target: str, *, key: str | None = None, source: str | None = None) -> Callable[..., Any]:
    """The class or function that `target` names.

    Raises TrustError where it may not be called, ConfigError where it doesn't exist; `key` and `source` are for
    their text.
    """
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts) or any(part[:2] == "__" for part in parts):
        raise ConfigError(f"{target!r} is not the dotted name of a class or function", key=key, source=source)
    _add_own_folders()
    if not _name_allowed(target):
        if _origin_of_package(parts[0]) is None and parts[0] not in sys.stdlib_module_names:
            near = did_you_mean(parts[0], {allowed.split(".")[0] for allowed in ALLOWED})
            text = f"{target}: there is no module {parts[0]!r}, neither installed nor in the current directory{near}"
            raise ConfigError(text, key=key, source=source)
        raise _refusal(target, None, key, source)
    found = _find(target, key, source)
    identity = _identity(found)
    if identity is None:
        raise ConfigError(f"{target} is neither a class nor a function", key=key, source=source)
    if not _object_allowed(found, identity):
        raise _refusal(target, identity, key, source)
    assert callable(found)
    return found


# ------------------------------------------------------------------------------------------------ what is allowed


def _is_class(found: object, identity: str) -> bool:
    return inspect.isclass(found)


def _is_class_or_function(found: object, identity: str) -> bool:
    """No methods, and nothing private."""
    public = "._" not in identity
    return public and (inspect.isclass(found) or getattr(found, "__qualname__", ".").count(".") == 0)


_TRANSFORMERS_ROOTS = frozenset(
    {"PreTrainedModel", "PreTrainedConfig", "PretrainedConfig", "Trainer", "TrainingArguments", "TrainerCallback"}
)


def _is_transformers_part(found: object, identity: str) -> bool:
    """Models, configs and Auto classes, their `from_config` and `from_pretrained`; Trainers, their parts, collators."""
    owner = getattr(found, "__self__", found)
    if owner is not found and getattr(found, "__name__", "") not in ("from_config", "from_pretrained"):
        return False
    if not inspect.isclass(owner):
        return False
    if owner.__module__.startswith("transformers.models.auto.") and owner.__name__.startswith(("AutoModel", "AutoCon")):
        return True
    if owner.__module__ == "transformers.data.data_collator":
        return True
    return any(
        base.__name__ in _TRANSFORMERS_ROOTS and base.__module__.startswith("transformers.") for base in owner.__mro__
    )


Rule = Callable[[object, str], bool]

ALLOWED: dict[str, Rule] = {
    "nnicompress.models": _is_class_or_function,
    "nnicompress.quantization.frozen": _is_class,
    "nnicompress.data": _is_class_or_function,
    "nnicompress.evaluators": _is_class_or_function,
    "torch.nn": _is_class_or_function,
    "torch.optim": _is_class,
    "torchmetrics": _is_class,
    "torchvision.models": _is_class_or_function,
    "torchvision.datasets": _is_class,
    "torchvision.transforms": _is_class,
    "timm.models": _is_class_or_function,
    "timm.layers": _is_class,
    "timm.loss": _is_class,
    "timm.optim": _is_class,
    "timm.scheduler": _is_class,
    "transformers": _is_transformers_part,
    "pytorch_lightning": _is_class,
    "lightning.pytorch": _is_class,
}
"""Prefix of the place where an object is defined -> what may be called there."""

ALLOWED_EXACTLY = frozenset({"torch.tensor", "timm.create_model", "timm.models._factory.create_model"})

DENIED = (
    "torch.load",
    "torch.save",
    "torch.hub",
    "torch.serialization",
    "torch.package",
    "torch.jit",
    "torch.utils",
    "torch.distributed",
)
"""Refused even where the user trusts all of torch: they load or run code from files and other machines."""


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _name_allowed(target: str) -> bool:
    root = target.split(".")[0]
    if target in ALLOWED_EXACTLY or _named_by_user(target) or any(_within(target, prefix) for prefix in ALLOWED):
        return True
    return root not in sys.stdlib_module_names and _is_users(_origin_of_package(root))


def _object_allowed(found: object, identity: str) -> bool:
    root = identity.split(".")[0]
    if root in sys.stdlib_module_names or any(_within(identity, denied) for denied in DENIED):
        return False
    if identity in ALLOWED_EXACTLY or _named_by_user(identity):
        return True
    if any(_within(identity, prefix) and rule(found, identity) for prefix, rule in ALLOWED.items()):
        return True
    module = sys.modules.get(getattr(found, "__module__", None) or "")
    return module is not None and _is_users(getattr(module, "__file__", None))


def _named_by_user(name: str) -> bool:
    return any(_within(name, package) for package in trusted_packages())


def _origin_of_package(root: str) -> str | None:
    """The file (or folder, for a package without `__init__`) that `import root` would read, found without importing."""
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.origin is None and spec.submodule_search_locations:
        return next(iter(spec.submodule_search_locations))
    return spec.origin


def _is_users(path: str | None) -> bool:
    """Whether `path` is the user's own code; a virtual environment that lies in the current directory is not."""
    if path is None:
        return False
    here, file = Path.cwd().resolve(), Path(path).resolve()
    if file.parent == shipped("recipes").resolve():
        return True
    if not file.is_relative_to(here) or file.is_relative_to(Path(__file__).resolve().parent):
        return False
    return not {"site-packages", "dist-packages"} & set(file.relative_to(here).parts)


# ------------------------------------------------------------------------------------------------ from name to object


def make_importable(folder: Path) -> None:
    """Let modules in `folder` be imported, behind all others; whether a config may name them is another question."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _add_own_folders() -> None:
    """Code in the current directory (a console script doesn't have it on its path), and beside recipes."""
    if "" not in sys.path:
        make_importable(Path.cwd())
    for folder in recipe_folders():
        make_importable(folder)


def _find(target: str, key: str | None, source: str | None) -> object:
    """Import the longest prefix of `target` that is a module, and follow the attributes after it."""
    parts = target.split(".")
    found: object = _import(parts[0], target, key, source)
    for depth, part in enumerate(parts[1:], start=2):
        name = ".".join(parts[:depth])
        if hasattr(found, part):
            found = getattr(found, part)
        elif inspect.ismodule(found) and _is_submodule(name):
            found = _import(name, target, key, source)
        else:
            where, known = ".".join(parts[: depth - 1]), [known for known in dir(found) if known[0] != "_"]
            raise ConfigError(f"{where} has no {part!r}{did_you_mean(part, known)}", key=key, source=source)
    return found


def _is_submodule(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _import(name: str, target: str, key: str | None, source: str | None) -> object:
    try:
        if name == "torchmetrics":
            import_torchmetrics(target)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(_missing(name, target, error), key=key, source=source) from error
    except Exception as error:  # the user's module may raise anything while it is imported
        text = f"importing {name} failed: {type(error).__name__}: {error}"
        raise ConfigError(text, key=key, source=source) from error


EXTRAS = {"timm": "vision", "torchvision": "vision", "onnx": "export", "onnxscript": "export", "onnxruntime": "export"}
"""Packages that come with an optional part of this one."""


def _missing(name: str, target: str, error: ModuleNotFoundError) -> str:
    missing = (error.name or name).split(".")[0]
    if missing in EXTRAS:
        return f"{target} needs {missing}, which is not installed: pip install 'nnicompress[{EXTRAS[missing]}]'"
    if error.name == name:
        return f"{target}: there is no module {name!r}, neither installed nor in the current directory"
    return f"importing {name} failed: {error}"


def _identity(found: object) -> str | None:
    """Where a class or function is defined (`torch.hub.load`); None for anything else."""
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return None
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if module is None and inspect.isbuiltin(found):
        module = getattr(found.__self__, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    return f"{module}.{name.removeprefix('_VariableFunctionsClass.')}"  # the class behind torch.tensor and its like


def _refusal(target: str, identity: str | None, key: str | None, source: str | None) -> TrustError:
    package = (identity or target).split(".")[0]
    really = f" (it is {identity})" if identity and identity != target else ""
    way_out = f"; if you trust the package, add --trust {package}"
    if package in sys.stdlib_module_names or any(_within(identity or target, denied) for denied in DENIED):
        way_out = "; write a function of your own in the current directory"
    return TrustError(f"{target}{really} may not be called from a config{way_out}", key=key, source=source)
