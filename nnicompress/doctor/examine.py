"""From a dotted path to an examined object: what kind of thing it is, how it is built, and its checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.doctor.checks import Examination, first_line, perform, quiet
from nnicompress.doctor.compressor import COMPRESSOR_CHECKS, CompressorSubject
from nnicompress.doctor.evaluator import EVALUATOR_CHECKS
from nnicompress.doctor.importance import IMPORTANCE_CHECKS, ImportanceSubject
from nnicompress.doctor.model import MODEL_CHECKS, ModelSubject
from nnicompress.doctor.sample import SampleNet
from nnicompress.doctor.trial import EvaluatorSubject
from nnicompress.errors import ConfigError, UserError
from nnicompress.evaluators.contract import Evaluator
from nnicompress.events import Listener
from nnicompress.pruning.importance import Importance
from nnicompress.trace import Traced, call, unknown_argument
from nnicompress.trust import resolve

KINDS = ("evaluator", "importance", "model", "compressor")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")
_MEMBERS = frozenset(name for name in vars(Evaluator) if not name.startswith("_"))
_ENOUGH = 5
"""So many members of the contract make an object an evaluator, which then lacks the others."""

Arguments = Mapping[str, Any]


def examine(
    path: str,
    arguments: Arguments | None = None,
    *,
    kind: str | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
    tell: Callable[[str], None] = quiet,
) -> Examination:
    """Build what the dotted `path` names, with `arguments`, and take it through its contract.

    Args:
        path: a class or function: `my_package.my_module.MyClass`.
        arguments: by name, for the constructor.
        kind: one of `KINDS`; found by what the object has where it is None.
        inputs: for a model: `1x3x32x32` or `2x16:int64`, one for each positional argument of its forward.
        model: for an evaluator: the dotted path of a class or function, without arguments, of a model that fits it.
        tell: hears the name of each check that begins.

    Raises:
        UserError: there is no such object (ConfigError), it may not be called (TrustError), its arguments are wrong,
            or it is none of the kinds.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind is one of {', '.join(KINDS)}, not {kind!r}")
    given = tuple(parse_input(text) for text in inputs)
    factory, arguments = resolve(path, key="PATH"), dict(arguments or {})
    for name in arguments:
        if unknown := unknown_argument(Importance if _is_element_function(factory) else factory, name):
            raise UserError(unknown)
    found = kind or kind_of(factory, arguments, path)
    if inputs and found != "model":
        raise UserError(f"--input is for models; {path} is examined as {_article(found)}")
    if model is not None and found != "evaluator":
        raise UserError(f"--model is for evaluators; {path} is examined as {_article(found)}")
    if found == "evaluator":
        evaluator = _evaluator(factory, arguments, path, model)
        return Examination(path, found, perform(EVALUATOR_CHECKS, evaluator, tell))
    if found == "importance":
        importance = _importance(factory, arguments, path)
        # Scores that are drawn are no function of a weight: nothing of it can be checked but the ranking.
        drawn = importance.importance.elements is None
        checks = [check for check in IMPORTANCE_CHECKS if not drawn or check.name == "kind"]
        return Examination(path, found, perform(checks, importance, tell))
    if found == "model":
        subject = _model(factory, arguments, path, given)
        findings = perform(MODEL_CHECKS, subject, tell)
        return Examination(path, found, findings, subject.notes)
    compressor = _built(CompressorSubject, path, factory, arguments)
    return Examination(path, found, perform(COMPRESSOR_CHECKS, compressor, tell))


def kind_of(factory: Callable[..., Any], arguments: Arguments, path: str) -> str:
    """What kind of object `factory` makes (or is): by its class, by its parameters, and else by what it returns."""
    if inspect.isclass(factory):
        return _kind_of_class(factory, path)
    names = _parameters(factory)
    if _is_element_function(factory):
        return "importance"
    if "settings" in names and "evaluator" in names:
        return "compressor"
    if "model" in names or "listener" in names:
        return "evaluator"
    made = _built(factory, path, **_own(factory, arguments))
    return _kind_of_class(type(_parts(made)[0]), path)


def parse_input(text: str) -> Tensor:
    """`1x3x32x32` or `2x16:int64` as a tensor: normal numbers, or zeros and ones for whole numbers and bool.

    Raises:
        UserError: it is not written like this.
    """
    shape, _, dtype = text.partition(":")
    sizes = shape.split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UserError(f"--input {text!r} is not sizes divided by x, as in 1x3x32x32 or 2x16:int64")
    if dtype and dtype not in DTYPES:
        raise UserError(f"--input {text!r}: the type is one of {', '.join(DTYPES)}, not {dtype!r}")
    generator = torch.Generator().manual_seed(0)
    size = [int(size) for size in sizes]
    kind: torch.dtype = getattr(torch, dtype or "float32")
    if kind.is_floating_point:
        return torch.randn(size, generator=generator).to(kind)
    return torch.randint(0, 2, size, generator=generator).to(kind)


def _kind_of_class(cls: type, path: str) -> str:
    if issubclass(cls, nn.Module):
        return "model"
    if issubclass(cls, Importance):
        return "importance"
    if hasattr(cls, "compress"):
        return "compressor"
    has = sorted(name for name in _MEMBERS if hasattr(cls, name))
    if len(has) >= _ENOUGH:
        return "evaluator"
    raise UserError(
        f"{path} is {cls.__name__}: neither a torch.nn.Module, nor an Importance, nor has it compress(model) or the "
        f"members of an evaluator ({', '.join(sorted(_MEMBERS)[:4])} ...); say what it should be with --kind"
    )


def _parameters(factory: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(factory).parameters)
    except ValueError:
        return []


def _own(factory: Callable[..., Any], arguments: Arguments, **offered: Any) -> dict[str, Any]:
    """The user's arguments, and what is `offered` under the names of parameters."""
    names = _parameters(factory)
    return {**{name: value for name, value in offered.items() if name in names}, **arguments}


def _is_element_function(factory: Callable[..., Any]) -> bool:
    """Whether this is itself `(weight, gradient) -> scores`."""
    names = _parameters(factory)
    return not inspect.isclass(factory) and names[:1] == ["weight"] and names[1:2] in (["gradient"], ["grad"])


def _built(factory: Callable[..., Any], path: str, *args: Any, **arguments: Any) -> Any:
    """`factory(...)`; whatever it raises is the user's error and not a traceback."""
    try:
        return call(factory, *args, **arguments)
    except UserError as error:
        text = str(error).removeprefix(f"{getattr(factory, '__name__', '')}: ")
        raise ConfigError(text, key=path) from error
    except Exception as error:  # a constructor of anybody's may raise anything
        raise ConfigError(f"raises {type(error).__name__}: {first_line(error)}", key=path) from error


def _parts(made: Any) -> tuple[Any, Any]:
    """What a function made: the object, and a model where it made both, in either order."""
    if isinstance(made, tuple) and len(made) == 2:
        first, second = made
        return (second, first) if isinstance(first, nn.Module) else (first, second)
    return made, None


def _evaluator(factory: Callable[..., Any], arguments: Arguments, path: str, model: str | None) -> EvaluatorSubject:
    build_model: Callable[..., Any] = SampleNet if model is None else resolve(model, key="--model")

    def build(listener: Listener) -> tuple[Evaluator, nn.Module]:
        own = _built(build_model, model or "the sample model")
        if not isinstance(own, nn.Module):
            raise ConfigError(f"{model} makes {_article(type(own).__name__)}, not a torch.nn.Module", key="--model")
        made = _built(factory, path, **_own(factory, arguments, model=own, listener=listener))
        evaluator, brought = _parts(made)
        return evaluator, own if brought is None else brought

    subject = EvaluatorSubject(build)
    subject.trial()  # what can't be built at all is wrong input
    return subject


def _importance(factory: Callable[..., Any], arguments: Arguments, path: str) -> ImportanceSubject:
    if _is_element_function(factory):
        name = getattr(factory, "__name__", "custom")
        made = _built(Importance, path, factory, **{"name": name, **arguments})
    else:
        made = _built(factory, path, **arguments)
    if not isinstance(made, Importance):
        raise ConfigError(f"makes {_article(type(made).__name__)}, not an Importance", key=path)
    return ImportanceSubject(made)


def _model(factory: Callable[..., Any], arguments: Arguments, path: str, given: tuple[Tensor, ...]) -> ModelSubject:
    made = _built(factory, path, **arguments)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"makes {_article(type(made).__name__)}, not a torch.nn.Module", key=path)
    return ModelSubject(Traced(factory, (), arguments), {"_target_": path, **arguments}, given)


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
