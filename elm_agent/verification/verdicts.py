"""The one check that every verifier shares: a score is a finite number."""

from __future__ import annotations

import math
from typing import Any

from elm_agent.errors import VerificationError
from elm_agent.records import Verdict


def verdict(score: object, *, verifier: str, **detail: Any) -> Verdict:
    """A verdict of a finite ``score``. Raises ``VerificationError`` for anything else."""
    if isinstance(score, bool | int | float) or hasattr(score, "__float__"):
        number = float(score)
        if math.isfinite(number):
            return Verdict(number, detail)
    raise VerificationError(f"verifier {verifier!r} gave {score!r:.80}: expected a finite number")
