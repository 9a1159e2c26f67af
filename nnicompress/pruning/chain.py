"""Blocks of a model, run again one after the other: what enters one of them is kept, and no other activations.

chain = Chain.record(evaluator, "model.layers", blocks, num_batches=8)
for block in blocks:
    chain.show()            the batches go through the block as it is; hooks on its layers see them
    ...                     the block is pruned
    chain.advance()         they go through it again, and what leaves it takes the place of what entered
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.errors import ConfigError
from nnicompress.evaluators.contract import Evaluator
from nnicompress.evaluators.inputs import tensors_in
from nnicompress.evaluators.preserve import in_evaluation, same_random_states, same_training_mode
from nnicompress.pruning.blocks import KEY


class NoChainError(ConfigError):
    """A sequence of blocks that can't be run one after the other; `reason` says where it departs."""

    def __init__(self, name: str, reason: str) -> None:
        self.reason = f"{name} can't be pruned block by block: {reason}"
        super().__init__(f"{self.reason}; null scores its layers at once", key=KEY)


@dataclass(frozen=True)
class _Returned:
    """Stands in a call for a tensor that the block before returns, the `index`-th of them."""

    index: int


@dataclass(frozen=True)
class _Call:
    """What a block is called with, `_Returned` standing for what comes from the block before: these, by index."""

    args: Any
    kwargs: Any
    returned: frozenset[int]


@dataclass
class _Batch:
    """A batch on its way: the calls of the blocks still ahead, and what the block before returned."""

    device: str
    autocast: torch.dtype | None
    """The precision that the forward runs in; None: that of the tensors."""
    calls: deque[_Call] = field(default_factory=deque)
    entering: dict[int, Tensor] = field(default_factory=dict)


class Chain:
    """A sequence of blocks and the batches that stand at the entrance of one of them.

    Blocks run as in the training, with all that they were called with (masks, positions, an empty cache), in evaluation
    mode: no dropout. Only what one block returns and the next takes is kept of the activations.
    """

    def __init__(self, blocks: Sequence[nn.Module], batches: list[_Batch]) -> None:
        self._ahead, self._batches = deque(blocks), batches

    @classmethod
    def record(cls, evaluator: Evaluator, name: str, blocks: Sequence[nn.Module], num_batches: int) -> Chain:
        """The chain of `blocks`, `num_batches` batches of the evaluator's bound model at its entrance.

        Raises:
            NoChainError: they are no chain: a block is called several times or not at all in a forward, or takes what
                something else than the block before computes of its input.
        """
        recorder = _Recorder(name, len(blocks))
        handles = [handle for number, block in enumerate(blocks) for handle in recorder.watch(number, block)]
        try:
            with in_evaluation(evaluator.model):
                evaluator.iterate(num_batches)
        finally:
            for handle in handles:
                handle.remove()
        return cls(blocks, recorder.finished())

    def show(self) -> None:
        """Run the batches through the next block."""
        for batch in self._batches:
            self._run(batch)

    def advance(self) -> None:
        """Run the batches through the next block, to the entrance of the one behind it."""
        for batch in self._batches:
            returned = list(tensors_in(self._run(batch)))
            batch.calls.popleft()
            wanted = batch.calls[0].returned if batch.calls else ()
            batch.entering = {index: returned[index].detach() for index in wanted}
        self._ahead.popleft()

    def _run(self, batch: _Batch) -> Any:
        block, call = self._ahead[0], batch.calls[0]

        def fresh(value: Any) -> Any:
            # A block may write into what it is given, and a cache keeps what it sees.
            if isinstance(value, _Returned):
                return batch.entering[value.index].clone()
            return value if isinstance(value, nn.Module) else copy.deepcopy(value)

        with (
            same_training_mode(block),
            same_random_states(),
            # Without gradients a layer may take another way than in a training: a fused one, past its own modules.
            torch.enable_grad(),
            torch.autocast(batch.device, dtype=batch.autocast, enabled=batch.autocast is not None),
        ):
            block.eval()
            return block(*_mapped(fresh, call.args), **_mapped(fresh, call.kwargs))


class _Recorder:
    """Hooks on the blocks of a chain that write down each batch's way through them."""

    def __init__(self, name: str, num_blocks: int) -> None:
        self.name, self.num_blocks = name, num_blocks
        self.batches: list[_Batch] = []
        self.fault: str | None = None
        self._due = 0
        self._given: dict[int, tuple[Any, Any]] = {}
        """By id: something that a block of this batch was given (so that the id stays its own), and its copy."""
        self._returned: list[Tensor] = []
        self._end: set[Any] = set()
        """The nodes of autograd that the last block's results come from."""

    def watch(self, number: int, block: nn.Module) -> tuple[Any, Any]:
        """Put the hooks on a block."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._counts():
                self._enter(number, args, kwargs)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if self._counts():
                self._leave(number, output)

        return (
            block.register_forward_pre_hook(enter, prepend=True, with_kwargs=True),
            block.register_forward_hook(leave),
        )

    def finished(self) -> list[_Batch]:
        """The batches; a NoChainError where the blocks are no chain."""
        if self.fault is None and not self.batches:
            self.fault = "no block of it is called in a training step"
        if self.fault is None and self._due:
            self.fault = f"{self._block(self._due)} isn't called in every forward"
        if self.fault is not None:
            raise NoChainError(self.name, self.fault)
        return self.batches

    def _counts(self) -> bool:
        # Not an evaluation within the training, nor a backward pass that runs the forward again (gradient
        # checkpointing). After a fault nothing does; to raise here would be in the middle of the user's own loop.
        return self.fault is None and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1

    def _enter(self, number: int, args: Any, kwargs: Any) -> None:
        if number != self._due:
            self.fail(
                f"{self._block(number)} is called where {self._block(self._due)} is due, and each must run once in a "
                "forward, one after the other"
            )
            return
        if number == 0:
            if _come_from(tensors_in((args, kwargs)), self._end):
                self.fail(f"{self._block(0)} is given what the blocks computed before, in the same forward")
                return
            device = next((tensor.device.type for tensor in tensors_in((args, kwargs))), "cpu")
            enabled = torch.is_autocast_enabled(device)
            self.batches.append(_Batch(device, torch.get_autocast_dtype(device) if enabled else None))
        returned: set[int] = set()
        args, kwargs = (_mapped(lambda value: self._kept(value, number, returned), part) for part in (args, kwargs))
        if number and not returned and self.fault is None:
            self.fail(f"{self._block(number)} isn't given what {self._block(number - 1)} returns")
        if self.fault is None:
            self.batches[-1].calls.append(_Call(args, kwargs, frozenset(returned)))

    def _leave(self, number: int, output: Any) -> None:
        self._due = (number + 1) % self.num_blocks
        self._returned = list(tensors_in(output))
        if not self._due:
            self._end = {tensor.grad_fn for tensor in self._returned if tensor.grad_fn is not None}
            self._given, self._returned = {}, []

    def _kept(self, value: Any, number: int, returned: set[int]) -> Any:
        """What stands in the call for one thing that block `number` is given."""
        for index, tensor in enumerate(self._returned):
            if tensor is value:
                returned.add(index)
                return _Returned(index)
        if id(value) in self._given:
            return self._given[id(value)][1]
        own: Any = value
        if isinstance(value, Tensor):
            if number and value.requires_grad:
                self.fail(f"{self._block(number)} is given a tensor that is computed between the blocks")
                return None
            own = value.detach().clone()
        elif not isinstance(value, nn.Module):
            try:
                own = copy.deepcopy(value)
            except Exception as error:  # anybody's object, which may refuse to be copied in any way
                kind, reason = type(value).__name__, str(error).partition("\n")[0]
                self.fail(f"{self._block(number)} is given a {kind}, which can't be kept ({reason})")
                return None
        self._given[id(value)] = (value, own)
        return own

    def _block(self, number: int) -> str:
        return f"{self.name}.{number}" if self.name else str(number)

    def fail(self, reason: str) -> None:
        """Remember the first fault, and let go of what was kept."""
        if self.fault is None:
            self.fault = reason
        self.batches, self._given, self._returned, self._end = [], {}, [], set()


def _come_from(tensors: Iterable[Tensor], nodes: set[Any]) -> bool:
    """Whether any of `tensors` is computed from what one of the `nodes` of autograd gave."""
    ahead = [tensor.grad_fn for tensor in tensors if nodes]
    seen: set[Any] = set()
    while ahead:
        node = ahead.pop()
        if node in nodes:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
    return False


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of each leaf of nested tuples, lists and dicts; what derives from these is a leaf itself."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(function, item) for item in value))
    if type(value) in (tuple, list):
        return type(value)(_mapped(function, item) for item in value)
    if type(value) is dict:
        return {name: _mapped(function, item) for name, item in value.items()}
    return function(value)
