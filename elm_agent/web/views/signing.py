"""Signing in with the token, and out again."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from elm_agent.web.desk import Desk


def show(desk: Desk, request: Request) -> Response:
    if request.scope["session"].holder is not None:
        return RedirectResponse("/", status_code=303)
    return desk.page(request, "login.html", problem=None)


def sign_in(desk: Desk, request: Request, fields: dict[str, str]) -> Response:
    session = desk.sessions.sign_in(fields.get("token", "").strip())
    if session is None:
        return desk.page(request, "login.html", code=403, problem="that is no token of this page")
    request.scope["session"] = session
    return RedirectResponse("/", status_code=303)


def sign_out(desk: Desk, request: Request, _fields: dict[str, str]) -> Response:
    desk.sessions.sign_out(request.scope["session"])
    request.scope["session"] = desk.sessions.begin()
    return RedirectResponse("/login", status_code=303)
