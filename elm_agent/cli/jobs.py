"""``elm-agent jobs``: what waits to be learned, what runs, what failed. Needs no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from elm_agent.cli.opening import opened_bank
from elm_agent.cli.options import Shared, group, shared
from elm_agent.cli.output import plain, short, to_json, when
from elm_agent.records import JobState

if TYPE_CHECKING:
    from elm_agent.records import JobRecord

app = group("jobs", "Look at learning jobs; cancel and retry them.")

JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job (job_...).")]


@app.command("list")
@shared
def list_(
    options: Shared,
    state: Annotated[JobState | None, typer.Option("--state", help="Only jobs in this state.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
) -> None:
    """List the jobs of the namespace."""
    out = options.output()
    with opened_bank(options) as opened:
        found = opened.bank.jobs.list(opened.namespace, state=state, limit=limit)
    if out.json:
        out.document(found)
    elif not found:
        out.say(f"no jobs in namespace {opened.namespace!r}")
    else:
        columns = ("id", "state", "attempts", "priority", "created", "memory", "reason", "question")
        out.table(
            columns,
            (
                (
                    job.id,
                    job.state,
                    f"{job.attempts}/{job.max_attempts}",
                    job.priority,
                    when(job.created_at),
                    job.memory_id,
                    short(job.reason, 40),
                    short(job.question, 50),
                )
                for job in found
            ),
        )


@app.command()
@shared
def show(options: Shared, job_id: JobId) -> None:
    """Show one job: state, attempts, progress and reason."""
    with opened_bank(options) as opened:
        job = opened.bank.jobs.get(opened.namespace, job_id)
    if options.json:
        options.output().document(job)
        return
    for name, value in plain(job).items():
        options.output().say(f"{name:<18}{to_json(value) if isinstance(value, dict) else value}")


@app.command()
@shared
def cancel(options: Shared, job_id: JobId) -> None:
    """Cancel a job; a running one stops after its current step."""
    with opened_bank(options) as opened:
        job = opened.bank.jobs.cancel(opened.namespace, job_id)
    asked = job.state is JobState.RUNNING
    _changed(options, job, "asked to stop" if asked else job.state.value)


@app.command()
@shared
def retry(options: Shared, job_id: JobId) -> None:
    """Queue a failed or cancelled job again."""
    with opened_bank(options) as opened:
        job = opened.bank.jobs.retry(opened.namespace, job_id)
    _changed(options, job, job.state.value)


def _changed(options: Shared, job: JobRecord, verb: str) -> None:
    out = options.output()
    if out.json:
        out.document(job)
    else:
        out.say(f"{job.id}: {verb}")
