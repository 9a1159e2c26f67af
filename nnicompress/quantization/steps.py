"""What can be said of a frozen program's steps without running them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nnicompress.quantization.frozen import references


def needed(steps: Sequence[Sequence[Any]], results: Any) -> list[Any]:
    """The steps that the results depend on; one that writes into a tensor stays, with what it writes into."""
    wanted, kept = set(references(results, "value")), []
    for step in reversed(steps):
        if step[0] in wanted or writes(step[1]):
            wanted.update(references(step[2:4], "value"))
            kept.append(step)
    return kept[::-1]


def writes(operator: str) -> bool:
    """Whether an operator changes one of its arguments."""
    if not operator.startswith("aten."):
        return False
    _, packet, overload = operator.split(".")
    return bool(getattr(getattr(torch.ops.aten, packet), overload)._schema.is_mutable)
