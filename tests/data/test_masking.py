"""Hidden tokens: shares counted, targets compared, draws repeated."""

from __future__ import annotations

import math

import torch

from nnicompress.data.masking import MaskedTokens, hide

MASK, VOCABULARY = 4, 1000


def hidden(rows: int, length: int, fraction: float = 0.15):
    """Rows of tokens 100 ... 999, hidden by draws 0, 1, ...; tokens, hidden tokens and targets."""
    tokens = torch.randint(100, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(length, dtype=torch.bool)
    pairs = [
        hide(row, everywhere, draw, fraction=fraction, mask_token=MASK, vocab_size=VOCABULARY)
        for draw, row in enumerate(tokens)
    ]
    return tokens, torch.stack([masked for masked, _ in pairs]), torch.stack([targets for _, targets in pairs])


def within(count: int, total: int, share: float) -> bool:
    """Inside four standard deviations of a binomial distribution."""
    return abs(count - total * share) < 4 * math.sqrt(total * share * (1 - share))


def test_shares_are_those_of_the_paper():
    tokens, masked, targets = hidden(500, 100)
    chosen = targets != -100
    assert torch.equal(chosen.sum(1), torch.full((500,), 15))
    assert torch.equal(targets[chosen], tokens[chosen]) and torch.equal(masked[~chosen], tokens[~chosen])
    total = int(chosen.sum())
    became_mask = int((masked[chosen] == MASK).sum())
    stayed = int((masked[chosen] == tokens[chosen]).sum())
    assert total == 7500
    assert within(became_mask, total, 0.8) and within(stayed, total, 0.1)
    assert within(total - became_mask - stayed, total, 0.1)


def test_every_place_is_chosen_equally_often():
    _, _, targets = hidden(2000, 20)
    counts = (targets != -100).sum(0)
    assert all(within(int(count), 2000, 3 / 20) for count in counts)


def test_random_tokens_come_from_the_whole_vocabulary():
    tokens, masked, targets = hidden(2000, 100)
    others = masked[(targets != -100) & (masked != MASK) & (masked != tokens)]
    assert others.min() < 20 and others.max() > 980
    assert within(int((others < 500).sum()), len(others), 0.5)


def test_only_maskable_places_and_at_least_one():
    tokens, maskable = torch.arange(100, 110), torch.zeros(10, dtype=torch.bool)
    maskable[[3, 4]] = True
    places = set()
    for draw in range(50):
        _, targets = hide(tokens, maskable, draw, fraction=0.15, mask_token=MASK, vocab_size=VOCABULARY)
        chosen = (targets != -100).nonzero()[:, 0].tolist()
        assert len(chosen) == 1  # 15 % of 2 rounds to none
        places.update(chosen)
    assert places == {3, 4}


def dataset(fixed: bool) -> MaskedTokens:
    tokens = torch.randint(100, VOCABULARY, (8, 40), generator=torch.Generator().manual_seed(1))
    return MaskedTokens(
        {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
        torch.ones_like(tokens, dtype=torch.bool),
        fraction=0.15,
        mask_token=MASK,
        vocab_size=VOCABULARY,
        fixed=fixed,
    )


def test_a_row_and_its_draw_decide_alone():
    data = dataset(fixed=False)
    inputs, targets = data.__getitems__([(2, 77), (5, 78), (2, 79)])
    alone, target = data[(2, 77)]
    assert torch.equal(alone["input_ids"], inputs["input_ids"][0]) and torch.equal(target, targets[0])
    assert not torch.equal(targets[0], targets[2])


def test_a_foreign_sampler_draws_from_the_global_generator():
    """A distributed sampler gives bare indices: what is hidden varies, and follows torch's seed."""
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(dataset(fixed=False).__getitems__([1] * 20)[1])
    assert torch.equal(*runs) and len({tuple(row.tolist()) for row in runs[0]}) > 15


def test_fixed_rows_are_the_same_each_time_and_differ_among_each_other():
    data = dataset(fixed=True)
    first, second = data.__getitems__(list(range(8))), data.__getitems__(list(range(8)))
    assert torch.equal(first[1], second[1]) and torch.equal(first[0]["input_ids"], second[0]["input_ids"])
    assert torch.equal(data[(3, 12345)][1], first[1][3])
    assert len({tuple((row != -100).tolist()) for row in first[1]}) == 8


def test_the_data_themselves_are_never_changed():
    data = dataset(fixed=False)
    before = data.inputs["input_ids"].clone()
    data.__getitems__([(n, n) for n in range(8)])
    assert torch.equal(data.inputs["input_ids"], before)
