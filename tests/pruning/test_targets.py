"""Selecting modules and parameters by type, name and pattern."""

import pytest
from torch import nn

from nnicompress.errors import ConfigError
from nnicompress.pruning.settings import TargetSettings
from nnicompress.pruning.targets import parameter_names, select
from tests.pruning.simple import ConvNet


class WSConv(nn.Conv2d):
    """A user's convolution."""


class Shared(nn.Module):
    """One module under two names, and two modules with one weight."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a
        self.c = nn.Linear(4, 4)
        self.c.weight = self.a.weight
        self.conv = WSConv(1, 1, 1)


def target(**keys):
    return TargetSettings(sparse_ratio=0.5, **keys)


def names(model, **keys):
    return select(model, target(**keys)).module_names


def test_types_names_and_patterns():
    model = ConvNet()
    assert names(model, op_types=["Conv2d"]) == ("stem", "up", "down")
    assert names(model, op_types=["Conv2d", "Linear"], exclude_op_names=["stem"]) == ("up", "down", "head")
    assert names(model, op_names=["down", "stem"]) == ("stem", "down")
    assert names(model, op_names_re=["(up|down)$"]) == ("up", "down")
    assert names(model, op_names=["head"], op_names_re=["u"]) == ("up", "head")
    assert names(model, op_names_re=[".*"], op_types=["Linear"]) == ("head",)
    assert names(model, op_names_re=["[a-z]+$"], exclude_op_types=["Linear", "BatchNorm2d"]) == ("stem", "up", "down")
    assert names(model, op_types=["Conv2d"], exclude_op_names_re=["s"]) == ("up", "down")


def test_a_subclass_counts_as_its_ancestor():
    assert names(Shared(), op_types=["Conv2d"]) == ("conv",)
    assert names(Shared(), op_types=["WSConv"]) == ("conv",)


def test_shared_modules_and_tied_parameters_have_their_first_names():
    model = Shared()
    selection = select(model, target(op_names=["b", "c"]))
    assert selection.module_names == ("a", "c")
    assert parameter_names(model, selection, "weight") == {"a": "a.weight", "c": "a.weight"}


def test_an_excluded_container_excludes_all_that_is_in_it():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 3))
    assert names(model, op_types=["Conv2d"], exclude_op_names=["0"]) == ("1",)


def test_a_bare_module_is_selected_under_the_empty_name():
    model = nn.Linear(3, 2)
    selection = select(model, target(op_types=["Linear"]))
    assert parameter_names(model, selection, "weight") == {"": "weight"}


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"op_types": ["Conv2D"]}, "targets.x.op_types: no module of type 'Conv2D' in ConvNet; did you mean 'Conv2d'"),
        ({"op_types": ["LSTM"]}, "it has BatchNorm2d, Conv2d, ConvNet, Linear"),
        ({"op_names": ["stm"]}, "targets.x.op_names: no module named 'stm' in ConvNet; did you mean 'stem'"),
        ({"op_names_re": ["layer.*"]}, "targets.x.op_names_re: no module name of ConvNet matches 'layer.*'"),
        ({"op_types": ["Conv2d"], "exclude_op_names": ["haed"]}, "exclude_op_names: no module named 'haed'"),
        ({"op_types": ["Conv2d"], "exclude_op_types": ["Conv3d"]}, "exclude_op_types: no module of type 'Conv3d'"),
        ({"op_types": ["Linear"], "op_names": ["stem"]}, "targets.x: selects no module"),
        ({"op_names": ["down"], "target_names": ["bais"]}, "none of the 1 selected modules has a parameter 'bais'"),
        ({"op_names": ["head"], "target_names": ["bais"]}, "did you mean 'bias'"),
    ],
)
def test_a_selector_that_matches_nothing_is_an_error(keys, line):
    with pytest.raises(ConfigError) as caught:
        select(ConvNet(), target(**keys), key="targets.x")
    assert line in str(caught.value)
