"""Scores that cost nothing: what the model knew of its own text while it wrote it. No second model, no pass."""

from __future__ import annotations

from collections.abc import Sequence

from elm_agent.records import Candidate, Verdict
from elm_agent.verification.verdicts import verdict


class MeanLogprob:
    """The mean log-probability of a candidate's tokens, in nats per token, at most 0."""

    name = "mean_logprob"

    def score(self, question: str, candidates: Sequence[Candidate]) -> list[Verdict]:
        """One verdict for each candidate. Raises ``VerificationError`` when a value is not finite."""
        del question
        return [verdict(item.mean_logprob, verifier=self.name, tokens=item.tokens) for item in candidates]


class SelfCertainty:
    """How far a candidate's token distributions are from uniform, in nats (arXiv 2502.18581)."""

    name = "self_certainty"

    def score(self, question: str, candidates: Sequence[Candidate]) -> list[Verdict]:
        """One verdict for each candidate. Raises ``VerificationError`` when a value is not finite."""
        del question
        return [verdict(item.self_certainty, verifier=self.name, tokens=item.tokens) for item in candidates]
