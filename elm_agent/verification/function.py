"""A verifier made of any function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from elm_agent.errors import VerificationError
from elm_agent.records import Candidate, Verdict
from elm_agent.verification.verdicts import verdict


class CallableVerifier:
    """``fn(question, candidate)`` gives the score of one candidate; higher is better."""

    def __init__(self, fn: Callable[[str, Candidate], float], *, name: str = "callable") -> None:
        self.name = name
        self._fn = fn

    def score(self, question: str, candidates: Sequence[Candidate]) -> list[Verdict]:
        """One verdict for each candidate. Raises ``VerificationError`` when ``fn`` raises or returns no number."""
        return [verdict(self._call(question, item), verifier=self.name) for item in candidates]

    def _call(self, question: str, candidate: Candidate) -> object:
        try:
            return self._fn(question, candidate)
        except Exception as error:  # somebody else's code may raise anything
            raise VerificationError(f"verifier {self.name!r} raised {type(error).__name__}: {error}") from error
