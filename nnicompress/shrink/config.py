"""Bring a compact model's configuration up to its widths, where one configuration can say them all.

Models of transformers are built from a config object: `intermediate_size: 56` becomes the widths of a layer in every
block. Which number went where is traced, not guessed: the model is built once more, without storage, from integers that
remember their key, and each parameter is asked what its sizes were multiplied from. Every size of the compact model is
then an equation for keys. A solution counts only if the model built from it takes the compact model's tensors and gives
its outputs; otherwise the config stays as it was and the reason is told. A model whose layers differ in width has no
config of this kind; the files in `model/` load it all the same.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from nnicompress.evaluators.contract import ModelInput
from nnicompress.graph.capture import evaluating
from nnicompress.graph.provenance import AttributeOf, Size, TrackedInt, size_of
from nnicompress.graph.widths import ChannelGroups

TOLERANCE = 1e-4
"""Largest difference between the outputs of the compact model and of the one built from its new config, relative."""


@dataclass(frozen=True)
class Rewritten:
    """The keys of a config that changed, with their new values, or why it could not follow (`reason`)."""

    changed: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def follow_config(compact: nn.Module, groups: ChannelGroups, example: ModelInput) -> Rewritten:
    """Give `compact` a config that builds it, and its modules the attributes of a model so built.

    Where a wrapper holds the model (`OneOutput`), this is about the model inside. Models without a config and a
    `from_pretrained` are left alone, as are those that no config can build. `example` is an input of `compact`.
    """
    path, model = _configured(compact)
    if model is None:
        return Rewritten(reason="it is not built from a config")
    sizing = frozenset(
        (inside, attribute) for module, attribute in groups.sizing if (inside := _inside(path, module)) is not None
    )
    slots = (_inside(path, slot.tensor) for width in groups.widths for slot in width.slots)
    config = model.config
    try:
        values = _solve(list(_equations(model, config, sizing)), config)
        changed = {key: value for key, value in values.items() if value != _get(config, key)}
        fresh = _built(type(model), config, changed)
        _check(model, fresh, sizing, {name for name in slots if name is not None}, _inputs_of(model, compact, example))
    except _NoConfig as error:
        return Rewritten(reason=str(error))
    _take_over(model, fresh)
    return Rewritten(changed)


def apply_config(compact: nn.Module, changed: Mapping[str, int]) -> None:
    """What `follow_config` did, from the keys that it changed."""
    _, model = _configured(compact)
    if changed and model is not None:
        _take_over(model, _built(type(model), model.config, changed))


def _configured(model: nn.Module) -> tuple[str, Any]:
    """The path and the outermost module that a config builds; None where there is no such module."""
    for path, module in model.named_modules():
        if getattr(module, "config", None) is not None and hasattr(type(module), "from_pretrained"):
            return path, module
    return "", None


def _inside(path: str, name: str) -> str | None:
    """The name of a module or tensor as the module at `path` knows it; None where it lies elsewhere."""
    if not path or name == path:
        return name.removeprefix(path) if path else name
    return name.removeprefix(f"{path}.") if name.startswith(f"{path}.") else None


def _inputs_of(model: nn.Module, compact: nn.Module, example: ModelInput) -> ModelInput:
    """What `model` inside `compact` is called with where that is called with `example`."""
    calls: list[ModelInput] = []
    handle = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        with torch.no_grad(), evaluating(compact):
            compact(*example[0], **example[1])
    finally:
        handle.remove()
    if not calls:
        raise _NoConfig(f"the forward does not call {type(model).__name__}, which has the config")
    return calls[0]


def _take_over(compact: nn.Module, fresh: nn.Module) -> None:
    """The config, wherever a module holds it, and integer attributes as the fresh model has them."""
    for path, module in compact.named_modules():
        built = vars(fresh.get_submodule(path))
        for name, value in vars(module).items():
            new = built.get(name)
            if type(new) is type(value) and (type(value) is int or hasattr(value, "model_type")):
                setattr(module, name, new)


class _NoConfig(Exception):
    """No config builds the compact model; the message says why."""


@dataclass(frozen=True)
class _Equation:
    """`coefficient` times the keys' values to these powers must be `value`; `place` says of what."""

    value: int
    coefficient: Fraction
    powers: Mapping[str, int]
    place: str


def _equations(compact: nn.Module, config: Any, sizing: Set[tuple[str, str]]) -> Iterator[_Equation]:
    """What each size of a tensor, and each attribute that the forward takes a size from, says about the config."""
    traced, sizes = _traced(type(compact), config)
    tensors = dict([*compact.named_parameters(), *compact.named_buffers()])
    for name, tensor in (*traced.named_parameters(), *traced.named_buffers()):
        for dim, size in enumerate(sizes.get(_storage(tensor), ())):
            if size.origins and name in tensors:
                yield _equation(tensors[name].shape[dim], size, f"dimension {dim} of {name}")
    for path, attribute in sorted(sizing):
        value = vars(traced.get_submodule(path)).get(attribute)
        now = getattr(compact.get_submodule(path), attribute)
        if isinstance(value, TrackedInt) and type(now) is int:
            yield _equation(now, size_of(value), f"{path}.{attribute}")


def _equation(value: int, size: Size, place: str) -> _Equation:
    powers: Counter[str] = Counter()
    coefficient = size.coefficient
    for origins, sign in ((size.origins, 1), (size.divisors, -1)):
        for origin in origins:
            assert isinstance(origin, AttributeOf), "a config's sizes come from its keys"
            powers[origin.attribute] += sign
            coefficient *= origin.value if sign < 0 else 1
    return _Equation(value, coefficient, {key: power for key, power in powers.items() if power}, place)


def _solve(equations: list[_Equation], config: Any) -> dict[str, int]:
    """Keys by the equations of one unknown, as long as there are any; what nothing says stays as it is.

    Raises _NoConfig where two places want other values of one key.
    """
    values: dict[str, int] = {}
    waiting = list(equations)
    while waiting:
        unknown = {id(e): [key for key in e.powers if key not in values] for e in waiting}
        equation = min(waiting, key=lambda e: len(unknown[id(e)]))
        if len(keys := unknown[id(equation)]) > 1:  # of a product nothing says which key fell: the first stays
            values[keys[0]] = _get(config, keys[0])
            continue
        waiting.remove(equation)
        rest = Fraction(equation.value) / equation.coefficient
        for key, power in equation.powers.items():
            rest /= Fraction(values[key]) ** power if key in values else 1
        if not keys:
            if rest != 1:
                names = " and ".join(sorted(equation.powers))
                raise _NoConfig(f"{equation.place} is {equation.value}, which is not the {names} of the other layers")
            continue
        key, power = keys[0], equation.powers[keys[0]]
        value = _root(rest, power)
        if value is None:
            raise _NoConfig(f"{equation.place} is {equation.value}, which no {key} gives")
        values[key] = value
    return values


def _root(value: Fraction, power: int) -> int | None:
    """The whole number whose `power` is `value`, if there is one."""
    if power < 0:
        value, power = 1 / value, -power
    root = round(float(value) ** (1 / power))
    return root if root > 0 and Fraction(root) ** power == value else None


class _Sizes(TorchFunctionMode):
    """Remembers what the sizes of each created tensor were given as."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, list[Size]] = {}
        self._alive: list[Tensor] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and getattr(func, "__name__", "") in ("empty", "zeros", "ones", "rand", "randn"):
            given = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, int)]
            if [int(g) for g in given] == list(result.shape):
                self.found[_storage(result)] = [size_of(g) for g in given]
                self._alive.append(result)
        return result


def _traced(build: type[nn.Module], config: Any) -> tuple[nn.Module, dict[int, list[Size]]]:
    """The model as built from a config of tracked integers, and the sizes of its tensors by their storage."""
    tracked = copy.deepcopy(config)
    _track(tracked, "")
    sizes = _Sizes()
    with torch.device("meta"), sizes:
        model = build(tracked)
    return model, sizes.found


def _track(config: Any, prefix: str) -> None:
    """Make every positive integer of a config, of its lists and of configs within it remember its key."""
    for name, value in list(vars(config).items()):
        if name.startswith("_"):
            continue
        key = prefix + name
        if type(value) is int and value > 0:
            vars(config)[name] = _tracked(key, value)
        elif isinstance(value, list):
            marked = [_tracked(f"{key}.{i}", v) if type(v) is int and v > 0 else v for i, v in enumerate(value)]
            vars(config)[name] = marked
        elif hasattr(value, "to_dict"):
            _track(value, f"{key}.")


def _tracked(key: str, value: int) -> TrackedInt:
    return TrackedInt(value, Fraction(1), (AttributeOf("", key, value),))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _built(build: type[nn.Module], config: Any, changed: Mapping[str, int]) -> nn.Module:
    """A fresh model from the config with those keys changed."""
    new = copy.deepcopy(config)
    for key, value in changed.items():
        *parents, last = key.split(".")
        owner = new
        for parent in parents:
            owner = getattr(owner, parent)
        if isinstance(owner, list):
            owner[int(last)] = value
        else:
            setattr(owner, last, value)
    try:
        if hasattr(new, "validate"):  # saving would
            new.validate()
        with torch.random.fork_rng(devices=[]):
            return build(new).eval()
    except Exception as error:  # a config's own checks raise whatever they like
        reason = str(error).strip().splitlines()
        raise _NoConfig(f"{build.__name__} refuses {dict(changed)}: {reason[-1] if reason else error!r}") from error


def _get(config: Any, key: str) -> Any:
    value = config
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else getattr(value, part)
    return value


def _check(
    compact: nn.Module, fresh: nn.Module, sizing: Set[tuple[str, str]], used: Set[str], example: ModelInput
) -> None:
    """The fresh model takes the compact one's tensors, has its sizes and scales, and computes what it does.

    `used` are the tensors that lie in a width.
    """
    own, saved = dict([*compact.named_parameters(), *compact.named_buffers()]), compact.state_dict()
    fresh.to(next(iter(own.values())).device)
    for name, parameter in fresh.named_parameters():
        parameter.data = parameter.data.to(own[name].dtype)
    for name, tensor in (*fresh.named_parameters(), *fresh.named_buffers()):
        shape = own[name].shape
        if name in saved and shape != tensor.shape:
            raise _NoConfig(f"{name} is {tuple(shape)}, where a config of these widths makes it {tuple(tensor.shape)}")
        if name not in saved and name in used and not torch.equal(own[name], tensor):
            raise _NoConfig(f"{name} is not saved with the weights, and would be computed anew")
    for path, module in compact.named_modules():
        built = vars(fresh.get_submodule(path))
        for name, value in vars(module).items():
            counts = (path, name) in sizing or type(value) is float
            if counts and built.get(name) != value:
                place = f"{path}.{name}".lstrip(".")
                raise _NoConfig(f"{place} is {value}, where a config of these widths makes it {built.get(name)}")
    twin = copy.deepcopy(compact).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in twin.parameters():  # trained weights could hide a difference
            parameter.copy_(torch.randn_like(parameter) * max(1, parameter[0].numel()) ** -0.5)
        fresh.load_state_dict(twin.state_dict())
        args, kwargs = example
        expected, actual = (pytree.tree_leaves(model(*args, **kwargs)) for model in (twin, fresh))
    for left, right in zip(expected, actual, strict=True):
        if isinstance(left, Tensor) and float((left - right).abs().max()) > TOLERANCE * float(left.abs().max()):
            raise _NoConfig("a model of these widths computes something else")
