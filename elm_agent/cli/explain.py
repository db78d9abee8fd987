"""How ``ask --explain`` shows why an answer is what it is. Plain values in, tables out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elm_agent.cli.output import Output, short

COLUMNS = (
    "memory",
    "used",
    "nearness",
    "similarity",
    "utility",
    "+/-",
    "explored",
    "score",
    "chance",
    "helped/same/hurt",
    "uses",
)


def show_explanation(out: Output, told: Mapping[str, Any]) -> None:
    """The candidates with every part of their scores, both answers with theirs, and the reason of the route."""
    retrieval, judged = told["retrieval"], told["verifier"]
    threshold = f"threshold {retrieval['threshold']:.3f}, the first {retrieval['looked_at']} looked at"
    out.say(f"\nretrieval by {retrieval['ranking']}, {threshold}")
    if retrieval["candidates"]:
        out.table(COLUMNS, [_row(one) for one in retrieval["candidates"]])
    if (fitted := retrieval["abstention"]) is not None:
        out.say(_abstention(fitted))
    if budget := told["budget"]:
        out.say(f"tier {budget['tier']}: {budget.get('reason', 'as set')}")
    asked = "not asked" if not judged["asked"] else "higher is better"
    out.say(f"\nanswers, verifier {judged['name']} ({asked})")
    rows = [(whose, short(told["answers"][whose], 40), _score(judged[whose])) for whose in ("memory", "zero_shot")]
    for one in told.get("heard", []):
        whose = f"{one['memory_id']}, in words" if one.get("in_words") else one["memory_id"]
        rows.append((whose, short(one["answer"], 40), _score(one["score"])))
    for key, whose in (("example", "after its example"), ("by_prompt", "by its prompt")):
        if (said := told.get(key)) is not None:
            rows.append((whose, short(said["answer"], 40), _score(said["score"])))
    out.table(("candidate", "answer", "score"), rows)
    out.say(f"\nroute {told['route']}: {told['why']}")


def _abstention(fitted: Mapping[str, Any]) -> str:
    even = fitted["threshold"]
    near = "similarity says nothing" if even is None else f"at utility 0 from similarity {even:.3f} on"
    return f"a chance of at least {fitted['min_chance']:g} to help, {near}; calibrated on {fitted['uses']} uses"


def _row(one: Mapping[str, Any]) -> tuple[Any, ...]:
    used = "yes" if one["used"] else "" if one["above_threshold"] else "below"
    numbers = [float(one[name]) for name in ("similarity", "utility", "deviation", "explored", "score")]
    counts = "/".join(f"{one[name]:g}" for name in ("helped", "same", "hurt"))
    return one["memory_id"], used, one["nearness"], *numbers, _score(one["chance"]), counts, one["uses"]


def _score(value: float | None) -> str | float:
    return "-" if value is None else float(value)
