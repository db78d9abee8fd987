"""What an answer may cost: the memory's row alone, both, or both with samples and a vote. Numbers in, a choice out.

The gain of a tier is how much more often its answer is right than the plain one, as far as the memory's uses tell: it
helps in a share h of uses and hurts in a share x, and a judge that is right with probability q lets it help in q h
and hurt in (1 - q) x of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from elm_agent.memory.abstention import fraction_of
from elm_agent.memory.answering import Decision, joined
from elm_agent.protocols import Task
from elm_agent.records import Candidate, Route, Tier
from elm_agent.storage.posterior import Posterior
from elm_agent.tasks.votes import majority

Wanted = Literal["auto", "cheap", "normal", "thorough"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """See ``BudgetSettings`` for units and reasons. ``verifier_accuracy``: of two answers it takes the better one."""

    tier: Wanted = "normal"
    cheap_uses: int = 10
    cheap_utility: float = 0.0
    cheap_width: float = 1.64
    compare: float = 0.1
    samples: int = 4
    verifier_accuracy: float = 0.625
    vote_accuracy: float = 0.75
    row_price: float = 0.03
    seed: int = 0

    def rows(self, tier: Tier) -> int:
        """How many rows an answer of this tier generates."""
        return {Tier.CHEAP: 1, Tier.NORMAL: 2, Tier.THOROUGH: 2 + self.samples}[tier]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """``reason``: why this tier, in one clause. ``gains``: of those that were weighed, less the price of the rows."""

    tier: Tier
    reason: str
    gains: tuple[tuple[Tier, float], ...] = ()


def choose(
    question: str, worth: Posterior | None, by: Budget, *, wanted: Wanted, chance: float | None = None
) -> Chosen:
    """The tier of one answer.

    ``worth``: of the memory that was retrieved; None: there is none. ``chance``: that it helps rather than hurts on
    this very question, where that is calibrated. Cheap is only what is proven, whoever asks for it.
    """
    if wanted == "thorough":
        return Chosen(tier=Tier.THOROUGH, reason="it was asked for")
    if wanted == "normal" or worth is None:
        return Chosen(tier=Tier.NORMAL, reason="it was asked for" if wanted == "normal" else "there is no memory")
    doubt = doubt_of(worth, by)
    if doubt is None and fraction_of("compare", by.seed, question) < by.compare:
        doubt = "this question is one of those that are answered twice all the same"
    if wanted == "cheap":
        if doubt is not None:
            return Chosen(tier=Tier.NORMAL, reason=f"cheap was asked for, but {doubt}")
        return Chosen(tier=Tier.CHEAP, reason=_proven(worth, by))
    tiers = (Tier.CHEAP, Tier.NORMAL, Tier.THOROUGH) if doubt is None else (Tier.NORMAL, Tier.THOROUGH)
    nets = tuple((tier, gain_of(tier, worth, by, chance=chance) - by.row_price * by.rows(tier)) for tier in tiers)
    best, net = max(nets, key=lambda pair: pair[1])  # of equals the first, which is the cheaper
    return Chosen(
        tier=best, reason=f"its expected gain, less the price of its rows, is the most: {net:+.3f}", gains=nets
    )


def doubt_of(worth: Posterior, by: Budget) -> str | None:
    """Why the memory's utility is not proven, in one clause; None: it is."""
    if worth.uses < by.cheap_uses:
        return f"the memory has {worth.uses} uses that told something, cheap_uses is {by.cheap_uses}"
    if (surely := at_least(worth, by.cheap_width)) < by.cheap_utility:
        return f"the memory's utility is surely only {surely:.3f}, cheap_utility is {by.cheap_utility:.3f}"
    return None


def at_least(worth: Posterior, width: float) -> float:
    """The expected utility less ``width`` standard deviations."""
    return worth.utility - width * worth.deviation


def gain_of(tier: Tier, worth: Posterior, by: Budget, *, chance: float | None = None) -> float:
    """How much more often the tier's answer is right than the plain one, expected, in [-1, 1].

    ``chance`` splits anew the share of uses in which the memory made a difference.
    """
    total = worth.helped + worth.same + worth.hurt
    helps, hurts = worth.helped / total, worth.hurt / total
    if chance is not None:
        helps, hurts = (helps + hurts) * chance, (helps + hurts) * (1.0 - chance)
    if tier is Tier.CHEAP:
        return helps - hurts  # nobody judges
    right = by.verifier_accuracy if tier is Tier.NORMAL else by.vote_accuracy
    return right * helps - (1.0 - right) * hurts


@dataclass(frozen=True, slots=True)
class Sample:
    """A further completion of the plain model."""

    text: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class Tally:
    """How many of all that voted gave the answer that won; a text without an answer votes for nothing."""

    votes: int
    voters: int


def vote(decided: Decision, samples: Sequence[Sample], task: Task) -> tuple[Decision, Tally]:
    """Let the answers of both candidates and of samples vote; what was decided stands where nothing beats it.

    The route goes on telling how the two candidates stood: of two that differed it names the one that the vote agrees
    with. An answer that only samples gave is the plain model's, so there it is ``zero_shot``.
    Raises ``TaskError`` where the task cannot compare.
    """
    plain = decided.zero_shot
    pair = [plain] if decided.memory is None else [decided.memory, plain]
    if decided.route is not Route.MEMORY:
        pair.reverse()  # of equals the earliest wins: the one that was decided for
    voters: list[Candidate | Sample] = [*pair, *samples]
    found = majority([one.answer for one in voters], task.equivalent)
    tally = Tally(len(found.members), len(voters))
    said = f"{tally.votes} of {tally.voters} votes for {str(found.answer)[:80]!r}"
    if not found.members or 0 in found.members:
        return replace(decided, reason=joined(decided.reason, said if found.members else None)), tally
    winner, route = voters[found.members[0]], decided.route
    if route in (Route.MEMORY, Route.ZERO_SHOT):
        route = Route.MEMORY if winner is decided.memory else Route.ZERO_SHOT
    reason = joined(decided.reason, f"{said}, against {str(decided.answer)[:80]!r}")
    return replace(decided, route=route, answer=winner.answer, text=winner.text, reason=reason), tally


def _proven(worth: Posterior, by: Budget) -> str:
    return (
        f"the memory is proven: utility {worth.utility:.3f}, surely {at_least(worth, by.cheap_width):.3f}, in "
        f"{worth.uses} uses"
    )
