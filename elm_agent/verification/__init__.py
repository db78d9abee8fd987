"""Verifiers: which of two different answers is the better one (METHOD section 3).

Knows candidates and models by their contracts; knows nothing of memories or routes. A failure raises
``VerificationError``; it never becomes a score. One of your own fits ``protocols.Verifier``.
"""

from elm_agent.verification.confidence import MeanLogprob, SelfCertainty
from elm_agent.verification.function import CallableVerifier
from elm_agent.verification.prm import ProcessReward
from elm_agent.verification.samples import MajorityOfSamples, draw_texts

__all__ = ["CallableVerifier", "MajorityOfSamples", "MeanLogprob", "ProcessReward", "SelfCertainty", "draw_texts"]
