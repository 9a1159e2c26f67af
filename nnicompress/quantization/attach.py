"""Puts fake quantizers into a model and takes them out again, leaving nothing behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.preserve import same_random_states, same_tensors, same_training_mode
from nnicompress.evaluators.training_step import device_of
from nnicompress.quantization.calls import tensors_of
from nnicompress.quantization.fake_quantizer import BiasQuantizer, FakeQuantizer
from nnicompress.quantization.fixed import BinaryActivations
from nnicompress.quantization.frames import Frames
from nnicompress.quantization.modes import Numbers
from nnicompress.quantization.modules import add_transformers, swap, swap_back
from nnicompress.quantization.parameters import QUANTIZERS
from nnicompress.quantization.result import QuantizationResult


class Attached:
    """Fake quantizers in a model, by place; `remove` takes them out."""

    def __init__(
        self,
        model: nn.Module,
        quantizers: Mapping[str, FakeQuantizer],
        numbers: Mapping[str, Numbers] | None = None,
    ) -> None:
        """Put `quantizers` in; `numbers` say which calls they are at in training, by module (`training_numbers`).

        Raises:
            JobError: the model lacks a module of a place.
            UserError: a module has an attribute of the name that is needed.
        """
        add_transformers()
        self.model, self.quantizers = model, dict(quantizers)
        self._handles: list[Any] = []
        self._changed: list[nn.Module] = []
        modules = dict(model.named_modules())
        by_module: dict[str, dict[str, FakeQuantizer]] = defaultdict(dict)
        for place, quantizer in quantizers.items():
            module, _, key = place.partition("/")
            if module not in modules:
                raise JobError(f"{place}: {type(model).__name__} has no module {module!r}")
            by_module[module][key] = quantizer
        # Attention in evaluation mode has a path of its own, which calls no module.
        self._fast_path: bool | None = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            for name, found in by_module.items():
                self._put(modules[name], name, found)
            frames = {name: {k: q for k, q in found.items() if "/" in k} for name, found in by_module.items()}
            self._handles += Frames().attach(model, frames, numbers)
        except Exception:
            self.remove()
            raise

    def _put(self, module: nn.Module, name: str, found: Mapping[str, FakeQuantizer]) -> None:
        children = swap(module, name)
        self._changed.append(module)
        for key, quantizer in found.items():
            children[key] = quantizer
            quantizer.train(module.training)
        inputs = {int(key[6:]): q for key, q in found.items() if key.startswith("input_")}
        outputs = {int(key[7:]): q for key, q in found.items() if key.startswith("output_")}
        if inputs:
            self._handles.append(module.register_forward_pre_hook(QuantizeInputs(inputs), with_kwargs=True))
        if outputs:
            self._handles.append(module.register_forward_hook(QuantizeOutputs(outputs)))

    def remove(self) -> None:
        """Take everything out; twice is harmless."""
        while self._handles:
            self._handles.pop().remove()
        while self._changed:
            swap_back(self._changed.pop())
        if self._fast_path is not None:
            torch.backends.mha.set_fastpath_enabled(self._fast_path)
            self._fast_path = None

    def prove(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        inputs: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """Run the model in training and in evaluation mode, and see that every quantizer is used in both.

        `inputs`: layers, each with the places of what it reads first; in evaluation mode it must read just that.

        Raises:
            UserError: names those that are not, or do not.
        """
        used: set[nn.Module] = set()

        def use(module: nn.Module, args: Any, output: Any) -> None:
            used.add(module)

        handles = [quantizer.register_forward_hook(use) for quantizer in self.quantizers.values()]
        try:
            for training in (True, False):
                used.clear()
                if not training:
                    handles += self._marked(inputs or {})
                with torch.no_grad(), same_training_mode(self.model), same_tensors(self.model), same_random_states():
                    self.model.train(training)
                    self.model(*args, **kwargs)
                unused = [place for place, quantizer in self.quantizers.items() if quantizer not in used]
                if unused:
                    mode = "training" if training else "evaluation"
                    more = f" (and {len(unused) - 1} more)" if len(unused) > 1 else ""
                    raise UserError(
                        f"{unused[0]}{more} is not reached in {mode} mode: the forward takes another way there; leave "
                        "it out with exclude_op_names"
                    )
        finally:
            for handle in handles:
                handle.remove()

    def _marked(self, inputs: Mapping[str, Collection[str]]) -> list[Any]:
        modules, marks, handles = dict(self.model.named_modules()), _Marks(), []
        for place in {place for places in inputs.values() for place in places}:
            handles.append(self.quantizers[place].register_forward_hook(marks.mark(place)))
        for layer, places in inputs.items():
            # What is quantized within the layer's own call comes after its hooks.
            if all("/output_" in place or place == f"{layer}/input_0" for place in places):
                hook = marks.expect(layer, places)
                handles.append(modules[layer].register_forward_pre_hook(hook, with_kwargs=True))
        return handles


class _Marks:
    """Hooks that tell what fake quantizers return from what they are given, by a thousandth of it."""

    def __init__(self) -> None:
        self.returned: dict[str, list[Tensor]] = defaultdict(list)

    def mark(self, place: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                marked = output * (1 + 2**-10)
                self.returned[place].append(marked.clone())  # what is returned may be written into
            return marked

        return hook

    def expect(self, layer: str, places: Collection[str]) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            # A call that a frame sees, so that it gives what a layer gets of a tensor that was written into.
            read = next(iter((*args, *kwargs.values()))).detach()
            with torch._C.DisableTorchFunction():
                read = read.flatten()
                sample = read[:: max(1, len(read) // 16)]
                for value in sample[sample.isfinite() & (sample != 0)]:  # zeros have no thousandth
                    returned = (x.to(read.dtype) for place in places for x in self.returned[place])
                    if not any(bool((x == value).any()) for x in returned):
                        raise UserError(
                            f"{layer} does not read the values that are quantized at {', '.join(sorted(places))}: "
                            "something passes them by; leave it out with exclude_op_names"
                        )

        return hook


class QuantizeInputs:
    """A forward pre-hook: quantizes tensors among a module's arguments, by number."""

    def __init__(self, quantizers: Mapping[int, Callable[[Tensor], Tensor]]) -> None:
        """`quantizers` by the number of the argument, positional ones first."""
        self.quantizers = quantizers

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments, quantized."""
        changed, names = list(args), list(kwargs)
        for index, quantizer in self.quantizers.items():
            if index < len(args):
                changed[index] = quantizer(args[index])
            else:
                name = names[index - len(args)]
                kwargs = {**kwargs, name: quantizer(kwargs[name])}
        return tuple(changed), kwargs


class QuantizeOutputs:
    """A forward hook: quantizes tensors that a module returns, by number."""

    def __init__(self, quantizers: Mapping[int, Callable[[Tensor], Tensor]]) -> None:
        """`quantizers` by position among the returned tensors."""
        self.quantizers = quantizers

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The output, quantized."""
        places = {id(tensor): index for index, tensor in enumerate(tensors_of(output))}

        def quantize(tensor: Tensor) -> Tensor:
            quantizer = self.quantizers.get(places[id(tensor)])
            return tensor if quantizer is None else quantizer(tensor)

        return tree_map_only(Tensor, quantize, output)


def stored_quantizers(model: nn.Module, result: QuantizationResult) -> dict[str, FakeQuantizer]:
    """The fake quantizers of a result, which simulate and observe nothing, by place."""
    modules = dict(model.named_modules())
    found: dict[str, FakeQuantizer] = {}
    for place, tensor in result.tensors.items():
        shape = tuple(tensor.scale.shape)
        if tensor.scheme.bits == 32:
            quantizer: FakeQuantizer = BiasQuantizer(shape)
        else:
            quantizer = FakeQuantizer(tensor.scheme, scale_shape=shape)
        quantizer.set_parameters(tensor.scale, tensor.zero_point)
        quantizer.simulating = True
        if place in result.folded:
            quantizer.batch_norm = (modules[result.folded[place]],)
        found[place] = quantizer
    for place in result.signs:
        found[place] = BinaryActivations()
        found[place].simulating = True
    return {place: quantizer.to(device_of(model)) for place, quantizer in found.items()}


def without_quantizers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a `state_dict` that are the model's own: what a plain model loads while it trains quantized."""
    return {name: tensor for name, tensor in state.items() if QUANTIZERS not in name.split(".")}


@contextmanager
def simulated(model: nn.Module, result: QuantizationResult) -> Iterator[Attached]:
    """Within the context `model` computes as quantized by `result`, in floats: what `freeze` makes integers of."""
    attached = Attached(model, stored_quantizers(model, result))
    try:
        yield attached
    finally:
        attached.remove()
