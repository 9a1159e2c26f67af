"""A frozen model's program in a form that can be changed, and what can be said of its steps without running them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nnicompress.quantization.frozen import DEQUANTIZE, FrozenModel, references


@dataclass
class Step:
    """One step of a program; the fields are those of `FrozenModel`'s steps."""

    name: str
    operator: str
    args: list[Any]
    kwargs: dict[str, Any]
    module: str


@dataclass
class Program:
    """A frozen model's program in a form that can be changed; steps keep their order."""

    source: FrozenModel
    steps: dict[str, Step]
    tensors: dict[str, Tensor]
    output: Any
    uses: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, frozen: FrozenModel) -> Program:
        """A copy of the model's program."""
        steps = {s[0]: Step(s[0], s[1], list(s[2]), dict(s[3]), s[4]) for s in frozen.frozen_program["steps"]}
        program = cls(frozen, steps, dict(frozen.named_buffers()), frozen.frozen_program["output"])
        for step in steps.values():
            program.uses.update(references([step.args, step.kwargs], "value"))
        program.uses.update(references(program.output, "value"))
        return program

    def frozen(self) -> FrozenModel:
        """The model that runs the program as it is now; the output's own type is kept."""
        steps = needed([[s.name, s.operator, s.args, s.kwargs, s.module] for s in self.steps.values()], self.output)
        used = {*references([s[2:4] for s in steps], "buffer"), *references(self.output, "buffer")}
        plain = {
            **self.source.frozen_program,
            "buffers": [name for name in self.tensors if name in used],
            "steps": steps,
            "output": self.output,
        }
        return FrozenModel(plain, self.tensors, self.source.output_spec)

    def made_by(self, value: Any, *operators: str) -> Step | None:
        """The step behind an encoded value, if its operator is one of these."""
        step = self.steps.get(value["value"]) if isinstance(value, Mapping) and "value" in value else None
        return step if step is not None and step.operator in operators else None

    def tensor(self, value: Any) -> Tensor | None:
        """The buffer that an encoded value is."""
        return self.tensors[value["buffer"]] if isinstance(value, Mapping) and "buffer" in value else None

    def integers(self, value: Any) -> tuple[Step, Tensor] | None:
        """The dequantization behind an encoded weight or bias, and the integers, where they are stored."""
        step = self.made_by(value, DEQUANTIZE)
        whole = None if step is None else self.tensor(step.args[0])
        return None if step is None or whole is None else (step, whole)

    def add(self, name: str, tensor: Tensor) -> dict[str, str]:
        """A new buffer."""
        chosen, number = name, 2
        while chosen in self.tensors:
            chosen, number = f"{name}_{number}", number + 1
        self.tensors[chosen] = tensor.contiguous()
        return {"buffer": chosen}

    def insert_before(self, step: Step, *new: Step) -> None:
        """Put steps in front of `step`."""
        steps = {}
        for name, old in self.steps.items():
            if old is step:
                steps.update({s.name: s for s in new})
            steps[name] = old
        self.steps = steps

    def replace(self, step: Step, other: str) -> None:
        """Remove `step`; what read it reads the value `other`."""
        del self.steps[step.name]
        for reader in self.steps.values():
            reader.args, reader.kwargs = _renamed([reader.args, reader.kwargs], step.name, other)
        self.output = _renamed(self.output, step.name, other)


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


def _renamed(value: Any, old: str, new: str) -> Any:
    """Encoded arguments in which the value `old` is the value `new`."""
    if isinstance(value, (list, tuple)):
        return [_renamed(item, old, new) for item in value]
    if isinstance(value, Mapping):
        if value.get("value") == old:
            return {"value": new}
        return {key: _renamed(item, old, new) for key, item in value.items()}
    return value
