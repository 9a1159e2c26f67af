"""The mask of an attention in parts: worked on at its own size, before it meets the scores of all heads."""

from __future__ import annotations

import math
from typing import Any

from nnicompress.quantization.program import Program, Step

_FILL = "aten.masked_fill.Scalar"


def simplify_mask(program: Program, softmax: Step) -> None:
    """Rewrite what `attention.softmax_scores` computes around its softmax, with equal results.

    There the scores [batch, heads, queries, keys] are filled with -inf, searched for rows of nothing else, and filled
    again before and behind the softmax. Which rows those are, the mask alone says, and it has no heads: a sum with it
    and a product with 0 or 1 are left at the size of the scores.
    """
    inner = program.made_by(softmax.args[0], _FILL)
    empty = None if inner is None else program.made_by(inner.args[1], "aten.all.dim")
    compared = None if empty is None else program.made_by(empty.args[0], "aten.eq.Scalar")
    if inner is None or empty is None or compared is None or compared.args[1] != -math.inf:
        return
    outer = next((s for s in program.steps.values() if s.operator == _FILL and s.args[0] == _value(softmax)), None)
    masked = program.made_by(inner.args[0], _FILL)
    pattern = masked is not None and masked.args[2] == -math.inf and compared.args[0] == _value(masked)
    if outer is None or masked is None or not pattern or outer.args[1] != _value(empty):
        return
    if (inner.args[2], outer.args[2]) != (0.0, 0.0):
        return
    hidden = masked.args[1]

    def new(suffix: str, operator: str, args: list[Any], kwargs: dict[str, Any] | None = None) -> Step:
        step = Step(f"{softmax.name}_{suffix}", operator, args, kwargs or {}, softmax.module)
        program.insert_before(masked, step)
        return step

    rows = new("empty", "aten.all.dim", [hidden, *empty.args[1:]])
    shown = new("shown", "aten.logical_not.default", [_value(rows)])
    left_out = new("left_out", "aten.logical_and.default", [hidden, _value(shown)])
    zeros = new("zeros", "aten.zeros_like.default", [hidden], {"dtype": {"dtype": "float32"}})
    bias = new("mask", _FILL, [_value(zeros), _value(left_out), -math.inf])
    kept = new("kept", "aten.to.dtype", [_value(shown), {"dtype": "float32"}])
    inner.operator, inner.args = "aten.add.Tensor", [masked.args[0], _value(bias)]
    outer.operator, outer.args = "aten.mul.Tensor", [_value(softmax), _value(kept)]


def _value(step: Step) -> dict[str, str]:
    return {"value": step.name}
