"""Random histories of a bank on every back end, beside plain dictionaries.

    TMPDIR=/dev/shm ELM_STEPS=10000 ELM_SEED=1 pytest -s tests/stateful

runs that many steps on each back end, and prints how many it were, of which kind, and how long they took.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from bank_beside_model import Steps
from bank_places import BACK_ENDS, BackEnd, Places
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from job_rules import JobRules
from memory_rules import MemoryRules
from whole_rules import WholeRules

STEPS = int(os.environ.get("ELM_STEPS", "90"))
SEED = int(os.environ.get("ELM_SEED", "0"))
MANY = STEPS > 1000
LENGTH = 100 if MANY else 50  # steps of one history


class Histories(JobRules, MemoryRules, WholeRules):
    """Every rule."""


def _marks(back_end: BackEnd) -> list[pytest.MarkDecorator]:
    marked = {"postgres": pytest.mark.postgres, "s3": pytest.mark.s3}
    return [mark for name, mark in marked.items() if name in (back_end.database, back_end.tensors)]


@pytest.fixture(params=[pytest.param(one, id=str(one), marks=_marks(one)) for one in BACK_ENDS])
def places(request: pytest.FixtureRequest) -> Iterator[Places]:
    made = Places(request.param, request)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_a_bank_is_its_model(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    first = SEED + 1000 * BACK_ENDS.index(places.back_end)  # other histories on each
    steps, began, number = Steps(), (time.monotonic(), time.process_time()), first
    while steps.done < STEPS:

        def machine() -> Histories:
            return Histories(places.new(), steps)

        seed(number)(machine)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=max(1, (STEPS - steps.done) // LENGTH),
                stateful_step_count=LENGTH,
                deadline=None,
                database=None,
                phases=(Phase.generate,) if MANY else (Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
        number += 1
    seconds, busy = time.monotonic() - began[0], time.process_time() - began[1]
    with capsys.disabled():
        print(
            f"\n{places.back_end}, seeds {first} to {number - 1}: {steps.done} steps in {steps.histories} histories"
        )
        each = f"{1000 * seconds / steps.done:.1f} ms a step, {1000 * busy / steps.done:.1f} ms of it here at work"
        print(f"  {seconds:.0f} s, {each}; everything compared {steps.compared} times")
        if MANY:  # the doctor at the end of each history is in none of these
            for rule, count in [*steps.of.most_common(), ("(comparing everything)", steps.compared)]:
                print(f"  {rule:24} {count:6} {1000 * steps.seconds[rule] / max(1, count):8.1f} ms each")
