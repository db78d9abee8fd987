"""Background jobs of a namespace: what waits, what runs and how far it is, what failed; cancel and retry."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from elm_agent.errors import InputError, NotFound
from elm_agent.records import JobRecord, JobState, StepRecord
from elm_agent.storage.bank import NamespaceInfo
from elm_agent.web import charts, forms
from elm_agent.web.desk import Desk, short, url, when

SIZE = 50
_TAKE_BACK = (JobState.FAILED, JobState.CANCELLED)


def show(desk: Desk, request: Request) -> Response:
    info = desk.namespace(request)
    query = dict(request.query_params)
    state = forms.choice(query, "state", JobState)
    found, after = _page(desk, info, query, state)
    return desk.page(
        request,
        "jobs.html",
        namespace=info,
        jobs=[line_of(info, job) for job in found],
        state=state,
        states=list(JobState),
        after=after,
        later=bool(query.get("after")),
        unfinished=desk.bank.jobs.unfinished(info.name),
    )


def look(desk: Desk, request: Request) -> Response:
    """The same page of jobs as data: what the page asks for again and again."""
    info = desk.namespace(request)
    query = dict(request.query_params)
    if query.get("job"):
        found = [desk.bank.jobs.get(info.name, forms.known(query["job"], "job"))]
    else:
        found, _ = _page(desk, info, query, forms.choice(query, "state", JobState))
    unfinished = desk.bank.jobs.unfinished(info.name)
    return JSONResponse(
        {
            "jobs": [line_of(info, job) for job in found],
            "unfinished": {state.value: count for state, count in unfinished.items()},
        }
    )


def show_one(desk: Desk, request: Request) -> Response:
    info = desk.namespace(request)
    job = desk.bank.jobs.get(info.name, forms.identifier(request, "job_id"))
    steps = [StepRecord(**step) for step in job.progress.get("curve", ())]
    curve = None
    if steps:
        series = {"vote share": [s.vote_share for s in steps], "mean reward": [s.reward_mean for s in steps]}
        curve = charts.lines(series, labels=[f"step {step.step}" for step in steps])
    return desk.page(request, "job.html", namespace=info, job=job, line=line_of(info, job), curve=curve)


def change(desk: Desk, request: Request, _fields: dict[str, str]) -> Response:
    info, job_id = desk.namespace(request), forms.identifier(request, "job_id")
    desk.walls.check_change(info)
    match request.path_params["action"]:
        case "cancel":
            desk.bank.jobs.cancel(info.name, job_id)
        case "retry":
            desk.bank.jobs.retry(info.name, job_id)
        case other:
            raise NotFound(f"there is nothing called {str(other)[:40]!r} to do with a job")
    return RedirectResponse(url("n", info.name, "jobs", job_id), status_code=303)


def line_of(info: NamespaceInfo, job: JobRecord) -> dict[str, Any]:
    """One job in plain values, as a row shows it. ``done``, ``steps``: how far a running one is."""
    progress = job.progress
    done, steps = (progress.get(name) for name in ("step", "steps"))
    running = job.state is JobState.RUNNING
    return {
        "id": job.id,
        "url": url("n", info.name, "jobs", job.id),
        "state": job.state.value + (", asked to stop" if running and job.cancel_requested else ""),
        "kind": job.state.value,
        "question": short(job.question, 100),
        "attempts": f"{job.attempts} of {job.max_attempts}",
        "created": when(job.created_at),
        "done": int(done or 0) if running else int(job.state is JobState.DONE),
        "steps": int(steps or job.recipe.steps) if running else 1,
        "progress": _progress(job),
        "reason": short(job.reason, 100) if job.reason else "",
        "memory": job.memory_id or "",
        "memory_url": url("n", info.name, "memories", job.memory_id) if job.memory_id else "",
        "can_cancel": job.state is JobState.QUEUED or (running and not job.cancel_requested),
        "can_retry": job.state in _TAKE_BACK,
    }


def _progress(job: JobRecord) -> str:
    if job.state is not JobState.RUNNING:
        return ""
    if "step" not in job.progress:
        return "begins"
    votes = job.progress.get("vote_share")
    words = f"step {job.progress['step']} of {job.progress.get('steps', '?')}"
    return words if votes is None else f"{words}, vote share {votes:.0%}"


def _page(
    desk: Desk, info: NamespaceInfo, query: dict[str, str], state: JobState | None
) -> tuple[list[JobRecord], str | None]:
    """Newest first, and the place after which the next page begins."""
    after = _place(query["after"]) if query.get("after") else None
    found = desk.bank.jobs.list(info.name, state, SIZE + 1, after=after)
    if len(found) <= SIZE:
        return found, None
    last = found[SIZE - 1]
    return found[:SIZE], f"{int(last.created_at.timestamp())}{last.created_at.microsecond:06d}~{last.id}"


def _place(text: str) -> tuple[datetime, str]:
    moment, separator, job_id = text.partition("~")
    try:
        if not (separator and moment.isascii() and moment.isdecimal() and 7 <= len(moment) <= 17):
            raise ValueError
        when_made = datetime.fromtimestamp(int(moment[:-6]), UTC).replace(microsecond=int(moment[-6:]))
        return when_made, forms.known(job_id, "job")
    except (ValueError, OverflowError, OSError, NotFound):
        raise InputError(f"{text[:80]!r} is no place among jobs: begin at the first page") from None
