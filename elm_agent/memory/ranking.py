"""The second phase of retrieval: the nearest memories by similarity, ordered anew by what they are worth.

Numbers only: hits and posteriors in, an order out. What explores is a function of seed, question, memory and
posterior, so the same question on the same bank is always answered alike, in whatever company.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from elm_agent.records import Hit, digest_of, question_digest
from elm_agent.storage.posterior import Posterior, Weights

How = Literal["nearest", "mean", "ucb", "thompson"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """``how``: "nearest" leaves the order of the similarities; "mean" weighs them with the expected utility, "ucb"
    with that and ``ucb_width`` standard deviations more, "thompson" with a draw from the posterior, by ``seed``.

    ``candidates``: how many of the nearest are ordered anew. ``weight``: how much utility moves a score, in [0, 1].
    """

    how: How = "nearest"
    candidates: int = 8
    weight: float = 1.0
    ucb_width: float = 1.0
    seed: int = 0
    weights: Weights = field(default_factory=Weights)

    @property
    def active(self) -> bool:
        return self.how != "nearest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One candidate with each part of its score. ``nearness``: its place by similarity, from 1.

    ``explored``: the utility that the score was made with; the expected one where nothing explores. ``chance``: that
    it helps rather than hurts, where that is calibrated.
    """

    hit: Hit
    nearness: int
    posterior: Posterior
    explored: float
    score: float
    chance: float | None = None


def rank(question: str, hits: Sequence[Hit], worth: Mapping[tuple[str, str], Posterior], by: Ranking) -> list[Ranked]:
    """``hits``, nearest first, in the order of their scores; ties: the nearer first.

    ``worth``: the posterior of each hit, by (namespace, id).
    """
    ranked = []
    for nearness, hit in enumerate(hits, start=1):
        posterior = worth[hit.namespace, hit.memory_id]
        explored = _explored(question, hit, posterior, by)
        score = scored(hit.similarity, explored, by.weight) if by.active else hit.similarity
        ranked.append(Ranked(hit=hit, nearness=nearness, posterior=posterior, explored=explored, score=score))
    return sorted(ranked, key=lambda one: -one.score)


def scored(similarity: float, utility: float, weight: float) -> float:
    """``similarity`` times 1 + ``weight`` * ``utility``; below 0 times 1 - that, so that utility always raises it.

    A memory of utility 0, such as one that was never used, keeps its similarity.
    """
    return similarity * (1.0 + weight * utility if similarity >= 0 else 1.0 - weight * utility)


def _explored(question: str, hit: Hit, posterior: Posterior, by: Ranking) -> float:
    match by.how:
        case "ucb":
            return min(posterior.utility + by.ucb_width * posterior.deviation, 1.0)
        case "thompson":
            return posterior.drawn(_generator(by.seed, question, hit))
    return posterior.utility


def _generator(seed: int, question: str, hit: Hit) -> np.random.Generator:
    digest = digest_of([seed, question_digest(question), hit.namespace, hit.memory_id])
    return np.random.default_rng(int(digest.removeprefix("sha256:"), 16))
