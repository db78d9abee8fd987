"""Answers go before training."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from elm_agent.models.lease import ModelLease


def test_a_waiting_answer_goes_before_a_waiting_training_step() -> None:
    lease, order, ready = ModelLease(), [], threading.Barrier(3)

    def use(kind: str) -> None:
        ready.wait()
        with getattr(lease, kind)():
            order.append(kind)

    with lease.alone():
        train = threading.Thread(target=use, args=("learning",))
        answer = threading.Thread(target=use, args=("answering",))
        train.start(), answer.start()
        ready.wait()
        while not lease._answers_waiting:
            pass
    train.join(10), answer.join(10)
    assert order == ["answering", "learning"]


def test_one_holder_at_a_time_and_a_raising_holder_gives_it_back() -> None:
    lease, inside, most = ModelLease(), 0, 0

    def use(kind: str) -> None:
        nonlocal inside, most
        for _ in range(50):
            with getattr(lease, kind)():
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [
        threading.Thread(target=use, args=(kind,)) for kind in ("learning", "alone", "answering", "serving") * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 1

    with pytest.raises(RuntimeError), lease.answering():
        raise RuntimeError
    with lease.alone():
        pass


def test_training_goes_on_when_the_answer_it_waits_for_is_interrupted() -> None:
    lease, waiting, give_up, trained = ModelLease(), threading.Event(), threading.Event(), threading.Event()
    wait_for = lease._changed.wait_for

    def interrupted(free: Callable[[], bool]) -> bool:
        if threading.current_thread() is not answer:
            return wait_for(free)
        waiting.set()
        while not give_up.is_set():
            lease._changed.wait(0.01)
        raise KeyboardInterrupt

    def ask() -> None:
        with pytest.raises(KeyboardInterrupt), lease.answering():
            pass

    def train() -> None:
        with lease.alone():
            trained.set()

    lease._changed.wait_for = interrupted  # type: ignore[method-assign,assignment]
    answer, training = threading.Thread(target=ask), threading.Thread(target=train, daemon=True)
    answer.start()
    waiting.wait(10)
    training.start()
    assert not trained.wait(0.05)
    give_up.set()
    assert trained.wait(10)
    answer.join(10)


def test_with_overlap_rows_are_drawn_while_a_memory_is_updated() -> None:
    lease = ModelLease(overlap=True)
    with lease.learning() as update, lease.serving() as draw:
        assert update(threading.current_thread) is not draw(threading.current_thread)
    with lease.serving() as draw, lease.answering() as update:
        assert update(threading.current_thread) is not draw(threading.current_thread)
    lease.close()


def test_without_overlap_all_work_is_done_on_one_thread() -> None:
    lease, threads = ModelLease(), set()
    for holding in (lease.serving, lease.answering, lease.learning):
        with holding() as run:
            threads.add(run(threading.current_thread))
    assert len(threads) == 1
    lease.close()


@pytest.mark.parametrize("other", ["serving", "learning", "answering"])
@pytest.mark.parametrize("overlap", [False, True])
def test_nobody_is_beside_one_who_is_alone(other: str, overlap: bool) -> None:
    lease = ModelLease(overlap=overlap)

    def hold(kind: str, entered: threading.Event) -> None:
        with getattr(lease, kind)():
            entered.set()

    for first, second in (("alone", other), (other, "alone")):
        entered = threading.Event()
        with getattr(lease, first)():
            threading.Thread(target=hold, args=(second, entered), daemon=True).start()
            assert not entered.wait(0.05)
        assert entered.wait(10)


def test_with_overlap_whoever_wants_to_be_alone_goes_before_rollouts_and_after_answers() -> None:
    lease, order = ModelLease(overlap=True), []

    def hold(kind: str) -> None:
        with getattr(lease, kind)():
            order.append(kind)

    with lease.learning():
        alone = threading.Thread(target=hold, args=("alone",), daemon=True)
        alone.start()
        while not lease._updates_waiting:
            pass
        rollouts = threading.Thread(target=hold, args=("serving",), daemon=True)
        rollouts.start()
        rollouts.join(0.05)
        assert order == []
        lease.expect_answers(1)  # now there is somebody to serve
        rollouts.join(10)
        assert order == ["serving"]
    alone.join(0.05)
    assert order == ["serving"]
    lease.expect_answers(-1)
    alone.join(10)
    assert order == ["serving", "alone"]


def test_with_overlap_nobody_else_learns_or_joins_while_one_waits_to_be_alone() -> None:
    lease, alone, learning = ModelLease(overlap=True), threading.Event(), threading.Event()

    def hold(kind: str, entered: threading.Event) -> None:
        with getattr(lease, kind)():
            entered.set()

    with lease.serving():
        threading.Thread(target=hold, args=("alone", alone), daemon=True).start()
        while not lease.wanted_alone:
            pass
        threading.Thread(target=hold, args=("learning", learning), daemon=True).start()
        assert not learning.wait(0.05)
        assert not alone.is_set()
    assert alone.wait(10)
    assert learning.wait(10)
    assert not lease.wanted_alone
