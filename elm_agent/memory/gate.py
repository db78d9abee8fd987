"""Admission: may a freshly trained memory serve, or is it only kept? The one place where the criteria are applied.

Sees the training and what a probe tells, never a reference answer. What goes wrong with the probe costs no memory:
it is kept as a candidate, with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from elm_agent.errors import JobCancelled, LeaseLost
from elm_agent.memory.admission import Rules, Ruling, of_curve, of_probe, of_training, ruling
from elm_agent.memory.answering import describe
from elm_agent.protocols import Observer, Trained
from elm_agent.records import AWAITS_REVIEW, JobRecord, MemoryState, Recipe, Review, StepRecord

if TYPE_CHECKING:
    from elm_agent.memory.probe import Probe
    from elm_agent.storage.bank import Bank

logger = logging.getLogger(__name__)


def admit(curve: Sequence[StepRecord], recipe: Recipe) -> tuple[MemoryState, str | None]:
    """``active``, or ``candidate`` with the reason, by what is asked of every memory.

    Without an answer in any step nothing was voted on, so nothing was learnt; and a final vote share below
    ``recipe.min_vote_share`` means that the memory disagrees with itself.
    """
    found = ruling(of_curve(curve, min_vote_share=recipe.min_vote_share))
    return found.state, found.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """``rules``: what the training has to show. ``probe``: what it is tried with afterwards; None: nothing.

    ``review``: whether what they admit waits for a person; what they do not admit, nobody is asked about.
    """

    rules: Rules = field(default_factory=Rules)
    probe: Probe | None = None
    review: bool = False

    def judge(
        self, bank: Bank, job: JobRecord, trained: Trained, *, observe: Observer, cancelled: Callable[[], bool]
    ) -> Ruling:
        """What becomes of the memory. ``observe`` is told ``probe.done``, or ``probe.failed`` with the reason.

        A memory that the training alone speaks against is not probed: that would cost tokens and change nothing.

        Raises:
            JobCancelled: ``cancelled()`` became true while it was probed.
            TrainingError: there is no step.
        """
        found = self._judged(bank, job, trained, observe=observe, cancelled=cancelled)
        if not self.review or found.state is not MemoryState.ACTIVE:
            return found
        return replace(found, state=MemoryState.CANDIDATE, reason=AWAITS_REVIEW, review=Review.WAITING)

    def _judged(
        self, bank: Bank, job: JobRecord, trained: Trained, *, observe: Observer, cancelled: Callable[[], bool]
    ) -> Ruling:
        findings = of_training(trained, self.rules, min_vote_share=job.recipe.min_vote_share)
        first = ruling(findings)
        if self.rules == Rules() and self.probe is None:
            return Ruling(state=first.state, reason=first.reason)  # nothing that the curve does not say
        if self.probe is None or first.state is not MemoryState.ACTIVE:
            return first
        try:
            result = self.probe(bank, job, trained, cancelled=cancelled)
        except (JobCancelled, LeaseLost):
            raise
        except Exception as error:
            ids = {"job_id": job.id, "namespace": job.namespace}
            logger.warning("job %s: the probe failed", job.id, exc_info=error, extra=ids)
            observe("probe.failed", {"reason": describe(error)})
            reason = f"the probe failed: {describe(error)}"
            return Ruling(state=MemoryState.CANDIDATE, reason=reason, findings=tuple(findings))
        findings += of_probe(result, may_lose=self.rules.probe_may_lose)
        observe("probe.done", {"tokens": result.tokens, "seconds": result.seconds, "questions": 1 + result.past})
        return ruling(findings, result)
