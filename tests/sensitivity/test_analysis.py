"""Analyses of networks whose numbers can be worked out by hand, and the model they leave behind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import UserError
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.events import Event, Measured
from nnicompress.graph import capture, find_channel_groups
from nnicompress.pruning.settings import ImportanceSettings
from nnicompress.sensitivity.analysis import Values, measure
from nnicompress.sensitivity.probe import Subject
from nnicompress.sensitivity.pruned import PrunedProbe
from nnicompress.sensitivity.result import Sensitivity, make, read
from nnicompress.shrink import shrink
from tests import zoo


class Chain(nn.Module):
    """Sums what its layers let through: each output channel i of `first` adds i + 1, `second` passes all of it on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(1, 4, False), nn.Linear(4, 2, False), nn.Linear(2, 1, False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
            self.second.weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
            self.last.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)))


def evaluator_of(inputs: Tensor) -> TorchEvaluator:
    """Its metric is the sum of the outputs."""

    def total(model: nn.Module) -> float:
        with torch.no_grad():
            return float(model(inputs).sum())

    return TorchEvaluator(evaluating_func=total, dummy_input=inputs)


def analysed(mode: str, ratios: tuple[float, ...] = (0.5,)) -> tuple[Values, PrunedProbe]:
    model, values = Chain(), {}
    evaluator = evaluator_of(torch.ones(1, 1))
    with evaluator.bound(model):
        probe = PrunedProbe.of(evaluator, ImportanceSettings(name="l1"), ratios)
        measure(evaluator, probe, mode, values, measured=lambda point: None)
    return values, probe


def test_one_layer_at_a_time_by_hand() -> None:
    values, probe = analysed("one")
    assert [subject.name for subject in probe.subjects] == ["first", "second"]
    # Whole: (1 + 2) * (1 + 2 + 3 + 4). `first` loses 1 and 2 of its channels, `second` the channel that counts once.
    assert values == {("", ""): 30.0, ("first", "0.5"): 3.0 * 7, ("second", "0.5"): 2.0 * 10}


def test_all_layers_but_one_by_hand() -> None:
    values, _ = analysed("all_but_one")
    assert values == {("", ""): 30.0, ("", "0.5"): 2.0 * 7, ("first", "0.5"): 2.0 * 10, ("second", "0.5"): 3.0 * 7}


@pytest.mark.parametrize(
    ("mode", "metric_mode", "drops"),
    [
        # 30 - 21 and 30 - 20; 20 - 14 and 21 - 14: `second` is the more sensitive either way.
        ("one", "max", {"second": 10.0, "first": 9.0}),
        ("all_but_one", "max", {"second": 7.0, "first": 6.0}),
        ("one", "min", {"first": -9.0, "second": -10.0}),
        ("all_but_one", "min", {"first": -6.0, "second": -7.0}),
    ],
)
def test_layers_are_sorted_by_what_they_cost(mode: str, metric_mode: str, drops: dict[str, float]) -> None:
    found = result(analysed(mode)[0], mode=mode, metric_mode=metric_mode)
    assert [(layer.name, layer.drops["0.5"]) for layer in found.layers] == list(drops.items())
    assert found.whole == ({"0.5": 14.0} if mode == "all_but_one" else {})


def result(values: Values, **others: Any) -> Sensitivity:
    known = {"params_share": 0.25, "macs_share": None}
    subjects = {name: {"modules": (name,), **known} for name in ("first", "second")}
    settings = {"mode": "one", "metric_mode": "max", "levels": ("0.5",), "max_drop": 9.5, **others}
    return make(subjects=subjects, values=values, recipe="chain", probe="pruned", metric="sum", **settings)


def test_what_is_removed_comes_nearest_to_the_ratio() -> None:
    _, probe = analysed("one", (0.25, 0.5, 0.9))
    assert [probe.removed("first", level).tolist() for level in probe.levels] == [[0], [0, 1], [0, 1, 2]]
    assert [probe.removed("second", level).tolist() for level in probe.levels] == [[], [0], [0]]


def test_a_level_that_removes_nothing_is_not_measured() -> None:
    calls = []
    evaluator = TorchEvaluator(
        evaluating_func=lambda model: float(len(calls.append(1) or calls)), dummy_input=torch.ones(1, 1)
    )
    values: Values = {}
    with evaluator.bound(Chain()):
        probe = PrunedProbe.of(evaluator, ImportanceSettings(name="l1"), (0.25,))
        measure(evaluator, probe, "one", values, measured=lambda point: None)
    assert values == {("", ""): 1.0, ("first", "0.25"): 2.0, ("second", "0.25"): 1.0}


@pytest.mark.parametrize("network", ["resnet_basic", "shufflenet_v2", "tied_weights", "unet_group_norm"])
def test_what_is_measured_is_the_compact_model_and_the_model_ends_as_it_was(network: str) -> None:
    model, (args, kwargs) = zoo.ZOO[network]()
    model.eval().double()
    args = tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = find_channel_groups(capture(model, args, kwargs))
    scores = {width.name: np.arange(width.size, dtype=np.float64) for width in groups.widths}
    probe = PrunedProbe(model, groups.widths, scores, (0.5,))
    for chosen in ([probe.subjects[0]], list(probe.subjects)):
        with probe.applied(chosen, "0.5") as changed, torch.no_grad():
            assert changed
            compact = shrink(model, groups, {subject.name: probe.removed(subject.name, "0.5") for subject in chosen})
            torch.testing.assert_close(compact(*args, **kwargs), model(*args, **kwargs), rtol=1e-9, atol=1e-9)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Halves:
    """A probe that needs no network: a subject costs its length, doubled at the second level."""

    subjects = tuple(Subject(name, (name,), ()) for name in ("a", "bb", "ccc"))
    levels = ("int8", "int4")

    def __init__(self) -> None:
        self.now = 0.0
        self.applications = 0

    @contextmanager
    def applied(self, subjects: list[Subject], level: str) -> Iterator[bool]:
        self.applications += 1
        self.now = sum(len(subject.name) for subject in subjects) * (1.0 + self.levels.index(level))
        yield True
        self.now = 0.0


def measured_by(probe: Halves, values: Values, stop_after: int | None = None) -> list[Event]:
    heard: list[Event] = []
    stored = 0

    def store(point: object) -> None:
        nonlocal stored
        stored += 1
        if stored == stop_after:
            raise KeyboardInterrupt

    evaluator = TorchEvaluator(evaluating_func=lambda model: 10 - probe.now, dummy_input=torch.ones(1))
    with evaluator.bound(nn.Linear(1, 1)):
        measure(evaluator, probe, "all_but_one", values, measured=store, listener=heard.append)
    return heard


def test_an_analysis_goes_on_where_it_was_cut_off() -> None:
    whole: Values = {}
    probe = Halves()
    heard = measured_by(probe, whole)
    assert len(whole) == 1 + 2 + 2 * 3 and probe.applications == 8
    assert heard[-1] == Measured(9, 9, "ccc at int4") and heard[0] == Measured(1, 9, "the model as it is")
    again: Values = {}
    with pytest.raises(KeyboardInterrupt):
        measured_by(Halves(), again, stop_after=4)
    assert len(again) == 4
    rest = Halves()
    measured_by(rest, again)
    assert again == whole and rest.applications == 8 - 3  # the model as it is was one of the four


def test_the_file_gives_back_the_analysis(tmp_path: Path) -> None:
    found = result(analysed("one")[0])
    assert found.exclusions() == ["second"] and found.exclusions(8.9) == ["second", "first"]
    file = tmp_path / "sensitivity.yaml"
    file.write_text(found.as_yaml())
    assert read(file) == read(tmp_path) == found
    assert "exclude_op_names:\n- second\n" in file.read_text()


def test_a_metric_that_is_no_number_comes_first(tmp_path: Path) -> None:
    values = {**analysed("one")[0], ("first", "0.5"): math.nan}
    found = result(values, max_drop=1e9)
    assert [layer.name for layer in found.layers] == ["first", "second"] and found.exclusions() == ["first"]
    (tmp_path / "sensitivity.yaml").write_text(found.as_yaml())
    assert read(tmp_path).exclusions() == ["first"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no file"),
        ("a: [", "is not YAML"),
        ("- 1", "is no result of 'nnicompress sensitivity': it has no exclude_op_names"),
        ("exclude_op_names: []\nrecipe: x", "is no result of 'nnicompress sensitivity': probe: Field required"),
    ],
)
def test_another_file_is_refused_in_a_line(tmp_path: Path, content: str | None, reason: str) -> None:
    file = tmp_path / "found.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=reason) as caught:
        read(file)
    assert "\n" not in str(caught.value)
