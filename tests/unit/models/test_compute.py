"""The thread that computes for all."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from elm_agent.models.compute import ComputeThread


def test_everybody_computes_on_one_thread_and_has_its_own_result() -> None:
    compute, seen, results = ComputeThread(), set(), {}

    def use(number: int) -> None:
        def work() -> int:
            seen.add(threading.current_thread())
            return number * number

        results[number] = compute.run(work)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {number: number * number for number in range(8)}
    (thread,) = seen
    assert thread not in {*threads, threading.current_thread()}
    assert compute.run(lambda: compute.run(threading.current_thread)) is thread  # also from within


def test_gradients_are_wanted_there_as_here() -> None:
    compute = ComputeThread()
    assert compute.run(torch.is_grad_enabled)
    with torch.no_grad():
        assert not compute.run(torch.is_grad_enabled)
    leaf = torch.ones(3, requires_grad=True)
    compute.run(lambda: (leaf * 2).sum()).backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [2, 2, 2]


def test_what_goes_wrong_is_raised_here_and_the_thread_goes_on() -> None:
    compute = ComputeThread()

    def fail() -> None:
        raise KeyError("there")

    with pytest.raises(KeyError, match="there"):
        compute.run(fail)
    assert compute.run(lambda: 5) == 5


def test_the_thread_ends_with_its_owner() -> None:
    compute = ComputeThread()
    thread = compute.run(threading.current_thread)
    del compute
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_a_closed_one_has_no_thread_until_it_is_used_again() -> None:
    compute = ComputeThread()
    compute.close()
    first = compute.run(threading.current_thread)
    compute.close()
    compute.close()
    assert not first.is_alive()
    second = compute.run(threading.current_thread)
    assert second is not first
    compute.close()
    assert not second.is_alive()


def test_an_interrupt_waits_until_the_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    compute, done = ComputeThread(), threading.Event()

    def work() -> None:
        time.sleep(0.2)
        done.set()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("elm_agent.models.compute.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compute.run(work)
    assert done.is_set()


def test_each_work_is_done_in_what_it_was_given_and_its_result_comes_after() -> None:
    order: list[str] = []

    @contextmanager
    def around() -> Iterator[None]:
        order.append("in")
        try:
            yield
        finally:
            time.sleep(0.05)
            order.append("out")

    compute = ComputeThread(around)
    compute.run(lambda: order.append("work"))
    assert order == ["in", "work", "out"]
    with pytest.raises(ZeroDivisionError):
        compute.run(lambda: 1 // 0)
    assert order[3:] == ["in", "out"]
    compute.close()
