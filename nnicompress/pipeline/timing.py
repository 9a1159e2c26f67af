"""Latencies as a run takes them: all models in turn, at each batch size, the other processes waiting."""

from __future__ import annotations

from nnicompress import distributed
from nnicompress.measure.latency import Call, measure_calls
from nnicompress.pipeline.context import Context
from nnicompress.pipeline.settings import EvaluateSettings
from nnicompress.report.record import LatencyRecord


def batch_sizes(context: Context, settings: EvaluateSettings) -> tuple[int, ...]:
    """The sizes asked for; by default one sample and the recipe's batch."""
    return tuple(sorted(set(settings.batch_sizes or (1, context.job.batch_size))))


def time_calls(
    calls: dict[str, Call], batch_size: int, context: Context, settings: EvaluateSettings
) -> dict[str, LatencyRecord]:
    """Each call's latency by name."""
    repeats, seconds = (5, 0.2) if context.job.smoke else (settings.repeats, settings.seconds)
    # The other processes wait and leave the machine to this one.
    measured = distributed.from_main(
        lambda: measure_calls(calls, warmup=settings.warmup, repeats=repeats, seconds=seconds)
    )
    return {
        name: LatencyRecord(batch_size=batch_size, median=one.median, low=one.low, high=one.high, repeats=one.repeats)
        for name, one in measured.items()
    }
