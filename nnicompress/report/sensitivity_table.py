"""An analysis of sensitivity on a terminal: a row a layer, the most sensitive first."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from nnicompress.report import words
from nnicompress.sensitivity.result import LayerSensitivity, Sensitivity


def print_sensitivity(found: Sensitivity, console: Console | None = None) -> None:
    """Print the table with its headline."""
    (console or Console(highlight=False)).print(render(found))


def render(found: Sensitivity) -> RenderableType:
    """Everything that is printed."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("layer", overflow="fold", min_width=16)
    for name in ("MACs", "params", *found.levels, "mean"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for layer in found.layers:
        excluded = layer.mean_drop > found.max_drop
        table.add_row(
            Text(layer.name),
            share(layer.macs_share),
            share(layer.params_share),
            *(number(found, layer.drops[level]) for level in found.levels),
            Text(number(found, layer.mean_drop), style="bold"),
            Text("excluded" if excluded else "", style="yellow"),
        )
    return Group(Text(headline(found), style="bold"), Text(""), table, Text(f"\n{caption(found)}", style="dim"))


def headline(found: Sensitivity) -> str:
    """Which layer costs most, in a sentence."""
    first = found.layers[0]
    return (
        f"{first.name} is the most sensitive of {len(found.layers)}: {drop(found, first.mean_drop)} on average, from "
        f"{words.metric(found, found.baseline)} {found.metric}."
    )


def caption(found: Sensitivity) -> str:
    """What the numbers are."""
    share = found.probe == "pruned"
    if found.mode == "one":
        what = "this share of a layer's channels pruned" if share else "a layer alone in these integers"
        did = f"By how much the {found.metric} is worse with {what}"
    else:
        what = "this share pruned" if share else "all others in these integers"
        did = f"By how much the {found.metric} is better where this layer alone is spared, with {what}"
    unit = " in points" if words.is_share(found) else ""
    return f"{did},{unit} on the validation data. MACs and params: what the layer itself holds of the model's."


def drop(found: Sensitivity, value: float) -> str:
    """`4.2 points` for a share, three digits otherwise."""
    return number(found, value) + (" points" if words.is_share(found) else "")


def number(found: Sensitivity, value: float) -> str:
    """The same without the unit."""
    return (f"{100 * value:.1f}" if words.is_share(found) else f"{value:.3g}").replace("-", "−")


def share(value: float | None) -> str:
    """`12.3 %`."""
    return words.MISSING if value is None else f"{100 * value:.1f} %"


def modules(layer: LayerSensitivity) -> str:
    """The other layers of its width, where there are some."""
    return ", ".join(name for name in layer.modules if name != layer.name)
