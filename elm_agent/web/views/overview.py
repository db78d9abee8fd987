"""The first page: the namespaces of the bank, what each holds, and the work that waits."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from elm_agent.records import JobState, MemoryState
from elm_agent.web.desk import Desk, holder_of
from elm_agent.web.forms import text

MOST = 200


def show(desk: Desk, request: Request) -> Response:
    wanted = text(dict(request.query_params), "name")
    holder = holder_of(request)
    shown = desk.walls.namespaces(desk.bank, holder)
    infos = [info for info in shown if wanted is None or wanted in info.name]
    counts = desk.bank.memory_counts()
    jobs = desk.bank.jobs.counts() if desk.walls.all_of(holder) else None
    return desk.page(
        request,
        "overview.html",
        infos=infos[:MOST],
        more=len(infos) - MOST,
        name=wanted,
        counts=counts,
        waiting=desk.bank.reviews.waiting(),
        states=list(MemoryState),
        jobs=jobs,
        job_states=list(JobState),
        database=desk.bank.database.where if desk.walls.all_of(holder) else None,
    )
