"""From a dotted path to an examination: kinds, arguments, wrong input, the command and its exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnicompress import cli
from nnicompress.commands.candidates import candidates
from nnicompress.doctor.checks import Check, Missing, Wrong, perform
from nnicompress.doctor.examine import examine, kind_of, parse_input
from nnicompress.errors import TrustError, UserError
from nnicompress.trust import allow, resolve

CODE = """
import torch
from torch import nn
from nnicompress import Pruner, TorchEvaluator, trace
from nnicompress.doctor.sample import sample_evaluator
from nnicompress.pruning.importance import Importance


class Net(nn.Module):
    def __init__(self, width=8, fail=False):
        if fail:
            raise OSError("no such weights")
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, width, 3), nn.Conv2d(width, 6, 3), nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).mean((2, 3)))


class NeedsWidth(Net):
    def __init__(self, width):
        super().__init__(width)


class Ids(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(2, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, ids, scale):
        return self.head(self.inner(self.table(ids)).relu()).mean(1) * scale


class Mine(Pruner):
    pass


def make_net(width=4):
    return Net(width)


def make_evaluator(model, listener):
    return sample_evaluator(model, listener)


def make_pair(listener):
    model = Net()
    return model, sample_evaluator(model, listener)


def make_deaf():
    model = Net()
    return sample_evaluator(model), model


def make_importance(exponent=2.0):
    return Importance(lambda weight, gradient: weight.abs() ** exponent, scope="producers", name="power")


def fisher(weight, gradient):
    return (gradient * weight).square() / 2


def bad(weight, gradient):
    return weight / 0


def make_nothing():
    return 3


class Empty:
    pass


number = 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Net", "model"),
        ("make_net", "model"),
        ("Mine", "compressor"),
        ("make_evaluator", "evaluator"),
        ("make_pair", "evaluator"),
        ("make_importance", "importance"),
        ("fisher", "importance"),
    ],
)
def test_the_kind_is_what_the_object_has(name: str, kind: str) -> None:
    assert kind_of(resolve(f"mine.{name}"), {}, name) == kind


def test_shipped_objects_show_their_kind() -> None:
    with allow(["nnicompress"]):
        for path, kind in {
            "nnicompress.evaluators.torch_evaluator.TorchEvaluator": "evaluator",
            "nnicompress.pruning.pruner.Pruner": "compressor",
            "nnicompress.models.resnet.ResNet": "model",
            "nnicompress.pruning.importance.magnitude": "importance",
        }.items():
            assert kind_of(resolve(path), {}, path) == kind


@pytest.mark.parametrize(("name", "count"), [("make_evaluator", 15), ("make_pair", 15), ("fisher", 9), ("Mine", 6)])
def test_the_user_s_own_objects_are_examined(name: str, count: int) -> None:
    found = examine(f"mine.{name}", {"needs_gradient": True} if name == "fisher" else {})
    assert found.healthy and len(found.findings) == count, found


def test_an_evaluator_that_nobody_can_listen_to_can_t_be_saved() -> None:
    found = examine("mine.make_deaf")
    assert {own.name: own.status for own in found.findings if own.status != "ok"} == {"resume": "missing"}


def test_an_evaluator_gets_the_model_that_is_named() -> None:
    found = examine("mine.make_evaluator", model="mine.make_net")
    masks = next(finding for finding in found.findings if finding.name == "masks")
    # Net(4): second.weight has 6 * 4 * 9 elements, more than any other; the sample's largest is head.weight.
    assert masks.found == "half of second.weight stays zero over 3 steps"


def test_arguments_and_inputs_reach_the_model() -> None:
    found = examine("mine.Net", {"width": 12}, inputs=["1x1x8x8"])
    assert found.healthy
    assert found.notes[1] == "  first: 12 channel groups, made by first.weight"
    assert examine("mine.Ids", inputs=["2x5:int64", "2x1"]).healthy


def test_scores_drawn_at_random_are_no_function_to_check() -> None:
    with allow(["nnicompress"]):
        found = examine("nnicompress.pruning.importance.Importance", {"elements": None, "name": "random"})
    assert found.healthy and [finding.name for finding in found.findings] == ["kind"]


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("1x3x32x32", [1, 3, 32, 32], torch.float32),
        ("2x16:int64", [2, 16], torch.int64),
        ("4", [4], torch.float32),
        ("2x3:bool", [2, 3], torch.bool),
        ("2x3:bfloat16", [2, 3], torch.bfloat16),
    ],
)
def test_inputs_are_written_as_sizes(text: str, shape: list[int], dtype: torch.dtype) -> None:
    tensor = parse_input(text)
    assert list(tensor.shape) == shape and tensor.dtype == dtype


WRONG_INPUT = {
    "": "doctor needs the dotted name of a class or function, as in: nnicompress doctor my_model.Net",
    "Net": "PATH: 'Net' is not the dotted name of a class or function",
    "mine.Nett": "PATH: mine has no 'Nett'; did you mean 'Net'?",
    "nothing.Net": "PATH: nothing.Net: there is no module 'nothing', neither installed nor in the current directory",
    "mine.number": "PATH: mine.number is neither a class nor a function",
    "os.system": "PATH: os.system may not be called from a config",
    "mine.Net mine.Ids": "two paths: 'mine.Net' and 'mine.Ids'; doctor examines one object at a time",
    "mine.Net widht=3": "Net takes no 'widht'; did you mean 'width'?",
    "mine.Net width=3 width=4": "'width' is given twice",
    "mine.Net width=[3": "width=[3: the value is not YAML; put it in quotes",
    "mine.Net =3": "'=3': '' is not the name of an argument; write KEY=VALUE",
    "mine.Net fail=true": "mine.Net: raises OSError: no such weights",
    "mine.Net --inptu 1x3": "nnicompress doctor has no option '--inptu'; did you mean '--input' or '--kind'?",
    "mine.Net --input": "--input needs a value",
    "mine.Net --input 1,3,8": "--input '1,3,8' is not sizes divided by x, as in 1x3x32x32 or 2x16:int64",
    "mine.Net --input 0x3": "--input '0x3' is not sizes divided by x, as in 1x3x32x32 or 2x16:int64",
    "mine.Net --input 2x3:int": "--input '2x3:int': the type is one of float32, float64, float16, bfloat16, int64,",
    "mine.Net --kind module": "--kind is one of evaluator, importance, model, compressor, not 'module'",
    "mine.Net --kind model --kind model": "--kind is given twice: model and model",
    "mine.make_nothing --kind model": "mine.make_nothing: makes an int, not a torch.nn.Module",
    "mine.make_nothing --kind importance": "mine.make_nothing: makes an int, not an Importance",
    "mine.Net --model mine.Net": "--model is for evaluators; mine.Net is examined as a model",
    "mine.fisher --input 2x3": "--input is for models; mine.fisher is examined as an importance",
    "mine.make_evaluator --model mine.make_nothing": "--model: mine.make_nothing makes an int, not a torch.nn.Module",
    "mine.Empty": "mine.Empty is Empty: neither a torch.nn.Module, nor an Importance, nor has it compress(model)",
    "mine.make_nothing": "mine.make_nothing is int: neither a torch.nn.Module",
    "mine.Ids width=[1,2]": "Ids takes no 'width'",
    "mine.NeedsWidth": "mine.NeedsWidth: missing a required argument: 'width'",
    "mine.fisher scoope=1": "Importance takes no 'scoope'; did you mean 'scope'?",
}


@pytest.mark.parametrize("words", WRONG_INPUT, ids=lambda words: words or "nothing")
def test_wrong_input_is_one_line_and_exit_code_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", *words.split()]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {WRONG_INPUT[words]}"), printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""


def test_code_elsewhere_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(TrustError, match="add --trust mine"):
        examine("mine.Net")
    assert cli.main(["doctor", "mine.Net", "--input", "2x1x8x8", "--trust", "mine"]) == 0


def test_the_table_and_the_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["doctor", "mine.Net", "width=4", "--input=2x1x8x8"]) == 0
    text = capsys.readouterr().out
    assert "mine.Net, examined as model" in text and "what to do" not in text
    assert text.rstrip().endswith("healthy: all 7 checks passed")
    assert cli.main(["doctor", "mine.Net"]) == 1
    text = capsys.readouterr().out
    assert "missing" in text and "give --input 1x3x32x32" in text
    assert text.rstrip().endswith("1 missing, 6 skipped")
    assert cli.main(["doctor", "mine.bad"]) == 1
    assert "scores of weights of size 1 are not all finite" in capsys.readouterr().out


def test_its_help_needs_nothing_heavy() -> None:
    script = (
        "import sys; from nnicompress.cli import main; main(['doctor', '--help']); "
        "print(*[name for name in ('torch', 'hydra', 'rich', 'yaml') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.split() == [] and "usage: nnicompress doctor PATH" in done.stdout


def test_its_options_are_completed() -> None:
    assert "doctor" in candidates("nnicompress do")
    assert candidates("nnicompress doctor mine.Net --in") == ["--input"]
    assert candidates("nnicompress doctor mine.Net --kind m") == ["model"]
    assert candidates("nnicompress doctor ") == []


def test_what_a_check_may_raise() -> None:
    def raising(error: Exception) -> Check[int]:
        def run(subject: int) -> str:
            raise error

        return Check(type(error).__name__, run, "mend it")

    fine = Check[int]("fine", lambda subject: f"{subject}", "")
    later = Check[int]("later", lambda subject: "never", "", after=("fine", "Missing"))
    errors = [Missing("not there"), Wrong("other"), NotImplementedError(), UserError("one\ntwo"), KeyError("name")]
    findings = perform([fine, *map(raising, errors), later], 7)
    assert [(finding.status, finding.found, finding.advice) for finding in findings] == [
        ("ok", "7", ""),
        ("missing", "not there", "mend it"),
        ("wrong", "other", "mend it"),
        ("missing", "not implemented", "mend it"),
        ("wrong", "one", "mend it"),
        ("wrong", "raises KeyError: 'name'", "mend it"),
        ("skipped", "waits for 'Missing'", ""),
    ]
