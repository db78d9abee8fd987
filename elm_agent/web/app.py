"""The page as an ASGI application: which address shows what, and what a failure looks like."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from elm_agent.api.access import Access
from elm_agent.errors import (
    BankMoved,
    ChangedMeanwhile,
    ElmError,
    IndexUnavailable,
    InputError,
    NotFound,
    SettingsError,
    StoreBusy,
    VaultLocked,
)
from elm_agent.storage.bank import Bank
from elm_agent.web.desk import Desk
from elm_agent.web.forms import Forged, TooMuch, fields_of
from elm_agent.web.guard import Guard
from elm_agent.web.sessions import Sessions
from elm_agent.web.views import flow, jobs, ledger, map_, memories, memory, overview, review, signing, vectors
from elm_agent.web.walls import NotAllowed, Walls

if TYPE_CHECKING:
    from elm_agent.protocols import LanguageModel

logger = logging.getLogger(__name__)

LOOPBACK = frozenset({"localhost"})
STATUS: dict[type[ElmError], int] = {
    Forged: 403,
    NotAllowed: 403,
    NotFound: 404,
    ChangedMeanwhile: 409,
    BankMoved: 409,
    TooMuch: 413,
    InputError: 400,
    SettingsError: 400,
    VaultLocked: 503,
    StoreBusy: 503,
    IndexUnavailable: 503,
}

View = Callable[[Desk, Request], Response]
Change = Callable[[Desk, Request, dict[str, str]], Response]


def create_app(
    bank: Bank,
    *,
    walls: Walls | None = None,
    tokens: Access | None = None,
    hosts: frozenset[str] = LOOPBACK,
    cookie: str = "elm_session",
    undo_days: float = 7.0,
    open_model: Callable[[], LanguageModel] | None = None,
) -> Starlette:
    """The page over ``bank``, which the caller opens and closes.

    Args:
        walls: what is seen and changed; by default all.
        tokens: with which one signs in, and what each may see; None: whoever reaches the page is let in.
        hosts: names under which it is asked for, beside addresses in digits. cookie: one name for each port.
        undo_days, open_model: see ``Desk``.
    """
    desk = Desk(
        bank=bank,
        walls=walls or Walls(),
        sessions=Sessions(tokens or Access()),
        undo_days=undo_days,
        open_model=open_model,
    )

    def refuse(scope: Scope, status: int, sentence: str) -> Response:
        return _failure(desk, Request(scope), status, sentence)

    def failed(request: Request, error: Exception) -> Response:
        return _failure(desk, request, *_said(error))

    guard = Middleware(Guard, sessions=desk.sessions, cookie=cookie, hosts=hosts, refuse=refuse)
    handlers = {ElmError: failed, HTTPException: failed, Exception: failed}
    return Starlette(routes=_routes(desk), middleware=[guard], exception_handlers=handlers)


def _routes(desk: Desk) -> list[Route | Mount]:
    def get(path: str, view: View) -> Route:
        def shown(request: Request) -> Response:
            return view(desk, request)

        return Route(path, shown, methods=["GET"])

    def post(path: str, change: Change) -> Route:
        return Route(path, _changing(desk, change), methods=["POST"])

    of = "/n/{namespace}"
    return [
        get("/", overview.show),
        get("/login", signing.show),
        post("/login", signing.sign_in),
        post("/logout", signing.sign_out),
        get(f"{of}/memories", memories.show),
        get(f"{of}/memories/{{memory_id}}", memory.show),
        get(f"{of}/memories/{{memory_id}}/vectors", vectors.show),
        post(f"{of}/memories/{{memory_id}}/try", vectors.try_out),
        post(f"{of}/memories/{{memory_id}}/{{action}}", memory.change),
        get(f"{of}/review", review.show),
        get(f"{of}/review/{{id}}", review.show_one),
        post(f"{of}/review/{{id}}/{{action}}", review.change),
        get(f"{of}/jobs", jobs.show),
        get(f"{of}/jobs.json", jobs.look),
        get(f"{of}/jobs/{{job_id}}", jobs.show_one),
        post(f"{of}/jobs/{{job_id}}/{{action}}", jobs.change),
        get(f"{of}/flow", flow.show),
        get(f"{of}/map", map_.show),
        get(f"{of}/ledger", ledger.show),
        post(f"{of}/ledger/verify", ledger.verify),
        get(f"{of}/ledger/verify.json", ledger.look),
        post("/model", vectors.open_model),
        get("/model.json", vectors.look),
        Mount("/static", StaticFiles(directory=Path(__file__).with_name("static"))),
    ]


def _changing(desk: Desk, change: Change) -> Callable[[Request], Awaitable[Response]]:
    async def changed(request: Request) -> Response:
        fields = await fields_of(request)
        if not desk.sessions.is_form_of(request.scope["session"], fields.get("form", "")):
            raise Forged("the form is of another session: nothing was done; reload the page and try again")
        return await run_in_threadpool(change, desk, request, fields)

    return changed


def _said(error: Exception) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        return error.status_code, "there is nothing at this address" if error.status_code == 404 else error.detail
    if isinstance(error, ElmError):
        return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500), str(error)
    return 500, f"unexpected {type(error).__name__}; the log of `elm-agent web` says more"


def _failure(desk: Desk, request: Request, status: int, sentence: str) -> Response:
    if request.scope["path"].endswith(".json"):
        return JSONResponse({"problem": sentence}, status_code=status)
    return desk.page(request, "problem.html", code=status, sentence=sentence, onward=_onward(request, status))


def _onward(request: Request, status: int) -> str:
    """Where to go from a failure: to what a form was about, to the page itself, or to the first one."""
    path = "/" + quote(request.scope["path"].lstrip("/"))  # two slashes would lead to another host
    if request.method == "POST":
        return path.rpartition("/")[0] or "/"
    if status != 403:
        return "/"
    query = request.scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path
