"""The ledger of a namespace: its events, newest first, and whether the chain is whole."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from elm_agent.records import EventKind
from elm_agent.storage.ledger import chain
from elm_agent.web import forms
from elm_agent.web.desk import Desk, url
from elm_agent.web.work import Progress, Status

SIZE = 50


def show(desk: Desk, request: Request) -> Response:
    info = desk.namespace(request)
    query = dict(request.query_params)
    kind = forms.choice(query, "kind", EventKind)
    actor, memory_id = forms.text(query, "actor"), forms.text(query, "memory")
    before = forms.number(query, "before")
    found = desk.bank.events(info.name, memory_id, kind=kind, actor=actor, before=before, limit=SIZE + 1)[::-1]
    return desk.page(
        request,
        "ledger.html",
        namespace=info,
        events=found[:SIZE],
        before=found[SIZE - 1].revision if len(found) > SIZE else None,
        later=before is not None,
        asked={"kind": kind, "actor": actor, "memory": memory_id},
        kinds=list(EventKind),
        status=desk.works.status(_name(info.name)),
    )


def verify(desk: Desk, request: Request, _fields: dict[str, str]) -> Response:
    """Begin to walk the chain."""
    info = desk.namespace(request)

    def work(progress: Progress) -> chain.ChainReport:
        return chain.verify(desk.bank.database, info.name, vault=desk.bank.vault, progress=progress)

    desk.works.start(_name(info.name), work)
    return RedirectResponse(url("n", info.name, "ledger") + "#chain", status_code=303)


def look(desk: Desk, request: Request) -> Response:
    return JSONResponse(state_of(desk.works.status(_name(desk.namespace(request).name))))


def state_of(status: Status) -> dict[str, object]:
    """How far a work is, in plain values."""
    return {"state": status.state, "done": status.done, "total": status.total, "problem": status.problem}


def _name(namespace: str) -> str:
    return f"verify {namespace}"
