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

    with lease.training():
        train = threading.Thread(target=use, args=("training",))
        answer = threading.Thread(target=use, args=("answering",))
        train.start(), answer.start()
        ready.wait()
        while not lease._answers_waiting:
            pass
    train.join(10), answer.join(10)
    assert order == ["answering", "training"]


def test_one_holder_at_a_time_and_a_raising_holder_gives_it_back() -> None:
    lease, inside, most = ModelLease(), 0, 0

    def use(kind: str) -> None:
        nonlocal inside, most
        for _ in range(50):
            with getattr(lease, kind)():
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=use, args=(kind,)) for kind in ("training", "answering") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 1

    with pytest.raises(RuntimeError), lease.answering():
        raise RuntimeError
    with lease.training():
        pass


def test_training_goes_on_when_the_answer_it_waits_for_is_interrupted() -> None:
    lease, waiting, give_up, trained = ModelLease(), threading.Event(), threading.Event(), threading.Event()
    wait_for = lease._free.wait_for

    def interrupted(free: Callable[[], bool]) -> bool:
        if threading.current_thread() is not answer:
            return wait_for(free)
        waiting.set()
        while not give_up.is_set():
            lease._free.wait(0.01)
        raise KeyboardInterrupt

    def ask() -> None:
        with pytest.raises(KeyboardInterrupt), lease.answering():
            pass

    def train() -> None:
        with lease.training():
            trained.set()

    lease._free.wait_for = interrupted  # type: ignore[method-assign,assignment]
    answer, training = threading.Thread(target=ask), threading.Thread(target=train, daemon=True)
    answer.start()
    waiting.wait(10)
    training.start()
    assert not trained.wait(0.05)
    give_up.set()
    assert trained.wait(10)
    answer.join(10)
