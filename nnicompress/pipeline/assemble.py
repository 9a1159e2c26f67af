"""From what a run left behind to its report."""

from __future__ import annotations

import time

import torch

from nnicompress.errors import JobError
from nnicompress.events import Note
from nnicompress.export.formats import FORMATS
from nnicompress.graph.macs import count_macs
from nnicompress.measure.size import bytes_of, count_parameters, count_zeros
from nnicompress.pipeline.context import SPLIT, Context, Phase
from nnicompress.pipeline.manifest import machine, versions
from nnicompress.report.curves import CurveRecorder
from nnicompress.report.expected import compare, summary_numbers
from nnicompress.report.record import (
    ArtifactRecord,
    ControlRecord,
    LayerRecord,
    PhaseRecord,
    ProofRecord,
    QuantizationRecord,
    QuantizedLayerRecord,
    Report,
    StageRecord,
)


def assemble(context: Context, stages: list[StageRecord], curves: CurveRecorder, started: tuple[str, float]) -> Report:
    """The run's report. `started` is the start's ISO time and `time.perf_counter()`."""
    job = context.job
    phases = _phases(context)
    artifacts = _artifacts(context)
    numbers = summary_numbers(phases, artifacts, batch_size=job.batch_size, mode=job.mode)
    proof, pruning = context.proof, context.pruning
    return Report(
        name=job.name,
        summary=job.summary,
        run_dir=str(job.run_dir),
        seed=job.seed,
        smoke=job.smoke,
        started=started[0],
        seconds=time.perf_counter() - started[1],
        device=_device_name(context.device),
        threads=torch.get_num_threads(),
        precision=job.runtime.precision,
        machine=machine(),
        versions=versions(),
        batch_size=job.batch_size,
        metric=job.metric,
        mode=job.mode,
        split=SPLIT,
        stages=tuple(stages),
        phases=phases,
        artifacts=artifacts,
        layers=_layers(context),
        pruned="" if pruning is None else pruning.summary,
        shortfall=() if pruning is None else pruning.reasons,
        unprunable=() if pruning is None else pruning.unprunable,
        proof=None
        if proof is None
        else ProofRecord(
            max_relative_difference=proof.max_relative_difference,
            tolerance=proof.tolerance,
            precision=proof.precision,
            batch_sizes=proof.batch_sizes,
            seconds=proof.seconds,
        ),
        quantization=_quantization(context, stages),
        curves=curves.curves(),
        expected=compare(job.expected, numbers),
    )


def _artifacts(context: Context) -> tuple[ArtifactRecord, ...]:
    """What `evaluate` measured; without that stage, the files all the same."""
    measured = {artifact.format for artifact in context.artifacts}
    unmeasured = [
        ArtifactRecord(
            format=name,
            path=exported.path.name,
            runtime=FORMATS[name].runtime,
            bytes=bytes_of(exported.path),
            max_relative_difference=exported.max_relative_difference,
        )
        for name, exported in context.exported.items()
        if name not in measured
    ]
    return (*context.artifacts, *unmeasured)


def _phases(context: Context) -> tuple[PhaseRecord, ...]:
    counts: dict[tuple[object, ...], int | None] = {}
    records = []
    for phase in context.phases:
        # Phases of equal shapes have equal counts: masks and fine-tuning change no shape.
        shapes = tuple((name, tuple(p.shape)) for name, p in phase.network.named_parameters())
        if shapes not in counts:
            counts[shapes] = _macs(context, phase)
        records.append(
            PhaseRecord(
                name=phase.name,
                label=phase.label,
                masked=phase.masked,
                parameters=count_parameters(phase.network),
                zeros=count_zeros(phase.network),
                macs=counts[shapes],
                bytes=phase.bytes,
                accuracy=phase.accuracy,
                validation=phase.validation,
                latency=phase.latency,
                peak_memory=phase.peak_memory,
            )
        )
    return tuple(records)


def _macs(context: Context, phase: Phase) -> int | None:
    """Multiply-accumulates of one sample: of a batch of two, halved, because some forwards refuse a batch of one."""
    ((args, kwargs),) = context.inputs(context.job.stages[-1], 2)
    try:
        return count_macs(phase.network, args, kwargs).total // 2
    except (JobError, RuntimeError) as error:
        # A forward that needs real numbers can't be counted on fake ones; the report says that it was not.
        reason = str(error).strip().splitlines()[0]
        context.listener(Note(f"multiply-accumulates of {phase.label} were not counted: {reason}", warning=True))
        return None


def _layers(context: Context) -> tuple[LayerRecord, ...]:
    """All widths in the network's order; where single weights were pruned, their tensors."""
    pruning = context.pruning
    if pruning is None:
        return ()
    rows = {row.name: row for row in pruning.rows}
    widths = () if pruning.groups is None else pruning.groups.widths
    names = [*(width.name for width in widths), *rows.keys() - {width.name for width in widths}]
    sizes = {width.name: width.size * width.slots[0].indices.shape[1] for width in widths}
    order = {name: position for position, name in enumerate([*sizes, *rows])}
    # A layer that gave less where others gave more needs no excuse: only a total that was missed does.
    short = bool(pruning.reasons)
    records = []
    for name in sorted(names, key=order.__getitem__):
        row = rows.get(name)
        if row is None:
            records.append(LayerRecord(name=name, before=sizes[name], after=sizes[name]))
        else:
            records.append(
                LayerRecord(
                    name=name,
                    unit=row.unit,
                    before=row.size,
                    after=row.kept,
                    asked=row.asked,
                    note=row.note if short else "",
                )
            )
    return tuple(records)


def _quantization(context: Context, stages: list[StageRecord]) -> QuantizationRecord | None:
    """The types of each layer's tensors, in the order of the forward."""
    result = context.quantization
    if result is None:
        return None
    facts = next(stage.facts for stage in stages if stage.name == "quantize")
    types: dict[str, dict[str, list[str]]] = {}
    for place, tensor in result.tensors.items():
        layer, _, key = place.rpartition("/")
        kind = "weight" if key == "weight" else "inputs" if key.startswith("input") else "output"
        if key != "bias":
            types.setdefault(layer, {}).setdefault(kind, []).append(tensor.scheme.dtype)
    return QuantizationRecord(
        method=facts["method"],
        backend=facts["backend"],
        summary=facts["summary"],
        layers=tuple(
            QuantizedLayerRecord(
                name=layer.replace("/", " "), **{kind: ", ".join(dict.fromkeys(found)) for kind, found in row.items()}
            )
            for layer, row in types.items()
        ),
        unquantized=result.unquantized,
        control=None if "control" not in facts else ControlRecord.model_validate(facts["control"]),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
