"""`nnicompress sensitivity`: its folder, what it writes, what recipes take from it, and wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nnicompress.checks.recipe import check_recipe
from nnicompress.cli import main
from nnicompress.config.compose import compose
from nnicompress.config.resolve import resolve
from nnicompress.errors import UserError
from nnicompress.sensitivity.result import Sensitivity, read

RECIPE = """\
# A perceptron whose channels are pruned
defaults:
  - override /model: mlp
  - override /compressor: l1
compressor: {targets: {convs: null, layers: {op_types: [Linear], sparse_ratio: 0.5}}}
stages:
  train: {max_steps: 40}
  prune: {}
  shrink: {}
  evaluate: {repeats: 3, seconds: 0.01, memory: false, batch_sizes: [1]}
expected: {accuracy: {min: 2.0}}
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "small.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def folder_of(word: str = "") -> Path:
    (found,) = Path("runs").glob(f"small-sensitivity-*{word}")
    return found


def test_it_prints_a_table_and_writes_a_page_and_a_file(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", "small", "stages.sensitivity.ratios=[0.5,0.9]"]) == 0
    printed = capsys.readouterr().out
    folder = folder_of()
    found = read(folder)
    assert found.levels == ("0.5", "0.9") and found.metric == "accuracy" and found.recipe == "small"
    names = [layer.name for layer in found.layers]
    assert len(names) == 2 and found.layers[0].mean_drop >= found.layers[1].mean_drop
    rows = [line.split() for line in printed.splitlines() if line.split() and line.split()[0] in names]
    assert [row[0] for row in rows][-2:] == names
    first = found.layers[0]
    assert rows[-2][5:8] == [f"{100 * v:.1f}".replace("-", "−") for v in (*first.drops.values(), first.mean_drop)]
    # An MLP of 64-256-128-10: the shares of what can be pruned, biases left out.
    shares = {layer.params_share for layer in found.layers}
    total = 64 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    assert shares == {64 * 256 / total, 256 * 128 / total}
    macs = {layer.macs_share for layer in found.layers}
    assert macs == {n / (64 * 256 + 256 * 128 + 128 * 10) for n in (64 * 256, 256 * 128)}
    page = (folder / "sensitivity.html").read_text()
    assert (
        page.count("<svg") == 1
        and all(name in page for name in names)
        and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    )
    assert sorted(p.name for p in (folder / "stages").iterdir()) == ["01_train", "02_sensitivity"]


def test_layers_are_quantized_by_the_same_command(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", "small", "stages.sensitivity={kind: quantized, levels: [int8, int2]}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "accuracy is worse with a layer alone in these integers, in points" in printed
    found = read(folder_of())
    assert (found.probe, found.levels) == ("quantized", ("int8", "int2")) and len(found.layers) == 3
    mild, strong = (max(layer.drops[level] for layer in found.layers) for level in found.levels)
    assert mild < 0.01 < 0.1 < strong
    weights = {64 * 256, 256 * 128, 128 * 10}
    total = sum(weights) + 256 + 128 + 10
    assert {layer.params_share for layer in found.layers} == {weight / total for weight in weights}
    with pytest.raises(UserError, match="an allocation takes drops of layers that were pruned"):
        found.curves()


def test_an_unchanged_analysis_is_reused_and_another_one_does_not_train_again(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sensitivity", "small", "stages.sensitivity.ratios=0.5"]) == 0
    first = capsys.readouterr()
    assert main(["sensitivity", "small", "stages.sensitivity.ratios=0.5"]) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "train: reused" in again.err and "sensitivity: reused" in again.err
    assert main(["sensitivity", "small", "stages.sensitivity.mode=all_but_one", "--explain"]) == 0
    other = capsys.readouterr().err
    assert "train: reused" in other and "sensitivity: runs, because stages.sensitivity.mode was absent" in other
    found = read(folder_of())
    assert found.mode == "all_but_one" and list(found.whole) == ["0.25", "0.5", "0.75"]


def test_a_recipe_takes_its_exclusions_from_the_file(small: Path) -> None:
    assert main(["sensitivity", "small", "stages.sensitivity={ratios: 0.9, max_drop: 0}", "run_dir=found"]) == 0
    found = read(Path("found-sensitivity"))
    worst = found.layers[0]
    assert worst.mean_drop > 0
    recipe = RECIPE.replace(
        "sparse_ratio: 0.5",
        "sparse_ratio: 0.5, exclude_op_names: '${nnicompress.sensitive:found-sensitivity/sensitivity.yaml,%g}'",
    )
    bound = (worst.mean_drop + found.layers[1].mean_drop) / 2
    Path("recipes/spared.yaml").write_text(recipe % bound)
    _, report = check_recipe(["recipe=spared"])
    selected = {name for target in report.targets for name in target.modules}
    assert not selected & set(worst.modules) and set(found.layers[1].modules) <= selected
    # The manifest, the keys and the folder's name hold the names themselves, so another file is another run.
    values = resolve(compose(["recipe=spared"])).values
    assert values["compressor"]["targets"]["layers"]["exclude_op_names"] == list(worst.modules)
    content = yaml.safe_load(Path("found-sensitivity/sensitivity.yaml").read_text())
    assert content["exclude_op_names"] == found.exclusions()
    run_dir = compose(["recipe=spared"]).run_dir
    Path("found-sensitivity/sensitivity.yaml").write_text(
        found.model_copy(update={"layers": found.layers[1:]}).as_yaml()
    )
    assert compose(["recipe=spared"]).run_dir != run_dir


def test_a_recipe_takes_its_ratios_from_the_file(small: Path) -> None:
    assert main(["sensitivity", "small", "stages.sensitivity.ratios=[0.3,0.6,0.9]", "run_dir=found"]) == 0
    allocation = "allocation: {name: sensitivity, round_to: 1, drops: '${nnicompress.drops:found-sensitivity}'}"
    Path("recipes/measured.yaml").write_text(
        RECIPE.replace("compressor: {targets", f"compressor: {{{allocation}, targets")
    )
    assert main(["run", "measured", "run_dir=pruned"]) == 0
    found = read(Path("found-sensitivity"))
    report = json.loads(Path("pruned/report.json").read_text())
    removed = {layer["name"]: layer["before"] - layer["after"] for layer in report["layers"]}
    assert sum(removed.values()) == (256 + 128) // 2
    shares = [removed[layer.name] / before for layer, before in zip(found.layers, sizes(report, found), strict=True)]
    assert shares == sorted(shares) and shares[0] < shares[1], "the layer that costs more loses less"
    manifest = json.loads(Path("pruned/manifest.json").read_text())
    kept = manifest["config"]["compressor"]["allocation"]["drops"]
    assert kept == found.curves(), "the run can be repeated without the file"


def sizes(report: dict[str, Any], found: Sensitivity) -> list[int]:
    before = {layer["name"]: layer["before"] for layer in report["layers"]}
    return [before[layer.name] for layer in found.layers]


def test_it_leaves_the_recipe_s_own_run_alone(small: Path) -> None:
    assert main(["run", "small", "run_dir=mine"]) == 0
    before = sorted(str(path) for path in Path("mine").rglob("*"))
    assert main(["sensitivity", "small", "run_dir=mine", "stages.sensitivity.ratios=0.5"]) == 0
    assert sorted(str(path) for path in Path("mine").rglob("*")) == before
    assert json.loads(Path("mine-sensitivity/status.json").read_text())["state"] == "done"


def test_trained_weights_take_the_place_of_training(small: Path) -> None:
    assert main(["sensitivity", "small", "stages.sensitivity.ratios=0.5", "run_dir=trained"]) == 0
    weights = "trained-sensitivity/stages/01_train/model.safetensors"
    words = [f"+stages.start.checkpoint={weights}", "~stages.train", "stages.sensitivity.ratios=0.5"]
    assert main(["sensitivity", "small", *words, "run_dir=started"]) == 0
    assert read(Path("started-sensitivity")) == read(Path("trained-sensitivity"))


def test_smoke_goes_through_all_of_it_in_a_folder_of_its_own(small: Path) -> None:
    assert main(["sensitivity", "small", "--smoke"]) == 0
    assert read(folder_of("-smoke")).levels == ("0.25",)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "recipe"),
        (["smal"], "no recipe named 'smal'; did you mean 'small'?"),
        (["small", "--rations"], "nnicompress sensitivity has no option '--rations'"),
        (["small", "-m"], "nnicompress sensitivity has no option '-m'"),
        (["small", "stages.sensitivity.mode=all"], "stages.sensitivity.mode: 'all' is"),
        (["small", "stages.sensitivity.ratio=0.5"], "stages.sensitivity: unknown key 'ratio'; did you mean 'ratios'?"),
        (["small", "stages.sensitivity.ratios=[]"], "stages.sensitivity.ratios: at least one ratio is needed"),
        (["small", "stages.sensitivity.ratios=[0.5,1.0]"], "stages.sensitivity.ratios.1: 1 is outside (0, 1)"),
        (["small", "stages.sensitivity.ratios=[0.5,0.5]"], "stages.sensitivity.ratios: a ratio stands in the list tw"),
        (["small", "stages.sensitivity.ratios=much"], "stages.sensitivity.ratios: "),
        (
            ["small", "stages.sensitivity.importance=tailor"],
            "stages.sensitivity.importance: no importance named 'tailor",
        ),
        (
            ["small", "stages.sensitivity.kind=quantized", "stages.sensitivity.ratios=0.5"],
            "stages.sensitivity: ratios is for kind: pruned, and the kind is quantized",
        ),
        (["small", "stages.sensitivity.max_drop=-1"], "stages.sensitivity.max_drop: "),
        (["small", "~stages.train"], "stages.sensitivity: 'sensitivity' needs 'train' or 'start' before it"),
        (
            ["small", "evaluator.metric=null"],
            "evaluator.metric: stage 'sensitivity' needs it, or your own evaluating_f",
        ),
    ],
)
def test_wrong_input_is_one_line(small: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert main(["sensitivity", *words]) == 2
    printed = capsys.readouterr()
    assert line in printed.err and printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("${nnicompress.sensitive:none.yaml}", "no file 'none.yaml'"),
        ("${nnicompress.sensitive:recipes/small.yaml}", "is no result of 'nnicompress sensitivity'"),
        ("${nnicompress.sensitive:none.yaml,much}", "max_drop is a number, not 'much'"),
        ("${nnicompress.sensitiv:none.yaml}", "Unsupported interpolation type nnicompress.sensitiv"),
    ],
)
def test_a_wrong_interpolation_is_one_line(
    small: Path, capsys: pytest.CaptureFixture[str], value: str, reason: str
) -> None:
    text = RECIPE.replace("sparse_ratio: 0.5", f"sparse_ratio: 0.5, exclude_op_names: '{value}'")
    Path("recipes/wrong.yaml").write_text(text)
    assert main(["check", "wrong"]) == 2
    printed = capsys.readouterr().err
    assert "compressor.targets.layers.exclude_op_names: " in printed and reason in printed
    assert printed.count("\n") == 1
