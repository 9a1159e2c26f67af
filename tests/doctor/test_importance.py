"""Shipped importances pass every check; for each check there is one that fails exactly that one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nnicompress.doctor.checks import Finding, perform
from nnicompress.doctor.importance import IMPORTANCE_CHECKS, ImportanceSubject
from nnicompress.pruning.importance import IMPORTANCES, Importance, importance_of, magnitude, squared_taylor
from nnicompress.pruning.settings import ImportanceSettings


def failing(importance: Importance) -> dict[str, Finding]:
    findings = perform(IMPORTANCE_CHECKS, ImportanceSubject(importance))
    return {finding.name: finding for finding in findings if finding.status in ("missing", "wrong")}


SQUARE_OF_SUM = importance_of(ImportanceSettings(name="taylor", aggregation="square_of_sum"))


@pytest.mark.parametrize(
    "importance",
    [*(own for own in IMPORTANCES.values() if own.elements is not None), SQUARE_OF_SUM],
    ids=lambda own: f"{own.name} {own.scope}",
)
def test_shipped_importances_pass_every_check(importance: Importance) -> None:
    findings = perform(IMPORTANCE_CHECKS, ImportanceSubject(importance))
    assert [finding.status for finding in findings] == ["ok"] * 9, findings


def one_a_row(weight: Tensor, gradient: Tensor) -> Tensor:
    return weight.abs().reshape(len(weight), -1).sum(1)


def counts(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight.abs() * 1000).long()


def normalized(weight: Tensor, gradient: Tensor) -> Tensor:
    """NaN for a weight of zeros."""
    return weight.abs() / weight.norm()


def relative(weight: Tensor, gradient: Tensor) -> Tensor:
    """Infinite, or NaN, for a gradient of zeros."""
    return weight.abs() * gradient.abs() / gradient.norm()


def in_place(weight: Tensor, gradient: Tensor) -> Tensor:
    """Writes the model's weights; what it returns is right."""
    return weight.abs_().clone()


def in_place_gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient.mul_(weight).square()


def drawn(weight: Tensor, gradient: Tensor) -> Tensor:
    return weight.abs() * (1 + 1e-6 * torch.rand_like(weight))


class Counting:
    """Remembers its calls: the second time the scores are larger."""

    calls = 0

    def __call__(self, weight: Tensor, gradient: Tensor) -> Tensor:
        self.calls += 1
        return weight.abs() * (1 + self.calls)


def secretly_taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Scores by the gradient without saying so; with the zero that it is given it falls back on the weight."""
    return weight.abs() + (gradient * weight).square()


def signed(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient * weight


def inverse(weight: Tensor, gradient: Tensor) -> Tensor:
    return 1 / (1 + weight.abs())


def constant(weight: Tensor, gradient: Tensor) -> Tensor:
    return torch.ones_like(weight)


def broken(weight: Tensor, gradient: Tensor) -> Tensor:
    raise RuntimeError("mat1 and mat2")


@pytest.mark.parametrize(
    ("importance", "check", "told"),
    [
        (
            Importance(magnitude, scope="all"),
            "kind",
            "scope is one of producers, consumers, group, scales, norms, not 'all'",
        ),  # type: ignore[arg-type]
        (Importance(magnitude, needs_gradient="no"), "kind", "needs_gradient is True or False"),  # type: ignore[arg-type]
        (Importance(one_a_row), "shape", "a weight of shape [6, 5] gets scores of shape [6]"),
        (Importance(counts), "shape", "scores are torch.int64"),
        (Importance(broken), "shape", "raises RuntimeError: mat1 and mat2"),
        (Importance(normalized), "finite", "scores of weights of size 0 are not all finite"),
        (Importance(magnitude, torch.log), "finite", "of_group is not finite for weights of size 0"),
        (Importance(relative, needs_gradient=True), "zero gradients", "gradients of zero are not finite"),
        (Importance(in_place), "pure", "the function changes the weight"),
        (Importance(in_place_gradient, needs_gradient=True), "pure", "the function changes the gradient"),
        (Importance(drawn), "deterministic", "draws random numbers"),
        (Importance(Counting()), "deterministic", "other scores the second time"),
        (Importance(secretly_taylor), "gradients", "needs_gradient is False, and the scores depend on the gradient"),
        (Importance(magnitude, needs_gradient=True), "gradients", "batches are run for nothing"),
        (Importance(signed, needs_gradient=True), "scale", "scores of groups are negative"),
        (Importance(inverse), "scale", "a channel of zeros scores higher"),
        (Importance(squared_taylor, lambda total: total.sum(), True), "shape", "of_group gives shape []"),
        (Importance(constant, scope="producers"), "real model", "all 8 channels of stem get the same score"),
    ],
)
def test_each_fault_fails_exactly_its_check(importance: Any, check: str, told: str) -> None:
    found = failing(importance)
    assert list(found) == [check], found
    assert told in found[check].found
    assert found[check].status == "wrong" and found[check].advice


def test_scores_that_fall_with_the_weight_are_wrong() -> None:
    def falling(weight: Tensor, gradient: Tensor) -> Tensor:
        return torch.where(weight == 0, 0.0, 1 / (1e-3 + weight.abs()))

    assert "ten times larger weights" in failing(Importance(falling))["scale"].found
