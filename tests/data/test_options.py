"""The data options of text and tables, composed as in a recipe and built."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from nnicompress.config.blueprint import draw
from nnicompress.config.compose import compose_with_origin
from nnicompress.config.resolve import resolve
from nnicompress.data.roles import Data
from nnicompress.errors import ConfigError
from nnicompress.factory import build_data

RECIPE = """
defaults:
  - override /model: null
  - override /data: {option}
  - override /scheduler: null
model: {{_target_: torch.nn.Linear, in_features: 2, out_features: 2}}
evaluator: {{metric: {{num_classes: 2}}}}
stages: {{train: {{max_epochs: 1}}}}
"""

SETTINGS = {
    "text_classification": ["data.source.train=reviews.csv", "data.tokenizer=bytes", "data.num_classes=2"],
    "token_classification": ["data.source.train=words.csv", "data.tokenizer=bytes", "data.num_classes=2"],
    "causal_lm": ["data.source.train=corpus.txt", "data.tokenizer=bytes", "data.vocab_size=260"],
    "masked_lm": ["data.source.train=corpus.txt", "data.tokenizer=bpe", "data.vocab_size=264"],
    "pydoc_topics": [],
    "image_table": ["data.source.train=images.csv", "data.num_classes=2", "data.image_size=8"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The current directory, with a small file for each option."""
    monkeypatch.chdir(tmp_path)
    numbers = range(20)
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in numbers))
    (tmp_path / "words.csv").write_text("tokens,tags\n" + "".join(f"word {n},A B\n" for n in numbers))
    (tmp_path / "corpus.txt").write_text("".join(f"line {n} and some more words\n" for n in numbers))
    (tmp_path / "images.csv").write_text("image,label\n" + "".join(f"x.png,{n % 2}\n" for n in numbers))
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    return tmp_path


def data_of(option: str, *overrides: str) -> Data:
    Path("mine.yaml").write_text(RECIPE.format(option=option))
    composed = compose_with_origin(["recipe=mine.yaml", *overrides])
    blueprint = draw(resolve(composed.config))
    assert not blueprint.errors
    return build_data(blueprint)


@pytest.mark.parametrize("option", SETTINGS)
def test_an_option_with_what_it_requires_gives_batches(option):
    data = data_of(option, *SETTINGS[option])
    assert isinstance(data, Data) and len(data.fingerprint()) == 64
    for loader in (data.train_loader(0), data.validation_loader(), data.test_loader()):
        inputs, targets = next(iter(loader))
        shapes = [tensor.shape for tensor in (inputs.values() if isinstance(inputs, dict) else [inputs])]
        assert all(shape[1:] == data.input_shape and shape[0] == len(targets) for shape in shapes)


def test_another_source_takes_the_place_of_files(folder):
    """A recipe names its own source; the settings that both have go on."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([{"text": f"text {n}", "label": n % 2} for n in range(40)]).save_to_disk("saved")
    Path("mine.yaml").write_text(
        RECIPE.format(option="text_classification")
        + "data: {source: {_target_: nnicompress.data.hub.HubDataset, name: saved, train: train, test_fraction: 0.5},"
        " tokenizer: bytes, num_classes: 2}\n"
    )
    data = build_data(draw(resolve(compose_with_origin(["recipe=mine.yaml"]).config)))
    assert len(data.test_loader().dataset) == 20 and len(data.validation_loader().dataset) == 4


def test_vocabulary_and_classes_are_one_number_in_language_modelling():
    assert data_of("pydoc_topics", "data.vocab_size=300").num_classes == 300


def test_a_wrong_fact_is_told_with_its_key():
    with pytest.raises(ConfigError, match="data.vocab_size: 1024 is given, but the tokenizer 'bytes' has 260"):
        data_of("pydoc_topics", "data.tokenizer=bytes")
