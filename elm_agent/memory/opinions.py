"""Further memories are heard where the nearest one's answer and the plain one differ: all answers vote.

A tie is the verifier's, so without a further memory this is the choice between two (METHOD section 3); or the plain
answer stands unless another leads it. Numbers and texts in, a choice out; generates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from elm_agent.errors import VerificationError
from elm_agent.memory.answering import Decision, joined
from elm_agent.protocols import Task, Verifier
from elm_agent.records import Candidate, Route
from elm_agent.tasks.votes import group_answers

MEMORY, PLAIN, FIRST = 0, 1, 2
"""Places among those that vote: the nearest memory's answer, the plain one, and from where on the opinions stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What came of it: ``votes`` of ``voters`` gave the answer that is returned.

    ``opinions``: as they came, with the verifier's scores where it was asked. ``speaker``: place among them of the
    one that stands for the memories now; None: the nearest one does.
    """

    decision: Decision
    votes: int
    voters: int
    opinions: tuple[Candidate, ...] = ()
    speaker: int | None = None


def undecided(decided: Decision) -> bool:
    """Whether two different answers stand against each other, so that others may be heard."""
    memory, plain = decided.memory, decided.zero_shot
    differ = decided.route in (Route.MEMORY, Route.ZERO_SHOT)
    return differ and memory is not None and memory.answer is not None and plain.answer is not None


def hear(
    question: str,
    decided: Decision,
    opinions: Sequence[Candidate],
    task: Task,
    verifier: Verifier,
    *,
    lead: int = 0,
) -> Heard:
    """Let both candidates and the opinions of further memories vote.

    An answer that most of them gave is returned; of several that equally many gave, the one that the verifier scores
    highest, where of equals the plain one stands. An opinion that wins against both candidates takes the place of the
    memory's. ``decided``: for which ``undecided`` holds. ``lead``: votes by which an answer has to be ahead of the
    plain one, which stands otherwise.

    Raises:
        TaskError, VerificationError: answers cannot be compared, or a tie cannot be settled.
    """
    assert decided.memory is not None
    voters = [decided.memory, decided.zero_shot, *opinions]
    classes = group_answers([one.answer for one in voters], task.equivalent).classes
    most = max(map(len, classes))
    tied = [members for members in classes if len(members) == most]
    plain = next(members for members in classes if PLAIN in members)
    winners, scores = tied[0], {}
    if most - len(plain) < lead:
        winners = plain
    elif len(tied) > 1:
        scores = _scores(question, voters, sorted(place for members in tied for place in members), verifier)
        winners = max(tied, key=lambda members: (max(scores[place] for place in members), PLAIN in members))
    settled = f"{len(winners)} of {len(voters)} answers say {str(voters[winners[0]].answer)[:80]!r}"
    if scores:
        settled += f", the verifier's choice of {len(tied)} such"
    elif most > len(plain) and winners is plain:
        settled += f", and no other leads it by {lead}"
    voters[FIRST:] = [replace(one, score=scores.get(place)) for place, one in enumerate(opinions, FIRST)]
    decision, speaker = _spoken(replace(decided, reason=joined(decided.reason, settled)), voters, winners)
    return Heard(
        decision=decision, votes=len(winners), voters=len(voters), opinions=tuple(voters[FIRST:]), speaker=speaker
    )


def stay(decided: Decision) -> Decision:
    """The plain answer, for which ``undecided`` holds."""
    return replace(decided, route=Route.ZERO_SHOT, answer=decided.zero_shot.answer, text=decided.zero_shot.text)


def stood(said: Candidate, decision: Decision, task: Task) -> Route:
    """How the answer of a memory that was heard stood beside the plain one, if what was returned is right.

    Both are it: ``agreed``; one of them is: ``memory`` or ``zero_shot``; neither: ``outvoted``. Where they cannot be
    compared: ``failed_memory``, which says nothing of the memory.
    """
    try:
        own, plain = (
            one.answer is not None and decision.answer is not None and task.equivalent(one.answer, decision.answer)
            for one in (said, decision.zero_shot)
        )
    except Exception:  # noqa: BLE001 - a task of one's own may raise anything
        return Route.FAILED_MEMORY
    if own:
        return Route.AGREED if plain else Route.MEMORY
    return Route.ZERO_SHOT if plain else Route.OUTVOTED


def _scores(
    question: str, voters: Sequence[Candidate], places: Sequence[int], verifier: Verifier
) -> dict[int, float]:
    verdicts = verifier.score(question, [voters[place] for place in places])
    if len(verdicts) != len(places):
        raise VerificationError(f"expected {len(places)} verdicts; got {len(verdicts)}")
    return {place: float(verdict.score) for place, verdict in zip(places, verdicts, strict=True)}


def _spoken(decided: Decision, voters: Sequence[Candidate], winners: Sequence[int]) -> tuple[Decision, int | None]:
    """The decision for the class of ``winners``, and which opinion speaks for the memories from now on."""
    if PLAIN in winners:
        return stay(decided), None
    speaker = voters[winners[0]]
    decision = replace(decided, route=Route.MEMORY, answer=speaker.answer, text=speaker.text, memory=speaker)
    return decision, None if winners[0] == MEMORY else winners[0] - FIRST
