"""Take a job through its stages, in its folder, and return its report."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from nnicompress import distributed
from nnicompress.events import Event, Listener, Note, StageFinished, StageStarted, silent
from nnicompress.export.card import write_model_card
from nnicompress.export.plain import FOLDER
from nnicompress.pipeline.assemble import assemble
from nnicompress.pipeline.checkpoint import Checkpoint
from nnicompress.pipeline.context import Context
from nnicompress.pipeline.faults import explained
from nnicompress.pipeline.finished import FILE, FinishedStage, bring, digests, read_finished, reason_to_run
from nnicompress.pipeline.job import Job, StagePlan
from nnicompress.pipeline.keys import digest_of, stage_parts
from nnicompress.pipeline.manifest import conclude_manifest, write_manifest
from nnicompress.pipeline.run_dir import now, open_run, write_json
from nnicompress.pipeline.seeding import controlled, seed_everything
from nnicompress.pipeline.stages import RUNNERS
from nnicompress.pipeline.stages.export import write_plain
from nnicompress.pipeline.stopping import stoppable
from nnicompress.report.curves import CurveRecorder
from nnicompress.report.html import write_html
from nnicompress.report.loggers import open_loggers
from nnicompress.report.record import REPORT_FILE, Report, StageRecord


def run_job(job: Job, listener: Listener = silent, *, fresh: bool = False, explain: bool = False) -> Report:
    """Run every stage of `job` in order and write what they leave, the report last, into `job.run_dir`.

    A stage whose key is that of a finished one in the folder is reused; `fresh` removes what is there first, `explain`
    tells the listener why each stage ran. A training that was cut off goes on from its last saved state. Stage i (from
    1) starts from the seed `job.seed + i`, the model is built from `job.seed`, so a stage's randomness does not depend
    on the stages before it.

    Several processes (started by torchrun) all run all stages. The main one has the folder and decides what is reused;
    the others work in a temporary folder of their own, and their report goes nowhere.

    Raises:
        RunLockedError: another process is writing this run.
        JobError: a stage failed; `status.json` says which and why, and the folder holds only finished stages.
        RunInterrupted: Ctrl-C; the state is saved, the status says `interrupted`.
    """
    started = now(), time.perf_counter()
    curves = CurveRecorder()
    listeners: list[Listener] = []

    def hear(event: Event) -> None:
        curves(event)
        for one in listeners:
            one(event)

    with ExitStack() as stack:
        stack.enter_context(distributed.joined())
        stop = stack.enter_context(stoppable())
        if distributed.is_main():
            listeners.append(listener)
        else:
            folder = stack.enter_context(TemporaryDirectory(prefix="nnicompress-"))
            job = replace(job, run_dir=Path(folder), save_every=0, logging=())
        run = stack.enter_context(open_run(job.run_dir, fresh=fresh))
        stack.enter_context(explained(run))
        stack.enter_context(distributed.blaming(lambda reason: run.give_up("failed", f"JobError: {reason}")))
        device = stack.enter_context(controlled(job.seed, job.runtime))
        write_manifest(job, run.path)
        listeners += stack.enter_context(open_loggers(job.logging, run.path))
        model = job.build_model.build().to(device)
        context = Context(job, run, hear, device, model, folder=run.path, curves=curves, stop=stop)
        stages = _Stages(context, explain=explain).run_all()
        report = assemble(context, stages, curves, started)
        write_html(report, run.path / "report.html")
        write_model_card(report, run.path / FOLDER)
        report.save(run.path / REPORT_FILE)
        conclude_manifest(run.path, report)
    return report


class _Stages:
    """The stages of a job, each reused or run."""

    def __init__(self, context: Context, *, explain: bool) -> None:
        self.context, self.run, self.explain = context, context.run, explain
        self.incoming = ""
        """Digest of all that earlier stages left."""
        self.published: list[str] = []
        """What they have put into the run's folder."""

    def run_all(self) -> list[StageRecord]:
        """Each stage in order."""
        plans = self.context.job.stages
        records = [self.reuse_or_run(index, plan) for index, plan in enumerate(plans, start=1)]
        self.run.forget_all_but(len(plans), self.published)
        if FOLDER not in self.published:
            # A run never ends without its model, whether or not the recipe lists an export stage.
            self.context.folder = self.run.path
            write_plain(self.context, plans[-1])
        return records

    def reuse_or_run(self, index: int, plan: StagePlan) -> StageRecord:
        """One stage."""
        context, folder = self.context, self.run.finished_stage(index, plan.name)
        if context.stop.requested is not None:
            context.stop.now()
        parts = stage_parts(context.job, plan, index, self.incoming, context.device)
        if distributed.world_size() > 1:
            parts["processes"] = distributed.world_size()  # gradients are rounded in another order

        def look() -> tuple[FinishedStage | None, str | None]:
            found = read_finished(folder)
            return found, reason_to_run(folder, found, parts)

        found, reason = distributed.from_main(look)
        if reason is None:
            assert found is not None
            bring(folder, found.files)
            context.listener(Note(f"{plan.name}: reused, nothing that it depends on has changed"))
            context.folder = folder
            RUNNERS[plan.name].restore(context, plan, found.facts)
            context.curves.add(found.curves)
        else:
            if self.explain:
                context.listener(Note(f"{plan.name}: runs, because {reason}"))
            found = self.run_one(index, plan, parts)
        self.incoming = hashlib.sha256(
            f"{self.incoming} {json.dumps(found.files, sort_keys=True)}".encode()
        ).hexdigest()
        self.published += found.published
        return StageRecord(name=plan.name, seconds=found.seconds, reused=reason is None, facts=found.facts)

    def run_one(self, index: int, plan: StagePlan, parts: dict[str, object]) -> FinishedStage:
        """Run a stage, from the state that a killed process saved where there is one."""
        context, run = self.context, self.run
        run.discard_from(index)
        context.began_before = run.has_begun(index, plan.name)
        begin = time.perf_counter()
        with run.stage(index, plan.name) as folder:
            context.folder, context.checkpoint = folder, Checkpoint(folder, digest_of(parts))
            context.listener(StageStarted(plan.name, index, len(context.job.stages)))
            seed_everything(context.job.seed + index)
            run.published.clear()
            facts = json.loads(json.dumps(RUNNERS[plan.name].run(context, plan)))
            finished = FinishedStage(
                name=plan.name,
                seconds=time.perf_counter() - begin,
                facts=facts,
                curves=context.curves.of_stage(),
                parts=parts,
                files=digests(run.path, folder, run.published),
            )
            write_json(folder / FILE, finished.model_dump(mode="json"))
        context.listener(StageFinished(plan.name, finished.seconds))
        return finished
