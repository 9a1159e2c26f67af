"""Tokenizers: a saved one, bytes, or byte-pair encoding (BPE) learned from the training texts.

Whatever its origin, a tokenizer is one of transformers, so that `save_pretrained` writes files which load without this
package.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

from nnicompress.data.installed import PREFIX, local_folder
from nnicompress.data.roles import require
from nnicompress.errors import ConfigError, UserError, did_you_mean

Tokenizer: TypeAlias = Any
"""A `transformers.PreTrainedTokenizerBase`; importing that class takes seconds, and only text data needs it."""

PAD, CLS, SEP, MASK = "[PAD]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PAD, CLS, SEP, MASK)
"""Numbers 0 to 3 of the tokenizers made here; `[SEP]` also ends a document."""

NUM_BYTES = 256
BYTES, BPE = "bytes", "bpe"


def make_tokenizer(name: str, vocab_size: int | None, texts: Sequence[str]) -> Tokenizer:
    """The tokenizer that the setting `tokenizer` names.

    Args:
        name: `bytes`; `bpe`; a folder with a saved tokenizer; `package:NAME`, such a folder inside an installed
            package; or a name on the Hugging Face hub.
        vocab_size: how many tokens BPE learns, special ones and the 256 bytes among them; for the others, a number that
            is checked where it is given.
        texts: what BPE is learned from.

    Raises:
        ConfigError: about `data.tokenizer` or `data.vocab_size`.
    """
    if name == BPE:
        require(vocab_size is not None, "vocab_size", "the tokenizer 'bpe' needs it: how many tokens are learned?")
        assert vocab_size is not None
        return train_bpe(texts, vocab_size)
    tokenizer = byte_tokenizer() if name == BYTES else _saved(name)
    actual = len(tokenizer)
    require(
        vocab_size in (None, actual),
        "vocab_size",
        f"{vocab_size} is given, but the tokenizer {name!r} has {actual}; write vocab_size: {actual}",
    )
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """One token for each byte of UTF-8, after the special ones: 260 tokens."""
    from tokenizers.models import BPE as Model
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = [*SPECIAL_TOKENS, *sorted(ByteLevel.alphabet())]
    return _wrapped(Model(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[]))


def train_bpe(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019) with exactly `vocab_size` tokens; equal texts give equal tokenizers.

    Raises:
        ConfigError: fewer tokens than the special ones and the bytes, or more than the texts can teach.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE as Model
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    least = len(SPECIAL_TOKENS) + NUM_BYTES
    require(vocab_size > least, "vocab_size", f"{vocab_size} is too small: {least} are special tokens and bytes")
    backend = Backend(Model())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    learned = backend.get_vocab_size()
    require(
        learned == vocab_size,
        "vocab_size",
        f"{vocab_size} is more than the training texts can teach; write vocab_size: {learned}",
    )
    return _wrapped(backend.model)


def separate_words(tokenizer: Tokenizer) -> None:
    """Give each word of a text that is divided already the space before it which byte-level models are used to.

    Without, `["New", "York"]` would read as `NewYork`. Tokenizers of other kinds (WordPiece, SentencePiece) are left as
    they are: they mark words by themselves.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.pre_tokenizers import Sequence as Steps

    first: Any = tokenizer.backend_tokenizer.pre_tokenizer
    steps = cast("Iterable[Any]", first) if isinstance(first, Steps) else [first]
    for step in steps:
        if isinstance(step, ByteLevel):
            step.add_prefix_space = True
            tokenizer.add_prefix_space = True
            tokenizer.init_kwargs["add_prefix_space"] = True


def _wrapped(model: Any) -> Tokenizer:
    """A tokenizer around a byte-level model: `[CLS] text [SEP]`, or `[CLS] text [SEP] pair [SEP]`."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Backend(model)
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B {SEP}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (CLS, SEP)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token=PAD,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
        eos_token=SEP,
        model_input_names=["input_ids", "attention_mask"],
    )


def _saved(name: str) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        folder = local_folder(name)
    except UserError as error:
        raise ConfigError(str(error), key="data.tokenizer") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder or name), local_files_only=folder is not None, trust_remote_code=False
        )
    except (OSError, ValueError) as error:  # what transformers raises for a folder or a name without a tokenizer
        where = f"the folder {str(folder)!r} holds no tokenizer" if folder else f"the hub gives no tokenizer {name!r}"
        raise ConfigError(
            f"{where} ({_first_line(error)}){did_you_mean(name, (BYTES, BPE))}; give {BYTES!r}, {BPE!r}, a folder or "
            f"{PREFIX}NAME",
            key="data.tokenizer",
        ) from error
    require(tokenizer.is_fast, "tokenizer", f"{name!r} is a slow one; save it with a tokenizer.json")
    if tokenizer.pad_token is None:
        require(tokenizer.eos_token is not None, "tokenizer", f"{name!r} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
