"""``python fake_elm.py …`` is ``elm-agent …`` with a model and a trainer that only pretend.

Standard settings and a real bank, graph, queue and worker. ``FAKE_STEP_SECONDS`` slows a training step down and
``FAKE_ANSWER_SECONDS`` an answer. ``FAKE_STEPS_BEGUN`` names a file that gets a line at the beginning of each step.
"""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Any

import elm_agent.runtime
from elm_agent.testing.doubles import FakeModel, FakeTrainer, FixedVerifier

REAL = elm_agent.runtime.open_runtime


def reply(prompt: str, memory_id: str | None) -> str:
    """Products: right with any memory, wrong without."""
    time.sleep(float(os.environ.get("FAKE_ANSWER_SECONDS", "0")))
    found = re.search(r"(\d+) times (\d+)", prompt)
    if found is None:
        return "no idea"
    return f"\\boxed{{{int(found[1]) * int(found[2]) + (memory_id is None)}}}"


def open_fake_runtime(settings: Any, **options: Any) -> Any:
    def slow(step: int) -> None:
        if begun := os.environ.get("FAKE_STEPS_BEGUN"):
            with open(begun, "a") as file:
                file.write(f"{step}\n")
        time.sleep(float(os.environ.get("FAKE_STEP_SECONDS", "0")))

    trainer = FakeTrainer(before_step=slow)
    model = FakeModel(reply=reply, context_length=400)
    return REAL(settings, model=model, trainer=trainer, verifier=FixedVerifier(), **options)


if __name__ == "__main__":
    if {"--wait", "worker"} & set(sys.argv):
        import torch  # noqa: F401 - or the learner imports it when the signal comes: Python may stand still then
    from elm_agent.cli import main

    elm_agent.runtime.open_runtime = open_fake_runtime
    main()
