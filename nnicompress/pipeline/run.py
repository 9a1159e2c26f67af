"""Take a job through its stages, in its folder, and return its report."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nnicompress.events import Event, Listener, StageFinished, StageStarted, silent
from nnicompress.export.plain import FOLDER
from nnicompress.pipeline.assemble import assemble
from nnicompress.pipeline.context import Context
from nnicompress.pipeline.job import Job
from nnicompress.pipeline.manifest import manifest
from nnicompress.pipeline.run_dir import MANIFEST_FILE, now, open_run, write_json
from nnicompress.pipeline.seeding import controlled, seed_everything
from nnicompress.pipeline.stages import RUNNERS
from nnicompress.pipeline.stages.export import write_plain
from nnicompress.report.curves import CurveRecorder
from nnicompress.report.html import write_html
from nnicompress.report.record import REPORT_FILE, Report, StageRecord


def run_job(job: Job, listener: Listener = silent) -> Report:
    """Run every stage of `job` in order and write what they leave, the report last, into `job.run_dir`.

    Whatever an earlier run left in the folder is removed first. Stage i (from 1) starts from the seed `job.seed + i`,
    the model is built from `job.seed`, so a stage's randomness does not depend on the stages before it.

    Raises:
        RunLockedError: another process is writing this run.
        JobError: a stage failed; `status.json` says which and why, and the folder holds only finished stages.
        KeyboardInterrupt: as it came; the status says `interrupted`.
    """
    started = now(), time.perf_counter()
    curves = CurveRecorder()

    def hear(event: Event) -> None:
        curves(event)
        listener(event)

    with _terminable(), open_run(job.run_dir) as run, controlled(job.seed, job.runtime) as device:
        write_json(run.path / MANIFEST_FILE, manifest(job))
        model = job.build_model.build().to(device)
        context = Context(job, run, hear, device, model, folder=run.path)
        stages = [_run_stage(context, index) for index in range(1, len(job.stages) + 1)]
        if not (run.path / FOLDER).exists():
            # A run never ends without its model, whether or not the recipe lists an export stage.
            context.folder = run.path
            write_plain(context, job.stages[-1])
        report = assemble(context, stages, curves, started)
        write_html(report, run.path / "report.html")
        report.save(run.path / REPORT_FILE)
    return report


def _run_stage(context: Context, index: int) -> StageRecord:
    plan, total = context.job.stages[index - 1], len(context.job.stages)
    context.listener(StageStarted(plan.name, index, total))
    begin = time.perf_counter()
    with context.run.stage(index, plan.name) as folder:
        context.folder = folder
        seed_everything(context.job.seed + index)
        facts = RUNNERS[plan.name](context, plan)
        record = StageRecord(name=plan.name, seconds=time.perf_counter() - begin, facts=facts)
        write_json(folder / "record.json", record.model_dump())
    context.listener(StageFinished(plan.name, record.seconds))
    return record


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run as an exception, so that the status is written; only the main thread may ask for this."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
