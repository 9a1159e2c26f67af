"""Recording a call and making it later."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.optim import SGD

import nnicompress
from nnicompress.errors import UserError
from nnicompress.trace import Traced, call, trace, unknown_argument


def test_building_makes_the_recorded_call_each_time() -> None:
    traced = trace(Fraction)(3, denominator=4)
    assert traced.build() == Fraction(3, 4)
    assert trace(nn.Linear)(2, bias=False).build(5).weight.shape == (2, 5)
    first, second = trace(nn.Linear)(2, 3).build(), trace(nn.Linear)(2, 3).build()
    assert first is not second


def test_later_arguments_come_first_and_win() -> None:
    assert trace(divmod)(3).build(10) == (3, 1)
    assert trace(int)("11", base=10).build(base=2) == 3


def test_nested_records_are_built_afresh() -> None:
    traced = trace(nn.Sequential)(trace(nn.Linear)(2, 3), trace(nn.ReLU)())
    first, second = traced.build(), traced.build()
    assert isinstance(first[0], nn.Linear) and first[0] is not second[0]
    assert trace(list)([trace(Fraction)(1, 2), {"a": 1}, (trace(int)(7),)]).build() == [Fraction(1, 2), {"a": 1}, (7,)]
    assert trace(dict)(a={"b": trace(int)(7)}).build() == {"a": {"b": 7}}


def test_iterators_serve_more_than_once() -> None:
    model = nn.Linear(2, 3)
    traced = trace(SGD)([{"params": model.parameters()}], lr=0.5)
    for _ in range(2):
        assert [id(p) for p in traced.build().param_groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_a_wrong_keyword_is_found_at_once() -> None:
    with pytest.raises(UserError, match="SGD takes no 'momentun'; did you mean 'momentum'?"):
        trace(SGD)([torch.zeros(1)], lr=0.1, momentun=0.9)
    assert unknown_argument(dict, "anything") is None
    assert unknown_argument(Counter, "anything") is None
    with pytest.raises(UserError, match="not 3"):
        trace(3)  # type: ignore[arg-type]


def test_call_turns_wrong_arguments_into_the_users_error() -> None:
    with pytest.raises(UserError, match=r"StepLR: missing a required argument: 'step_size'"):
        call(torch.optim.lr_scheduler.StepLR, SGD([torch.zeros(1)], lr=0.1))
    with pytest.raises(UserError, match="SGD: Invalid learning rate: -1"):
        call(SGD, [torch.zeros(1)], lr=-1)

    def has_a_bug(count: int) -> None:
        raise TypeError("inside")

    with pytest.raises(TypeError, match="inside"):
        call(has_a_bug, 1)


def test_records_are_equal_only_to_themselves_and_survive_pickling() -> None:
    traced = Traced(SGD, ([torch.zeros(2)],), {"lr": 0.1})
    assert traced == traced and traced != Traced(SGD, traced.args, traced.kwargs)
    assert pickle.loads(pickle.dumps(traced)).kwargs == copy.copy(traced).kwargs == {"lr": 0.1}
    assert repr(trace(SGD)([torch.zeros(2)], lr=0.1)) == "trace(SGD)(<list>, lr=0.1)"


def test_it_is_a_public_name_of_the_package() -> None:
    assert nnicompress.trace(Fraction)(1, 2).build() == Fraction(1, 2)
