"""What an analysis found, as data, and `sensitivity.yaml`, from which recipes take what to leave alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from nnicompress.errors import UserError
from nnicompress.report.record import Record

FILE = "sensitivity.yaml"
PAGE = "sensitivity.html"


class LayerSensitivity(Record):
    """One layer, or several that share a width. Shares are of the whole model's."""

    name: str
    modules: tuple[str, ...]
    params_share: float
    macs_share: float | None
    """null: multiply-accumulates could not be counted."""
    values: dict[str, float]
    """Level -> the metric, with this layer compressed (or with all others)."""
    drops: dict[str, float]
    """Level -> what compressing this layer costs: how much worse the metric is for it. Negative where it is better."""

    @property
    def mean_drop(self) -> float:
        """The mean over the levels, by which layers are sorted; infinite where a metric is no number."""
        mean = sum(self.drops.values()) / len(self.drops)
        return mean if not math.isnan(mean) else math.inf


class Sensitivity(Record):
    """A whole analysis; `layers` from the most sensitive to the least."""

    recipe: str
    probe: str
    """What was done to a layer: `pruned` or `quantized`."""
    mode: Literal["one", "all_but_one"]
    metric: str
    metric_mode: Literal["max", "min"]
    levels: tuple[str, ...]
    baseline: float
    """The metric of the model as it is."""
    whole: dict[str, float] = {}
    """With `all_but_one`: level -> the metric with all layers compressed."""
    max_drop: float
    layers: tuple[LayerSensitivity, ...]

    def exclusions(self, max_drop: float | None = None) -> list[str]:
        """The modules of the layers that cost more than `max_drop` (null: the analysis's own), in their order."""
        bound = self.max_drop if max_drop is None else max_drop
        names = [name for layer in self.layers if layer.mean_drop > bound for name in layer.modules]
        return list(dict.fromkeys(names))

    def curves(self) -> dict[str, dict[str, float]]:
        """Layer -> ratio -> drop, as the allocation `sensitivity` takes them; up to where a metric is no number.

        Raises:
            UserError: the levels are no ratios.
        """
        if self.probe != "pruned":
            raise UserError(f"the layers were {self.probe}, and an allocation takes drops of layers that were pruned")
        found: dict[str, dict[str, float]] = {}
        for layer in self.layers:
            finite = itertools.takewhile(lambda item: math.isfinite(item[1]), layer.drops.items())
            found[layer.name] = dict(finite)
        return found

    def as_yaml(self) -> str:
        """The file: `exclude_op_names` as a target takes them, then all of the analysis."""
        did = "each layer alone" if self.mode == "one" else "all layers but one"
        head = (
            f"# How sensitive {self.recipe} is: {did} {self.probe}, {self.metric} on the validation data.\n"
            f"# exclude_op_names: layers that cost more than {self.max_drop:g} on average. In a recipe:\n"
            f"#   exclude_op_names: ${{nnicompress.sensitive:FOLDER/{FILE}}}\n"
        )
        content = {"exclude_op_names": self.exclusions(), **self.model_dump()}
        return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def make(
    *, subjects: Mapping[str, Any], values: Mapping[tuple[str, str], float], mode: str, metric_mode: str, **others: Any
) -> Sensitivity:
    """Put a result together.

    `subjects` maps a name to the fields of LayerSensitivity that are known before anything is measured; `values` has
    the metric by (subject, level), under `("", "")` the model as it is and under `("", level)` all subjects compressed.
    """
    baseline = values["", ""]
    sign = 1 if metric_mode == "max" else -1
    levels = others["levels"]
    layers = []
    for name, known in subjects.items():
        own = {level: values[name, level] for level in levels}
        drops = {
            level: sign * (baseline - value if mode == "one" else value - values["", level])
            for level, value in own.items()
        }
        layers.append(LayerSensitivity(name=name, values=own, drops=drops, **known))
    layers.sort(key=lambda layer: -layer.mean_drop)  # stable: equal ones stay in the model's order
    whole = {level: values["", level] for level in levels} if mode == "all_but_one" else {}
    return Sensitivity.model_validate(
        {"mode": mode, "metric_mode": metric_mode, "baseline": baseline, "whole": whole, "layers": layers, **others}
    )


def read(path: Path) -> Sensitivity:
    """The analysis in a `sensitivity.yaml`, or in the run's folder that holds one.

    Raises:
        UserError: there is no such file, or it is something else.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"no file {str(path)!r}; 'nnicompress sensitivity recipe=NAME' writes one into its run's folder"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "exclude_op_names" not in content:
            raise UserError(f"{path} is no result of 'nnicompress sensitivity': it has no exclude_op_names")
        return Sensitivity.model_validate({k: v for k, v in content.items() if k != "exclude_op_names"})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {str(error).partition(chr(10))[0]}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is no result of 'nnicompress sensitivity': {key}: {first['msg']}") from error
