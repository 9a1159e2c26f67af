"""A plan in parts, pruned one after the other: each on what the pruned parts before it give (Sun et al. 2024).

for each sequence of blocks                     blocks.py: found, or named by the settings
    for each block                              chain.py: the batches stand at its entrance
        yield its part of the plan              the pruner scores and masks it
        the batches go on through the block     masked as it is now
yield what lies in no block                     batches run through the whole masked model
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nnicompress.errors import ConfigError
from nnicompress.evaluators.contract import Evaluator
from nnicompress.events import Listener, Note
from nnicompress.pruning.blocks import AUTO, KEY, Sequences, divide, find_sequences, named_sequences
from nnicompress.pruning.chain import Chain, NoChainError
from nnicompress.pruning.importance import Importance
from nnicompress.pruning.plan import Plan
from nnicompress.pruning.settings import ImportanceSettings

Show = Callable[[], None]
"""Shows the batches to the layers of a part."""


def parts(
    evaluator: Evaluator, plan: Plan, importance: Importance, settings: ImportanceSettings, tell: Listener
) -> Iterator[tuple[Plan, Show | None]]:
    """The parts of `plan`, each with what shows the batches to its layers; None: they run through the whole model.

    A part must be masked in the evaluator's bound model before the next is asked for. Where the importance looks at no
    inputs, or the settings name no blocks, the plan is the only part. Sequences that were found and turn out to be no
    chain are left to the last part, with a note.

    Raises:
        ConfigError: blocks that the settings name, and that aren't there, are no chain or have nothing to prune.
    """
    if importance.inputs is None or settings.blocks is None:
        yield plan, None
        return
    sequences, rest = sequences_of(evaluator, settings), plan
    if sequences:
        division = divide(evaluator.model, plan, sequences, importance.scope)
        rest = division.rest
    for name, blocks in sequences.items():
        of_blocks = division.of_blocks[name]
        if not any(part.asks for part in of_blocks):
            if settings.blocks != AUTO:
                raise ConfigError(f"no target lies in a block of {name}", key=KEY)
            continue
        try:
            chain = Chain.record(evaluator, name, blocks, settings.training_steps)
        except NoChainError as error:
            if settings.blocks != AUTO:
                raise
            tell(Note(f"{error.reason}; its layers are scored at once", warning=True))
            rest = sum(of_blocks, rest)
            continue
        tell(Note(f"{importance.name} goes through the {len(blocks)} blocks of {name}, one after the other"))
        for part in of_blocks:
            if part.asks:
                yield part, chain.show
            chain.advance()
    if rest is plan:
        tell(Note(f"{importance.name} goes through all layers at once: no sequence of blocks was found"))
    if rest.asks or rest is plan:
        yield rest, None


def sequences_of(evaluator: Evaluator, settings: ImportanceSettings) -> Sequences:
    """The sequences of blocks that the settings ask for, of the evaluator's bound model; with `auto` maybe none.

    Raises:
        ConfigError: see `named_sequences`.
    """
    if settings.blocks is None:
        return {}
    if settings.blocks == AUTO:
        return find_sequences(evaluator.model)
    return named_sequences(evaluator.model, settings.blocks)
