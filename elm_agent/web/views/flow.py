"""What memories do for answers: from route to outcome, and how often the answer is right, as time goes by."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from elm_agent.errors import InputError
from elm_agent.records import Route, UseOutcome
from elm_agent.storage.browsing.flow import MOST, flow
from elm_agent.web import charts, forms
from elm_agent.web.desk import Desk, when

CHOICES = (500, 2000, MOST)
ROUTES = [route for route in Route if route is not Route.NO_MEMORY]  # without a memory there is no use
OUTCOMES = [
    UseOutcome.FIXED,
    UseOutcome.BOTH_RIGHT,
    UseOutcome.BOTH_WRONG,
    UseOutcome.BROKEN,
    UseOutcome.UNKNOWN,
]


def show(desk: Desk, request: Request) -> Response:
    info = desk.namespace(request)
    newest = forms.number(dict(request.query_params), "newest") or MOST
    if newest not in CHOICES:
        raise InputError(f"newest is {newest}: expected one of {', '.join(map(str, CHOICES))}")
    found = flow(desk.bank.database, info.name, most=newest)
    counts = {(_words(route), _words(outcome)): n for (route, outcome), n in found.counts.items()}
    accuracy = None
    if any(stretch.settled for stretch in found.stretches):
        series = {
            "with memories": [stretch.with_memory for stretch in found.stretches],
            "without": [stretch.without for stretch in found.stretches],
        }
        accuracy = charts.lines(series, labels=[when(stretch.begins) for stretch in found.stretches])
    settled = sum(stretch.settled for stretch in found.stretches)
    return desk.page(
        request,
        "flow.html",
        namespace=info,
        flow=found,
        settled=settled,
        chart=charts.flow(counts, left=[*map(_words, ROUTES)], right=[*map(_words, OUTCOMES)]),
        routes=ROUTES,
        outcomes=OUTCOMES,
        accuracy=accuracy,
        newest=newest,
        choices=CHOICES,
    )


def _words(value: Route | UseOutcome) -> str:
    return value.value.replace("_", " ")
