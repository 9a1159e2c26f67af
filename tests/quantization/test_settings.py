"""Wrong settings and targets are one line each, with the nearest name or the way out."""

from __future__ import annotations

from typing import Any

import pytest

from nnicompress.errors import InputErrors
from nnicompress.quantization.quantizer import Quantizer
from tests.quantization.simple import make_evaluator, make_net


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lqs"}, "no method named 'lqs'; did you mean 'lsq'"),
        ({"observer": "histogramm"}, "no observer named 'histogramm'; did you mean 'histogram'"),
        (
            {"schedule": {"observe_from": 5, "observe_until": 5}},
            "schedule: observe_until 5 is not after observe_from 5",
        ),
        (
            {"schedule": {"observe_until": 5, "simulate_from": 9}},
            "schedule: observe_until 5 comes before simulate_from",
        ),
        ({"method": "bnn"}, "onnxruntime_x86 can't run in integers; set backend: none"),
        ({"gradient_bits": 4}, "gradient_bits belongs to dorefa, and the method is observed"),
        ({"bias_correction": True}, "needs trains: false"),
        ({"functions": ["ad"]}, "no function named 'ad'; did you mean 'add'"),
        ({"calibration_steps": 0}, "calibration_steps"),
        ({"weight_observer": "histogram"}, "weight_observer is one of min_max, mse"),
        ({"shedule": {}}, "shedule: unknown key; did you mean 'schedule'"),
        ({"method": "dorefa"}, "targets.0: dorefa's weights need a quant_dtype of 2 to 7 bits"),
        ({"method": "lsq", "observer": "mse"}, "observer belongs to method observed: lsq finds its scales without one"),
        ({"method": "lsq", "weight_observer": "mse"}, "weight_observer belongs to method observed"),
        ({"method": "lsq", "schedule": {"observe_until": 5}}, "schedule.observe_until: it belongs to method observed"),
        ({"trains": False, "schedule": {"simulate_from": 5}}, "schedule: it counts steps of a training"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputErrors, match=message):
        Quantizer([{}], make_evaluator(make_net()), **settings)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"quant_dtype": "int16"}, "targets.0.quant_dtype: no quant_dtype named 'int16'"),
        ({"granularity": "chanel"}, "no granularity named 'chanel'; did you mean 'channel'"),
        ({"granularity": {"axis": 1, "blocksize": 4}}, "unknown key; did you mean 'block_size'"),
        ({"quant_dtype": "int4"}, "unsigned activations alone; give activations uint4, and int4 to weight in target"),
        ({"target_settings": {"_input_0": {"quant_dtype": "int8"}}}, "unsigned activations alone; give activations"),
        ({"granularity": "channel"}, "runs activations in integers with one scale a tensor"),
        ({"target_names": ["weight"], "granularity": {"axis": 1, "block_size": 4}}, "no integer kernels for blocks"),
        ({"target_names": []}, "target_names is empty"),
        ({"target_names": ["_inptu_"]}, "no tensor '_inptu_'; did you mean '_input_'?"),
        ({"target_names": ["weight"], "target_settings": {"weigth": {}}}, "did you mean 'weight'"),
        ({"op_typs": ["Linear"]}, "targets.0.op_typs: unknown key; did you mean 'op_types'"),
        ({"op_names_re": ["("]}, "is not a regular expression"),
        ({"fuse_names": 5}, r"targets.0.fuse_names: 5 is no list of chains; give \[\[conv1"),
        ({"fuse_names": "conv1"}, "'conv1' is no list of chains"),
        ({"fuse_names": ["conv1", "bn1"]}, r"it is a list of chains; give \[\[conv1, bn1\]\]"),
        ({"fuse_names": [["conv1"]]}, r"\[conv1\] is no chain: it takes two modules"),
        ({"fuse_names": [[]]}, r"\[\] is no chain: it takes two modules"),
        ({"target_names": ["weight", "_output_4"]}, "_output_4: of what a module returns only the first tensor"),
        ({"target_settings": {"_output_4": {}}}, "_output_4: of what a module returns only the first tensor"),
        ({"target_settings": {"_output_x": {}}}, "no tensor '_output_x'; did you mean '_output_'"),
        ({"target_names": ["bias"]}, "target_names with bias need weight and _input_"),
        ({"target_names": ["bias", "weight"]}, "target_names with bias need weight and _input_"),
        ({"target_settings": {"bias": {"quant_dtype": "int8"}}}, "settings of bias, which has none: it is int32"),
        (
            {"target_settings": {"weight": {"observer": "percentile"}}},
            "targets.0.target_settings.weight.observer: a weight's",
        ),
    ],
)
def test_wrong_targets(target: dict[str, Any], message: str) -> None:
    with pytest.raises(InputErrors, match=message):
        Quantizer([target], make_evaluator(make_net()))


CHANNELS = {"target_settings": {"_input_": {"granularity": "channel"}}}
WEIGHT_BY_ERROR = {"target_settings": {"weight": {"observer": "mse"}}}


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ({"target_settings": {"_input_": {"granularity": {"axis": 1, "block_size": 2}}}}, {}, "not one a block"),
        (CHANNELS, {"observer": "mse"}, "ranges of single channels of activations are found by min_max and moving"),
        (CHANNELS, {"method": "lsq_plus"}, "ranges of single channels of activations are found by min_max and moving"),
        (
            {"target_settings": {"_input_": {"observer": "mse"}}},
            {"method": "lsq"},
            "observer belongs to method observed",
        ),
        (WEIGHT_BY_ERROR, {"method": "lsq"}, "observer belongs to method observed"),
        (CHANNELS, {"method": "bnn"}, "bnn takes one scale a tensor, which is fixed"),
        (
            {"target_settings": {"weight": {"granularity": "channel"}}},
            {"method": "bnn"},
            "bnn takes one scale a tensor",
        ),
    ],
)
def test_wrong_targets_of_any_backend(target: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputErrors, match=f"^targets.0[^:]*: .*{message}"):
        Quantizer([target], make_evaluator(make_net()), backend="none", **settings)
