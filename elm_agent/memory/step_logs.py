"""Observed steps as log records of level INFO, on the logger ``elm_agent.steps``: which answer, job and memory.

Texts are not logged, for what is forgotten must be nowhere: ids, numbers, routes and states alone. Knows the names of
``ANSWER_STEPS`` and of the worker's, nothing of who tells them or of how records are written.
"""

from __future__ import annotations

import logging
from typing import Any

from elm_agent.protocols import Observer

logger = logging.getLogger("elm_agent.steps")

_KEPT = {
    "answer.retrieved": ("memory_id", "memory_namespace", "similarity", "seconds"),
    "answer.routed": ("route", "seconds"),
    "answer.noted": ("use_id", "job_id", "seconds"),
    "answer.failed": ("node",),
    "job.claimed": ("attempt",),
    "job.done": ("memory_id", "state"),
    "job.replayed": ("replay_id",),
    "job.refitted": ("calibration",),
    "job.failed": (),
    "job.cancelled": (),
    "job.released": (),
    "job.lost": (),
}


def step_logs() -> Observer | None:
    """An observer that logs; None where nobody listens at that level, so that nothing is measured in vain."""
    return _log if logger.isEnabledFor(logging.INFO) else None


def _log(name: str, detail: dict[str, Any]) -> None:
    kept = _KEPT.get(name)
    if kept is not None:
        fields = ("answer_id", "job_id", "namespace", *kept)
        logger.info(name, extra={field: detail[field] for field in fields if detail.get(field) is not None})
