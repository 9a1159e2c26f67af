"""The proof that shrinking changed nothing: three independent comparisons of the compact and the masked model.

1. On real inputs of several batch sizes both give the same outputs.
2. The same holds for a twin of the masked model with random weights. Trained weights can hide a wrong index (a dead
   channel, two equal scales); random ones do not.
3. Each tensor of the compact model is, bit for bit, the masked model's tensor at the kept indices; parameters of the
   masked model are zero at the others.

Run in float64 where the model allows it, so that a difference is a fault and not rounding.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nnicompress.errors import ProofError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.graph.capture import selected
from nnicompress.graph.widths import ChannelGroups, Removal
from nnicompress.pruning.norms import RestrictedNorms, masked_norms
from nnicompress.shrink.surgery import kept_indices, removed_indices, shrink

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference allowed, relative to the largest output."""


@dataclass(frozen=True)
class Proof:
    """What was compared: the largest relative difference over real inputs and over the random twin."""

    max_relative_difference: float
    twin_relative_difference: float
    tolerance: float
    precision: str
    batch_sizes: tuple[int, ...]
    seconds: float


def prove(
    masked: nn.Module, compact: nn.Module, groups: ChannelGroups, removal: Removal, batches: Sequence[ModelInput]
) -> Proof:
    """Compare both models in eval mode on `batches` (inputs of the forward, of at least two batch sizes).

    `masked` is the original with every slot of the removed groups at zero, as `pruning.Masks` leaves it; its norms take
    their statistics over the kept channels. Raises
    ProofError that names the first module whose output differs, or the first tensor that is not the masked slice.
    """
    started = time.perf_counter()
    precision = _precision(masked, batches)
    real_masked, real_compact = _twin_of(masked, precision), _twin_of(compact, precision)
    norms = masked_norms(groups, removal)
    RestrictedNorms(real_masked, norms)
    difference = _compare(real_masked, real_compact, groups, removal, batches, precision, "on real inputs")
    twin_masked = _randomised(masked, groups, removal, precision)
    twin_compact = shrink(twin_masked, groups, removal)
    RestrictedNorms(twin_masked, norms)
    twin = _compare(twin_masked, twin_compact, groups, removal, batches[:1], precision, "with random weights")
    _compare_tensors(masked, compact, groups, removal)
    _run_in_training(masked, compact, batches[0], precision)
    return Proof(
        max_relative_difference=difference,
        twin_relative_difference=twin,
        tolerance=TOLERANCE[precision],
        precision=str(precision).removeprefix("torch."),
        batch_sizes=tuple(_batch_size(batch) for batch in batches),
        seconds=time.perf_counter() - started,
    )


def _precision(model: nn.Module, batches: Sequence[ModelInput]) -> torch.dtype:
    """float64, unless the forward has a type of its own written into it."""
    try:
        _outputs(_twin_of(model, torch.float64), batches[0], torch.float64)
    except RuntimeError as error:
        if "dtype" not in str(error) and "type" not in str(error):
            raise
        return torch.float32
    return torch.float64


def _twin_of(model: nn.Module, precision: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(precision).eval()


def _cast(batch: ModelInput, precision: torch.dtype) -> ModelInput:
    def cast(leaf: Any) -> Any:
        return leaf.to(precision) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    args, kwargs = pytree.tree_map(cast, batch)
    return args, kwargs


def _outputs(
    model: nn.Module, batch: ModelInput, precision: torch.dtype, returned: tuple[str, ...] = ()
) -> list[Tensor]:
    args, kwargs = _cast(batch, precision)
    with torch.no_grad():
        result = selected(model(*args, **kwargs), returned)
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _compare(
    masked: nn.Module,
    compact: nn.Module,
    groups: ChannelGroups,
    removal: Removal,
    batches: Sequence[ModelInput],
    precision: torch.dtype,
    where: str,
) -> float:
    worst = 0.0
    for batch in batches:
        expected = _outputs(masked, batch, precision, groups.returned)
        try:
            actual = _outputs(compact, batch, precision, groups.returned)
        except Exception as error:  # whatever the user's forward raises when a size no longer fits
            raise ProofError(f"the compact model's forward fails {where}: {error}") from error
        for left, right in zip(expected, actual, strict=True):
            difference = _relative_difference(left, right)
            if not difference <= TOLERANCE[precision]:
                name = _first_difference(masked, compact, groups, removal, batch, precision)
                raise ProofError(
                    f"the compact model is not the masked model {where}: outputs differ by {difference:.2g} "
                    f"(relative; {TOLERANCE[precision]:.0e} is allowed); first module that differs: {name}"
                )
            worst = max(worst, difference)
    return worst


def _relative_difference(expected: Tensor, actual: Tensor) -> float:
    """Largest difference over the largest expected value; infinite for other shapes or non-finite values."""
    if expected.shape != actual.shape or not bool(torch.isfinite(expected).all() & torch.isfinite(actual).all()):
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, actual) else float("inf")
    if expected.numel() == 0:
        return 0.0
    scale = float(expected.abs().max())
    return float((expected - actual).abs().max()) / scale if scale else float(actual.abs().max())


def _first_difference(
    masked: nn.Module,
    compact: nn.Module,
    groups: ChannelGroups,
    removal: Removal,
    batch: ModelInput,
    precision: torch.dtype,
) -> str:
    """The first module whose output, at the kept channels, is another one."""
    gone = groups.gone(removal)
    expected = _module_outputs(masked, batch, precision)
    actual = _module_outputs(compact, batch, precision)
    for output in groups.outputs:
        key = (output.module, output.call)
        if key not in expected or key not in actual:
            continue
        reference = expected[key]
        if reference.dim() != len(output.dims):
            continue
        for dim, labels in enumerate(output.dims):
            if labels is not None and len(labels) == reference.shape[dim]:
                keep = ~np.where(labels >= 0, gone[labels], False)
                reference = reference.index_select(dim, torch.from_numpy(np.flatnonzero(keep)).to(reference.device))
        if not _relative_difference(reference, actual[key]) <= TOLERANCE[precision]:
            return output.module
    return "none of the leaf modules; look at the model's own forward"


def _module_outputs(model: nn.Module, batch: ModelInput, precision: torch.dtype) -> dict[tuple[str, int], Tensor]:
    found: dict[tuple[str, int], Tensor] = {}
    calls: dict[str, int] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] = calls.get(name, -1) + 1
            if isinstance(output, Tensor):
                found[name, calls[name]] = output.clone()

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(remember(name)) for name, module in leaves]
    try:
        _outputs(model, batch, precision)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _randomised(masked: nn.Module, groups: ChannelGroups, removal: Removal, precision: torch.dtype) -> nn.Module:
    """A copy with random weights and running statistics of ordinary size, masked in the same slots."""
    twin = _twin_of(masked, precision)
    generator = torch.Generator().manual_seed(0)
    removed = removed_indices(groups, removal)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=precision).to(tensor.device)

    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if parameter.is_floating_point():
                fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
                # Scales and biases lie around one half, so that no channel is dead behind a ReLU.
                parameter.copy_(
                    noise(parameter) * (2 / fan_in) ** 0.5 if parameter.dim() > 1 else 0.5 + 0.2 * noise(parameter)
                )
            for dim, indices in removed.get(name, {}).items():
                parameter.index_fill_(dim, torch.from_numpy(indices).to(parameter.device), 0)
        for module in twin.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                module.running_mean.copy_(0.1 * noise(module.running_mean))
                assert module.running_var is not None
                module.running_var.copy_(1 + noise(module.running_var).abs())
    return twin


def _compare_tensors(masked: nn.Module, compact: nn.Module, groups: ChannelGroups, removal: Removal) -> None:
    """Bit for bit at the kept indices, and parameters at zero at the removed ones."""
    parameters = dict(masked.named_parameters())
    for name, gone in removed_indices(groups, removal).items():
        for dim, indices in gone.items() if name in parameters else ():
            parameter = parameters[name]
            if parameter.detach().index_select(dim, torch.from_numpy(indices).to(parameter.device)).any():
                raise ProofError(f"{name} of the masked model is not zero at the removed indices")
    originals = dict([*masked.named_parameters(), *masked.named_buffers()])
    kept = kept_indices(groups, removal, {name: tensor.shape for name, tensor in originals.items()})
    for name, tensor in (*compact.named_parameters(), *compact.named_buffers()):
        expected = originals[name].detach()
        for dim, indices in kept.get(name, {}).items():
            expected = expected.index_select(dim, torch.from_numpy(indices).to(expected.device))
        if not torch.equal(expected, tensor.detach()):
            raise ProofError(f"{name} of the compact model is not the masked model's at the kept indices")


def _run_in_training(masked: nn.Module, compact: nn.Module, batch: ModelInput, precision: torch.dtype) -> None:
    """A branch that only training takes (an auxiliary head) is in no capture: it must fit the compact model too."""

    def fault(model: nn.Module) -> str | None:
        twin = _twin_of(model, precision).train()
        args, kwargs = _cast(batch, precision)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                twin(*args, **kwargs)
        except Exception as error:  # whatever the user's forward raises
            return str(error)
        return None

    # A forward that can't train on such a batch in the first place (batch norm on one value) says nothing.
    if fault(masked) is None and (reason := fault(compact)) is not None:
        raise ProofError(
            f"the compact model's forward fails in training mode, in a branch that evaluation does not take: {reason}"
        )


def _batch_size(batch: ModelInput) -> int:
    tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    return int(tensors[0].shape[0]) if tensors else 0
