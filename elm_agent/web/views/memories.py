"""The list of a namespace's memories: searched, filtered, sorted, a page at a time."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from elm_agent.errors import InputError
from elm_agent.records import MemoryState
from elm_agent.storage.browsing.memories import Order, Wanted, browse, state_counts
from elm_agent.web import forms
from elm_agent.web.desk import Desk, url

ORDERS = {
    Order.NEWEST: "newest first",
    Order.OLDEST: "oldest first",
    Order.CHANGED: "last changed first",
    Order.BEST_VOTES: "highest vote share first",
    Order.WORST_VOTES: "lowest vote share first",
    Order.USED: "most used first",
    Order.FIXED: "fixed most first",
    Order.BROKEN: "broke most first",
}
USED_ONLY = {Order.USED, Order.FIXED, Order.BROKEN}  # they leave out memories that have none
STATES = [state for state in MemoryState if state is not MemoryState.PURGED]


def show(desk: Desk, request: Request) -> Response:
    info = desk.namespace(request)
    query = dict(request.query_params)
    state = forms.choice(query, "state", MemoryState, STATES)
    order = forms.choice(query, "order", Order) or Order.NEWEST
    words = forms.text(query, "text")
    if words is not None and words.startswith("mem_") and " " not in words:
        return RedirectResponse(url("n", info.name, "memories", words), status_code=303)
    if query.get("after") and query.get("before"):
        raise InputError("a page comes after a place or before one, not both")
    wanted = Wanted(state=state, pinned=_pinned(query), task=forms.text(query, "task"), text=words)
    bank = desk.bank
    page = browse(
        bank.database,
        bank.vault,
        info.name,
        wanted=wanted,
        order=order,
        after=query.get("after") or None,
        before=query.get("before") or None,
    )
    asked: dict[str, Any] = {"text": words, "state": state, "order": query.get("order"), "task": wanted.task}
    asked["pinned"] = query.get("pinned")
    counts = state_counts(bank.database, info.name)
    far = {"before": page.before} if query.get("before") else {"after": page.after}
    return desk.page(
        request,
        "memories.html",
        namespace=info,
        page=page,
        onward=url("n", info.name, "memories", **asked, **far),
        wanted=wanted,
        order=order,
        orders=ORDERS,
        counts=counts,
        total=_total(wanted, order, counts),
        asked=asked,
        narrowed=any(value not in (None, "") for name, value in asked.items() if name != "order"),
    )


def _total(wanted: Wanted, order: Order, counts: dict[MemoryState, int]) -> int | None:
    """How many memories the list has on all pages; None where counting them would cost a look at each."""
    if (wanted.pinned, wanted.task, wanted.text) != (None, None, None) or order in USED_ONLY:
        return None
    return sum(counts.values()) if wanted.state is None else counts[wanted.state]


def _pinned(query: dict[str, str]) -> bool | None:
    value = query.get("pinned", "")
    if value not in ("", "yes", "no"):
        raise InputError(f"pinned is {value[:40]!r}: expected yes or no")
    return None if not value else value == "yes"
