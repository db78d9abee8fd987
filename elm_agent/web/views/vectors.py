"""What a memory's vectors are near to, how far they moved, and what the memory does to a question typed in.

All of it needs the model, which is opened only where somebody asks.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from elm_agent.errors import InputError
from elm_agent.memory.vectors import Tried, VectorView, try_memory, view_vectors
from elm_agent.storage.bank import NamespaceInfo
from elm_agent.web import forms
from elm_agent.web.desk import Desk, holder_of, url
from elm_agent.web.views.ledger import state_of
from elm_agent.web.work import Progress

WORK = "model"
MOST_TOKENS = 64


def show(desk: Desk, request: Request) -> Response:
    info, memory_id = desk.namespace(request), forms.identifier(request, "memory_id")
    return _page(desk, request, info, memory_id)


def try_out(desk: Desk, request: Request, fields: dict[str, str]) -> Response:
    """Ask a question with the memory and without it; nothing is kept."""
    info, memory_id = desk.namespace(request), forms.identifier(request, "memory_id")
    question = forms.text(fields, "question")
    if question is None:
        raise InputError("the question is blank: expected some text")
    memory = desk.bank.memory(info.name, memory_id)
    model = desk.works.status(WORK).result
    if model is None:
        raise InputError("the model is not open: open it on the page of the memory's vectors first")
    prompt = desk.bank.prompt(info.name, memory_id)
    tried = try_memory(model, memory, prompt, question, max_new_tokens=MOST_TOKENS)
    return _page(desk, request, info, memory_id, tried)


def open_model(desk: Desk, request: Request, fields: dict[str, str]) -> Response:
    """Begin to open the model; it stays open as long as the page runs."""
    opener = desk.open_model
    if opener is None:
        raise InputError("this page opens no model")
    if desk.works.status(WORK).result is None:

        def work(_progress: Progress) -> object:
            return opener()

        desk.works.start(WORK, work)
    info = desk.walls.namespace(desk.bank, holder_of(request), fields.get("namespace", ""))
    memory_id = forms.text(fields, "memory") or ""
    return RedirectResponse(url("n", info.name, "memories", memory_id, "vectors"), status_code=303)


def look(desk: Desk, _request: Request) -> Response:
    return JSONResponse(state_of(desk.works.status(WORK)))


def _page(desk: Desk, request: Request, info: NamespaceInfo, memory_id: str, tried: Tried | None = None) -> Response:
    memory = desk.bank.memory(info.name, memory_id)
    status = desk.works.status(WORK)
    view: VectorView | None = None
    if status.result is not None:
        view = view_vectors(status.result, memory, desk.bank.prompt(info.name, memory_id))
    return desk.page(
        request,
        "vectors.html",
        namespace=info,
        memory=memory,
        status=status,
        view=view,
        tried=tried,
        most=MOST_TOKENS,
        can_open=desk.open_model is not None,
    )
