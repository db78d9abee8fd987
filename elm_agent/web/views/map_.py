"""The map of a namespace: its active memories as points, near to each other where their keys are."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from elm_agent.memory.mapping import bank_map
from elm_agent.web import charts
from elm_agent.web.desk import Desk, short

MOST = 1000


def show(desk: Desk, request: Request) -> Response:
    info = desk.namespace(request)
    found = bank_map(desk.bank, info.name, most=MOST)
    places = charts.points(found.places)
    dots = [
        (x, y, memory_id, short(question, 100))
        for (x, y), memory_id, question in zip(places, found.ids, found.questions, strict=True)
    ]
    return desk.page(
        request,
        "map.html",
        namespace=info,
        dots=dots,
        active=found.active,
        shares=found.shares,
        width=charts.WIDTH,
        height=480.0,
    )
