"""What choosing and retrieving did: the confusion of routes, and how memories were used. Pure functions of lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from elm_agent.bench.evidence.lines import (
    MEMORY,
    ZERO_SHOT,
    Key,
    Lines,
    Share,
    accuracy,
    candidate_right,
    grouped,
    judged,
    key_of,
)
from elm_agent.bench.evidence.paired import Concentration, concentration
from elm_agent.records import MemoryState, Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """What a choice between a plain and a memory answer did. Counts of judged answers.

    ``memory_right``: they differed and only the memory's was right, and so on.
    """

    routes: Mapping[str, int]  # of all answered questions
    agreed: Share  # right ones, of those that agreed
    memory_right: int
    zero_shot_right: int
    both_wrong: int
    both_right: int  # right by the reference, yet not equivalent to each other
    unjudged: int
    verifier: Share  # the right one was chosen, of those where just one was right
    preferred_memory: int  # among all that differed


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """What one memory did; counts over the answers for which it was retrieved."""

    seed: int
    memory_id: str
    memory_item: str | None
    uses: int
    fixed: int
    broken: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """How often memories were retrieved, and how unevenly: ``concentration`` of each seed."""

    retrieved: Share  # questions with a memory, of those answered
    memories: int  # that were kept, over all seeds
    retrievable: int  # of those: the ones that could serve
    concentration: Mapping[int, Concentration]
    uses: tuple[MemoryUse, ...]  # the most used first


def routing(answers: Lines) -> Routing | None:
    """None for a method that never chooses between a plain and a memory answer."""
    known = judged(answers)
    differing = [line for line in known if line.route in (Route.MEMORY, Route.ZERO_SHOT)]
    agreed = [line for line in known if line.route == Route.AGREED]
    if all(line.route in (None, Route.NO_MEMORY) for line in answers):
        return None
    sides = [(candidate_right(line, MEMORY), candidate_right(line, ZERO_SHOT)) for line in differing]
    counts = Counter(sides)
    one_right = [line for line, (a, b) in zip(differing, sides, strict=True) if {a, b} == {True, False}]
    return Routing(
        routes=dict(Counter(str(line.route) for line in answers if line.route)),
        agreed=accuracy(agreed),
        memory_right=counts[True, False],
        zero_shot_right=counts[False, True],
        both_wrong=counts[False, False],
        both_right=counts[True, True],
        unjudged=sum(None in side for side in sides),
        verifier=accuracy(one_right),
        preferred_memory=sum(line.route == Route.MEMORY for line in differing),
    )


def retrieval(answers: Lines, learned: Lines, reference: Mapping[Key, bool]) -> Retrieval | None:
    """None for a method that neither retrieves nor keeps memories."""
    made = {(line.seed, line.memory_id) for line in learned if line.memory_id and line.failure is None}
    served = [line for line in answers if line.memory_id]
    if not made and not served:
        return None
    uses = memory_uses(served, reference)
    able = _able(learned, served)
    pools = Counter(seed for seed, _ in able)
    return Retrieval(
        retrieved=Share.of(len(served), len(answers)),
        memories=len(made),
        retrievable=len(able),
        concentration={
            seed: concentration([use.uses for use in uses if use.seed == seed], pool=pools[seed])
            for seed in sorted({line.seed for line in answers})
        },
        uses=uses,
    )


def _able(learned: Lines, served: Lines) -> set[tuple[int, str]]:
    """Seed and id of what could be retrieved: candidates and those in quarantine never are, unless they did serve."""
    active = (line for line in learned if line.failure is None and line.state in (None, MemoryState.ACTIVE))
    return {(line.seed, line.memory_id) for line in (*active, *served) if line.memory_id}


def memory_uses(served: Lines, reference: Mapping[Key, bool]) -> tuple[MemoryUse, ...]:
    """How often each memory was retrieved, and what the answers were beside ``reference``; the most used first."""
    found = []
    for (seed, memory_id), part in grouped(served, lambda line: (line.seed, line.memory_id or "")).items():
        pairs = [(bool(line.correct), reference.get(key_of(line))) for line in judged(part)]
        found.append(
            MemoryUse(
                seed=seed,
                memory_id=memory_id,
                memory_item=part[0].memory_item,
                uses=len(part),
                fixed=pairs.count((True, False)),
                broken=pairs.count((False, True)),
            )
        )
    return tuple(sorted(found, key=lambda use: (-use.uses, use.seed, use.memory_id)))
