"""Each shipped preset is a quantizer, and says what its paper does."""

from __future__ import annotations

from typing import Any

import yaml

from nnicompress.paths import shipped
from nnicompress.quantization.settings import METHODS, QuantizerSettings


def presets() -> dict[str, dict[str, Any]]:
    """The shipped presets of quantizers, as they are written."""
    files = shipped("conf").glob("compressor/*.yaml")
    found = {file.stem: yaml.safe_load(file.read_text()) for file in files}
    return {name: values for name, values in sorted(found.items()) if values["kind"] == "quantizer"}


def test_presets_are_settings_and_every_method_has_one() -> None:
    settings = {name: QuantizerSettings.model_validate(values) for name, values in presets().items()}
    assert set(settings) == {"qat", "ptq", "lsq", "lsq_plus", "dorefa", "bnn"}
    assert {found.method for found in settings.values()} == set(METHODS)
    assert not settings["ptq"].trains and settings["ptq"].bias_correction
    weight = settings["dorefa"].targets["all"].of_tensor("weight")
    assert (
        weight.quant_dtype == "int4" and settings["dorefa"].targets["all"].of_tensor("_input_0").quant_dtype == "uint4"
    )
