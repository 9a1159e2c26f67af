"""Which modules the targets select, and how: what can't be quantized as it is asked for is refused by its key."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from nnicompress.errors import ConfigError, UserError, did_you_mean
from nnicompress.pruning.targets import select_modules
from nnicompress.quantization import calls
from nnicompress.quantization.modules import SWAPS, TRANSPOSED, channel_axis
from nnicompress.quantization.profiles import profile_of
from nnicompress.quantization.record import Recorded
from nnicompress.quantization.settings import QuantizationTargetSettings, QuantizerSettings

NOT_QUANTIZED = (nn.RNNBase, nn.RNNCellBase, nn.EmbeddingBag, nn.Bilinear)
"""Layers with weights that there are no quantized classes for."""


@dataclass(frozen=True)
class Selection:
    """What was selected."""

    targets: dict[str, tuple[str, QuantizationTargetSettings]]
    """Module -> the last target that selects it, by name, its inputs numbered."""
    excluded: frozenset[str]
    unquantized: tuple[str, ...]
    """Selected modules that stay in float, one line each."""


def select(model: nn.Module, settings: QuantizerSettings, recorded: Recorded) -> Selection:
    """Apply the selectors to `model`, whose forward was recorded.

    Raises:
        ConfigError: selectors that match nothing, a module that nothing can quantize, an input that no selected module
            has, chains that do not follow each other, or what the backend does not run in integers.
        UserError: a weight that is computed in each forward.
    """
    return _Selecting(model, settings, recorded).run()


def num_inputs(module: nn.Module) -> int:
    """How many of the module's inputs can be quantized, from the first on."""
    return 3 if isinstance(module, nn.MultiheadAttention) else 1


class _Selecting:
    def __init__(self, model: nn.Module, settings: QuantizerSettings, recorded: Recorded) -> None:
        self.model, self.settings, self.recorded = model, settings, recorded
        self.profile = profile_of(settings)
        self.modules: Mapping[str, nn.Module] = dict(model.named_modules())
        self.unquantized: list[str] = []

    def run(self) -> Selection:
        out_of_reach: set[str] = set()
        found: dict[str, tuple[str, QuantizationTargetSettings]] = {}
        inside = {f"{n}.out_proj" for n, m in self.modules.items() if isinstance(m, nn.MultiheadAttention)}
        for name, target in self.settings.targets.items():
            key = f"targets.{name}"
            selected, excluded = select_modules(self.model, target, key=key)
            out_of_reach |= excluded
            known: set[str] = set()
            for module in selected:
                if module not in inside and self._is_usable(module, target, key):
                    self._check_scheme(module, target, key)
                    arguments = list(inspect.signature(self.modules[module].forward).parameters)
                    known.update(arguments)
                    found[module] = (name, target.numbered(arguments))
            if unknown := sorted(target.arguments - known):
                near = did_you_mean(unknown[0], known) or f"; they have {', '.join(sorted(known))}"
                where = "target_names" if f"_input_{unknown[0]}" in (target.target_names or ()) else "target_settings"
                raise ConfigError(f"no selected module takes an input {unknown[0]!r}{near}", key=f"{key}.{where}")
            self._check_inputs(target, [n for n in selected if n in found and found[n][0] == name], key)
            self._check_chains(target, key)
        return Selection(found, frozenset(out_of_reach), tuple(self.unquantized))

    def _check_inputs(self, target: QuantizationTargetSettings, names: list[str], key: str) -> None:
        """Each input that is asked for is one that a selected module has."""
        counts = {type(self.modules[name]): num_inputs(self.modules[name]) for name in names}
        asked = {name: "target_settings" for name in target.target_settings} | {
            name: "target_names" for name in target.target_names or ()
        }
        for name, where in asked.items():
            wanted = name.removeprefix("_input_")
            if wanted == name or not wanted or not counts:
                continue
            indices = [_index(wanted, self.modules[module]) for module in names]
            if not any(i is not None and i < num_inputs(self.modules[n]) for i, n in zip(indices, names, strict=True)):
                have = ", ".join(f"{cls.__name__} has {n} input{'s' * (n > 1)}" for cls, n in counts.items())
                raise ConfigError(f"{name} is no input that is quantized: {have}", key=f"{key}.{where}")

    def _is_usable(self, name: str, target: QuantizationTargetSettings, key: str) -> bool:
        module = self.modules[name]
        if type(module) in SWAPS:
            why = self._no_kernel(module) or _unusual_attention(module)
            if why is None:
                return True
            if target.selects and self._no_kernel(module):
                raise ConfigError(f"{name}: {why}; exclude it, or set backend: none", key=key)
        elif isinstance(module, tuple(SWAPS)):
            inherited = any(type(module).forward is plain.forward for plain in SWAPS)
            own = "and only exact types are quantized" if inherited else "with a forward of its own"
            why = f"{type(module).__name__} is a subclass{',' if inherited else ''} {own}"
        elif not target.selects:
            if not isinstance(module, NOT_QUANTIZED):
                return False
            why = f"there is no quantized {type(module).__name__}"
        elif calls.is_leaf(module) and not list(module.parameters(recurse=False)):
            if target.target_names is not None and not target.names("weight"):
                return True
            raise ConfigError(
                f"{name} is {type(module).__name__}, which has no weight; give target_names: [_output_]", key=key
            )
        else:
            known = ", ".join(cls.__name__ for cls in SWAPS)
            raise ConfigError(f"{name} is {type(module).__name__}, and there are quantized {known}", key=key)
        self.unquantized.append(f"{name}: {why}")
        return False

    def _no_kernel(self, module: nn.Module) -> str | None:
        if self.settings.backend == "onnxruntime_x86" and isinstance(module, TRANSPOSED):
            return f"onnxruntime_x86 has no integer kernel for {type(module).__name__}"
        return None

    def _check_scheme(self, name: str, target: QuantizationTargetSettings, key: str) -> None:
        module = self.modules[name]
        if type(module) not in SWAPS or not target.names("weight"):
            return
        parameter = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        shape = _parameter(name, module, parameter).shape
        scheme = self.profile.weight_scheme(target.of_tensor("weight"), module, channel_axis(module))
        granularity_key = f"{key}.{target.key_of('weight', 'granularity')}"
        try:
            scheme.shape(shape)
        except ValueError as error:
            raise ConfigError(f"{name}.{parameter}: {error}", key=granularity_key) from error
        axis, block_size = scheme.granularity.axis, scheme.granularity.block_size
        if axis is not None and block_size is not None and shape[axis] > block_size and shape[axis] % block_size:
            raise ConfigError(
                f"{name}.{parameter}: a block of {block_size} does not divide the {shape[axis]} along axis {axis}",
                key=granularity_key,
            )
        if self.settings.backend != "onnxruntime_x86":
            return
        if not scheme.symmetric:
            raise ConfigError(
                f"onnxruntime_x86 runs {name} in integers with symmetric weights; give weight quant_scheme: symmetric "
                "in target_settings",
                key=key,
            )
        if axis not in (None, channel_axis(module)):
            raise ConfigError(
                f"onnxruntime_x86 runs {name} in integers with one scale an output channel, axis "
                f"{channel_axis(module)} of its weight, or one for all; use granularity: channel, or backend: none",
                key=granularity_key,
            )

    def _check_chains(self, target: QuantizationTargetSettings, key: str) -> None:
        makers = {call.leaf: call for call in self.recorded.calls if call.leaf is not None}
        for chain in target.fuse_names:
            for name in chain:
                if name not in self.modules:
                    raise ConfigError(f"no module named {name!r}", key=f"{key}.fuse_names")
            for before, after in zip(chain, chain[1:], strict=False):
                reader = makers.get(after)
                if reader is None or not any(v.maker is not None and v.maker.leaf == before for v in reader.inputs):
                    raise ConfigError(f"{after} does not read what {before} makes", key=f"{key}.fuse_names")


def _parameter(name: str, module: nn.Module, parameter: str) -> nn.Parameter:
    owner, _, leaf = parameter.rpartition(".")
    found = getattr(module.get_submodule(owner), leaf)
    if not isinstance(found, nn.Parameter):
        raise UserError(
            f"{name}.{parameter} is computed in each forward (by weight_norm, spectral_norm or another "
            "parametrization); make it a parameter first (torch.nn.utils.parametrize.remove_parametrizations, "
            "remove_weight_norm), or leave the layer out with exclude_op_names"
        )
    return found


def _index(wanted: str, module: nn.Module) -> int | None:
    """The number of the argument `wanted`, which is given by number or by name."""
    if wanted.isdigit():
        return int(wanted)
    arguments = list(inspect.signature(module.forward).parameters)
    return arguments.index(wanted) if wanted in arguments else None


def _unusual_attention(module: nn.Module) -> str | None:
    if not isinstance(module, nn.MultiheadAttention):
        return None
    if not module._qkv_same_embed_dim:
        return "keys or values have another width than queries"
    if module.bias_k is not None or module.add_zero_attn:
        return "bias_k and add_zero_attn are not quantized"
    return None
