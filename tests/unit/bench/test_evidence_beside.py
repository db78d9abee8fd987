"""Work side by side: what is stored is the same, nobody is charged for another's time, and all end together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evidence_scripts import SETTINGS, Killed, Scripted, Told, answers, carry_out, plan_of, timeless

from elm_agent.bench.evidence import methods
from elm_agent.bench.evidence.beside import Stop, Stopped, side_by_side
from elm_agent.bench.evidence.clock import SharedClock
from elm_agent.bench.evidence.contract import GenerationLine, Item, Outcome, Protocols
from elm_agent.bench.evidence.plan import stands_alone
from elm_agent.errors import StorageError
from elm_agent.testing.doubles import FakeModel

PATIENCE = 60  # seconds; only a test that fails waits so long


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "log", [])
    monkeypatch.setattr(Scripted, "fails", {})
    monkeypatch.setitem(methods.METHODS, "scripted", Scripted)


def in_order(lines: Any) -> list[GenerationLine]:
    return sorted(timeless(lines), key=lambda line: (line.seed, line.position, line.phase))


# --- a clock for all ----------------------------------------------------------------------------------------------


def test_seconds_are_shared_by_who_works() -> None:
    now = [0.0]
    clock = SharedClock(lambda: now[0])
    with clock.working():
        first = clock.read()
        now[0] = 3.0
        assert clock.read() - first == 3.0, "alone: all of it"
        with clock.working():
            second = clock.read()
            now[0] = 7.0
            assert clock.read() - second == 2.0, "two: half of it each"
        now[0] = 8.0
        assert clock.read() - first == 3.0 + 2.0 + 1.0
    now[0] = 20.0
    with clock.working():
        third = clock.read()
        now[0] = 21.0
        assert clock.read() - third == 1.0, "what passed while nobody worked is nobody's"


# --- work ---------------------------------------------------------------------------------------------------------


def meeting(count: int) -> tuple[list[Callable[[], None]], threading.Barrier]:
    """Works that end only when all of them have begun."""
    barrier = threading.Barrier(count)
    return [lambda: barrier.wait(PATIENCE) and None] * count, barrier


def test_as_many_at_a_time_as_allowed() -> None:
    works, barrier = meeting(3)
    side_by_side(works, together=3, stop=Stop())
    assert not barrier.broken
    running, most = [0], [0]
    lock = threading.Lock()

    def work() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.01)
        with lock:
            running[0] -= 1

    side_by_side([work] * 6, together=2, stop=Stop())
    assert most[0] <= 2


def test_one_alone_is_done_on_the_callers_thread() -> None:
    threads: list[threading.Thread] = []
    side_by_side([lambda: threads.append(threading.current_thread())], together=8, stop=Stop())
    side_by_side([lambda: threads.append(threading.current_thread())] * 2, together=1, stop=Stop())
    assert set(threads) == {threading.current_thread()}


@pytest.mark.parametrize("cause", [StorageError("full"), KeyboardInterrupt(), Killed()])
def test_the_first_to_fail_ends_the_others_and_is_raised(cause: BaseException) -> None:
    stop, begun = Stop(), threading.Event()
    ended: list[str] = []

    def fail() -> None:
        begun.wait(PATIENCE)
        raise cause

    def go_on() -> None:
        begun.set()
        try:
            while True:
                stop.check()
                threading.Event().wait(0.001)
        except Stopped:
            ended.append("told to stop")
            raise

    def never() -> None:
        ended.append("begun after the end")

    with pytest.raises(type(cause)) as caught:
        side_by_side([go_on, fail, never], together=2, stop=stop)
    assert caught.value is cause
    assert ended == ["told to stop"]


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [Protocols.ONLINE, Protocols.TRANSFER])
def test_side_by_side_changes_no_line(tmp_path: Path, protocol: Protocols) -> None:
    sources = ("arithmetic:sums",) if protocol is Protocols.TRANSFER else ()
    plan = plan_of("scripted", "verifier_at_2", "zero_shot", seeds=(0, 1, 2), protocol=protocol, sources=sources)
    alone = carry_out(plan, tmp_path / "alone")
    together = carry_out(plan, tmp_path / "together", together=4)
    assert len(alone) == len(together)
    for method in plan.methods:
        assert in_order(line for line in together if line.method == method) == in_order(
            line for line in alone if line.method == method
        )


def test_seeds_of_a_method_meet_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(3)

    class Meeting(Scripted):
        def answer(self, item: Item) -> Outcome:
            barrier.wait(PATIENCE)
            return super().answer(item)

    monkeypatch.setitem(methods.METHODS, "scripted", Meeting)
    lines = carry_out(plan_of("scripted", seeds=(0, 1, 2)), tmp_path, together=3)
    assert len(lines) == 3 * 4 * 2
    assert not barrier.broken


def test_questions_of_a_method_that_learns_nothing_meet_each_other(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    class Meeting(FakeModel):
        def submit(self, request: Any) -> Any:
            barrier.wait(PATIENCE)
            return super().submit(request)

    lines = carry_out(plan_of("zero_shot"), tmp_path, model=Meeting(), together=4)
    assert [line.failure for line in lines] == [None] * 4
    assert not barrier.broken


def test_a_run_side_by_side_that_is_killed_ends_like_one_that_is_not(tmp_path: Path) -> None:
    plan = plan_of("scripted", "zero_shot", seeds=(0, 1, 2))
    whole = in_order(carry_out(plan, tmp_path / "whole"))
    for after in (1, 7, 20, 30):
        out = tmp_path / str(after)
        with pytest.raises(Killed):
            carry_out(plan, out, together=3, observe=Told(kill_after=after))
        lines = carry_out(plan, out, together=3)
        assert in_order(lines) == whole, f"killed after {after} lines"
        assert len({line.name for line in lines}) == len(lines), "something was done twice"
        assert not any(line.failure for line in lines), "the end of a run is no failure of a question"


def test_a_full_disk_ends_all_seeds(tmp_path: Path) -> None:
    done = carry_out(plan_of("scripted", seeds=(5,)), tmp_path / "ids")
    Scripted.fails = {f"learn {done[0].item_id}": StorageError("no space left")}
    with pytest.raises(StorageError, match="no space left"):
        carry_out(plan_of("scripted", seeds=(0, 1, 2)), tmp_path / "run", together=3)
    Scripted.fails = {}
    lines = carry_out(plan_of("scripted", seeds=(0, 1, 2)), tmp_path / "run", together=3)
    assert len(lines) == 3 * 4 * 2
    assert not any(line.failure for line in lines)


def test_what_holds_a_network_of_its_own_stands_alone() -> None:
    assert stands_alone("ttrl", SETTINGS)
    assert stands_alone("elm:full", SETTINGS)
    assert stands_alone("elm_kv:lora+prm", SETTINGS)
    assert not any(stands_alone(name, SETTINGS) for name in ("elm_kv:lora", "elm", "icl", "self_consistency:8"))


# --- answers that no seed changes ---------------------------------------------------------------------------------


def test_greedy_answers_are_generated_once_and_every_seed_is_charged(tmp_path: Path) -> None:
    told: list[str] = []

    class Counting(FakeModel):
        def submit(self, request: Any) -> Any:
            told.append("asked")
            return super().submit(request)

    lines = carry_out(plan_of("zero_shot", seeds=(3, 4)), tmp_path, model=Counting())
    assert len(told) == 4, "each question once"
    of = {seed: {line.item_id: line for line in lines if line.seed == seed} for seed in (3, 4)}
    assert set(of[3]) == set(of[4])
    for item_id, first in of[3].items():
        other = of[4][item_id]
        assert first.detail.get("shared_with_seed") is None
        assert other.detail["shared_with_seed"] == 3
        for field in ("answer", "text", "candidates", "correct", "tokens", "prompt_tokens", "seconds"):
            assert getattr(other, field) == getattr(first, field), field
    assert [line.position for line in lines] == [0, 1, 2, 3] * 2
    assert [line.item_id for line in lines[:4]] != [line.item_id for line in lines[4:]], "the order is the seed's"
    more = carry_out(plan_of("zero_shot", seeds=(5,)), tmp_path, model=Counting())
    assert len(told) == 4
    assert {line.detail["shared_with_seed"] for line in more if line.seed == 5} == {3}, "where it was generated"


def test_samples_and_failures_are_not_shared(tmp_path: Path) -> None:
    told: list[str] = []

    class Failing(FakeModel):
        def submit(self, request: Any) -> Any:
            told.append("asked")
            if len(told) <= 4:
                raise RuntimeError("out of memory")
            return super().submit(request)

    lines = carry_out(plan_of("zero_shot", seeds=(0, 1, 2)), tmp_path / "run", model=Failing())
    assert [line.failure for line in lines[:4]] == ["RuntimeError: out of memory"] * 4
    assert len(told) == 8, "the second seed tried again, the third shares what it found"
    assert {line.detail.get("shared_with_seed") for line in lines[4:8]} == {None}
    assert {line.detail.get("shared_with_seed") for line in lines[8:]} == {1}
    sampled = carry_out(plan_of("verifier_at_2", seeds=(0, 1)), tmp_path / "sampled")
    assert not any("shared_with_seed" in line.detail for line in answers(sampled))
