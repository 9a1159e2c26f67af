"""`nnicompress export`: write the model of a finished run in further formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnicompress.commands.arguments import parse
from nnicompress.commands.show import finished_runs
from nnicompress.errors import UserError, did_you_mean

HELP = """
usage: nnicompress export RUN [--format pt2|onnx] [--output FOLDER] [--trust PACKAGE]

Writes the model of a finished run as model.pt2 or model.onnx, loads the file again and compares it with the model.
RUN is the run's folder. Without --format, each format is written that the folder doesn't hold yet. A file that is there
is never replaced: the run's report was measured on it. Accuracy and latency are measured by a recipe's evaluate stage.

  nnicompress export runs/taylorfo_resnet-1f0c2a9b --format onnx

options:
  --format FORMAT    pt2 (torch.export) or onnx (onnxruntime); repeatable, or divided by commas
  --output FOLDER    where to write, in place of the run's folder; it must exist
  --trust PACKAGE    allow the model's class, where it is PACKAGE's (repeatable; or set NNICOMPRESS_TRUST)
  --traceback        show where an error came from
"""

FORMATS = ("pt2", "onnx")


@dataclass(frozen=True)
class _Request:
    run: Path
    formats: tuple[str, ...]
    output: Path | None
    trust: tuple[str, ...]


def main(arguments: list[str]) -> int:
    """Write the files; UserError for wrong words, JobError for a run that isn't finished or a model that can't."""
    request = _request(arguments)

    from nnicompress.export.afterwards import export_run
    from nnicompress.report import words

    for written in export_run(request.run, request.formats, output=request.output, trust=request.trust):
        sizes = " and ".join(map(str, written.batch_sizes))
        print(
            f"{written.path}: {words.size(written.bytes)}, for {written.runtime}; "
            f"largest relative difference to the model {written.max_relative_difference:.1e}, at batch {sizes}"
        )
    return 0


def _request(arguments: list[str]) -> _Request:
    """The words of the command line, checked without importing anything heavy."""
    formats: list[str] = []
    output: Path | None = None
    rest: list[str] = []
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        word = words.pop(0)
        if word not in ("--format", "--output"):
            rest.append(word)
            continue
        if not words or words[0].startswith("-"):
            raise UserError(f"{word} needs a value")
        value = words.pop(0)
        if word == "--output":
            output = Path(value).expanduser()
        else:
            formats += value.split(",")
    for name in formats:
        if name not in FORMATS:
            near = did_you_mean(name, FORMATS) or f"; formats: {', '.join(FORMATS)}"
            raise UserError(f"--format: there is no format {name!r}{near}")
    if output is not None and not output.is_dir():
        raise UserError(f"--output: no folder {str(output)!r}; create it first")
    if unknown := [word for word in rest if word.startswith("-") and word != "--trust"]:
        near = did_you_mean(unknown[0], ("--format", "--output", "--trust"))
        raise UserError(f"nnicompress export has no option {unknown[0]!r}{near}")
    parsed = parse(rest, command="export")
    if len(parsed.overrides) != 1:
        example = next(iter(finished_runs()), "runs/NAME")
        hint = "; formats are given as --format onnx" if any(word in FORMATS for word in parsed.overrides) else ""
        raise UserError(f"export takes one run, as in 'nnicompress export {example}'{hint}")
    run = Path(parsed.overrides[0]).expanduser()
    if not run.is_dir():
        known = finished_runs()
        hint = did_you_mean(str(run), known) or (f" (known: {', '.join(known)})" if known else "")
        raise UserError(f"no run {str(run)!r}{hint}; give the folder of a finished run")
    return _Request(run, tuple(dict.fromkeys(formats)), output, parsed.trust)
