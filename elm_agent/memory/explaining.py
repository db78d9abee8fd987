"""Why an answer is what it is: every candidate's score in parts, both verifier scores, and the route in one sentence.

Plain values only, so that it travels through a graph's state and into JSON. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elm_agent.memory.abstention import Abstaining
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
            "chance": one.chance,
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
    zero_shot: Mapping[str, Any] | None,
    abstention: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
    heard: Sequence[Mapping[str, Any]] = (),
    example: Mapping[str, Any] | None = None,
    by_prompt: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``ask --explain`` shows.

    Args:
        considered: of ``plain_scores``. memory_id: the memory that was used, or None.
        memory, zero_shot: both candidates as dicts; their ``score`` is None where no verifier was asked.
        abstention: of ``plain_abstention``. budget: the tier, why it was chosen, and its vote.
        heard: memories that answered beside the one that was used: each with its ``candidate`` and ``route``.
        example: what was said after the memory's own example, as a candidate.
        by_prompt: what the memory said without it, where that is not ``memory`` any more.
    """
    scores = None if memory is None else memory["score"]
    plain = None if zero_shot is None else zero_shot["score"]
    least = None if abstention is None else abstention["min_chance"]
    return {
        "route": route.value,
        "why": why(route, reason, verifier=verifier, memory=scores, zero_shot=plain),
        "retrieval": {
            "ranking": ranking.how,
            "weight": ranking.weight,
            "looked_at": top_k,
            "threshold": threshold,
            "candidates": [
                {**one, "above_threshold": _near(one, threshold, least), "used": one["memory_id"] == memory_id}
                for one in considered
            ],
            "abstention": abstention,
        },
        "budget": budget,
        "verifier": {
            "name": verifier,
            "asked": scores is not None,
            "memory": scores,
            "zero_shot": plain,
        },
        "answers": {
            "memory": None if memory is None else memory["answer"],
            "zero_shot": None if zero_shot is None else zero_shot["answer"],
        },
        "heard": [
            {
                "memory_id": one["memory_id"],
                "answer": one["candidate"]["answer"],
                "score": one["candidate"]["score"],
                "route": one["route"],
                "in_words": one.get("in_words", False),
            }
            for one in heard
        ],
        "example": _said(example),
        "by_prompt": _said(by_prompt),
    }


def _said(one: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if one is None else {"answer": one["answer"], "score": one["score"]}


def plain_abstention(by: Abstaining | None) -> dict[str, Any] | None:
    """The calibration in use as plain values; None where there is none."""
    if by is None or by.calibration is None:
        return None
    found = by.calibration
    return {
        "min_chance": by.min_chance,
        "threshold": found.threshold(by.min_chance),  # of similarity, at utility 0
        "intercept": found.intercept,
        "of_similarity": found.of_similarity,
        "of_utility": found.of_utility,
        "uses": found.uses,
        "fitted_at": found.fitted_at.isoformat(),
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
        case Route.MEMORY_ALONE:
            said = "only the memory's answer was generated"
        case Route.DEFERRED:
            said = "the plain answer was taken for now"
        case Route.OUTVOTED:
            said = "another memory's answer was taken"
        case Route.MEMORY | Route.ZERO_SHOT:
            said = _compared(route, verifier, memory, zero_shot)
    return said if reason is None else f"{said}: {reason}"


def _near(one: Mapping[str, Any], threshold: float, min_chance: float | None) -> bool:
    chance = one.get("chance")
    likely = chance is None or min_chance is None or chance >= min_chance
    return bool(one["similarity"] >= threshold and likely)


def _compared(route: Route, verifier: str, memory: float | None, zero_shot: float | None) -> str:
    taken = "the memory's answer was taken" if route is Route.MEMORY else "the plain answer was taken"
    if memory is None or zero_shot is None:
        return f"{taken} without asking the verifier"
    borne = memory > zero_shot if route is Route.MEMORY else memory <= zero_shot  # a vote or a person may differ
    gave = f"verifier {verifier!r} gave the memory's {memory:.4g} and the plain one {zero_shot:.4g}"
    return f"{taken}, {'for' if borne else 'though'} {gave}"
