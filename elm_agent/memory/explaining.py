"""Why an answer is what it is: every candidate's score in parts, both verifier scores, and the route in one sentence.

Plain values only, so that it travels through a graph's state and into JSON. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elm_agent.memory.ranking import Ranked, Ranking
from elm_agent.records import Route


def plain_scores(considered: Sequence[Ranked]) -> list[dict[str, Any]]:
    """One dict for each candidate, best first: the parts of its score as plain numbers."""
    return [
        {
            "memory_id": one.hit.memory_id,
            "namespace": one.hit.namespace,
            "rank": place,
            "nearness": one.nearness,
            "similarity": one.hit.similarity,
            "helped": one.posterior.helped,
            "same": one.posterior.same,
            "hurt": one.posterior.hurt,
            "uses": one.posterior.uses,
            "utility": one.posterior.utility,
            "deviation": one.posterior.deviation,
            "explored": one.explored,
            "score": one.score,
        }
        for place, one in enumerate(considered, start=1)
    ]


def explanation(
    *,
    ranking: Ranking,
    top_k: int,
    threshold: float,
    considered: Sequence[Mapping[str, Any]],
    memory_id: str | None,
    route: Route,
    reason: str | None,
    verifier: str,
    memory: Mapping[str, Any] | None,
    zero_shot: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``ask --explain`` shows.

    Args:
        considered: of ``plain_scores``. memory_id: the memory that was used, or None.
        memory, zero_shot: both candidates as dicts; their ``score`` is None where no verifier was asked.
    """
    scores = None if memory is None else memory["score"]
    return {
        "route": route.value,
        "why": why(route, reason, verifier=verifier, memory=scores, zero_shot=zero_shot["score"]),
        "retrieval": {
            "ranking": ranking.how,
            "weight": ranking.weight,
            "looked_at": top_k,
            "threshold": threshold,
            "candidates": [
                {**one, "above_threshold": one["similarity"] >= threshold, "used": one["memory_id"] == memory_id}
                for one in considered
            ],
        },
        "verifier": {
            "name": verifier,
            "asked": scores is not None,
            "memory": scores,
            "zero_shot": zero_shot["score"],
        },
        "answers": {"memory": None if memory is None else memory["answer"], "zero_shot": zero_shot["answer"]},
    }


def why(route: Route, reason: str | None, *, verifier: str, memory: float | None, zero_shot: float | None) -> str:
    """One sentence: why this route was taken. ``memory``, ``zero_shot``: the verifier's scores, if it was asked."""
    match route:
        case Route.AGREED:
            said = "both answers mean the same, so no verifier was asked"
        case Route.NO_MEMORY:
            said = "no memory was used"
        case Route.FAILED_MEMORY:
            said = "the way over the memory failed, so the plain answer stands"
        case Route.MEMORY | Route.ZERO_SHOT:
            said = _compared(route, verifier, memory, zero_shot)
    return said if reason is None else f"{said}: {reason}"


def _compared(route: Route, verifier: str, memory: float | None, zero_shot: float | None) -> str:
    taken = "the memory's answer was taken" if route is Route.MEMORY else "the plain answer was taken"
    if memory is None or zero_shot is None:
        return f"{taken} without asking the verifier"
    return f"{taken}, for verifier {verifier!r} gave the memory's {memory:.4g} and the plain one {zero_shot:.4g}"
