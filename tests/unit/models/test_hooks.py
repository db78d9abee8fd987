"""Hooks of one thread while another uses the same modules."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from elm_agent.models.hooks import hooked


def test_another_thread_does_not_meet_them() -> None:
    double, ones = nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    torch.nn.init.constant_(double.weight, 2.0)
    with ThreadPoolExecutor(1) as other, torch.no_grad():
        with hooked([(double, lambda _module, _inputs, output: output + 1)]):
            assert double(ones).item() == 3
            assert other.submit(double, ones).result(timeout=60).item() == 2
        assert double(ones).item() == 2


def test_they_are_gone_when_a_pass_fails_and_one_that_returns_nothing_changes_nothing() -> None:
    layer = nn.Identity()

    def fail() -> None:
        with hooked([(layer, lambda *_: None)]):
            assert layer(torch.ones(1)).item() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not layer._forward_hooks


def test_they_come_and_go_while_others_are_in_a_pass() -> None:
    layer, stop = nn.Identity(), threading.Event()

    def come_and_go(add: float) -> set[float]:
        found = set()
        while not stop.is_set():
            with hooked([(layer, lambda _module, _inputs, output: output + add)]):
                found.add(layer(torch.zeros(1)).item())
        return found

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(partial(come_and_go, float(add))) for add in range(1, 5)]
        try:
            plain = {layer(torch.zeros(1)).item() for _ in range(3000)}
        finally:
            stop.set()
    assert plain == {0.0}
    assert [future.result() for future in found] == [{1.0}, {2.0}, {3.0}, {4.0}]


def test_a_pass_that_fails_says_why_while_hooks_come_and_go() -> None:
    class Failing(nn.Module):
        def forward(self, _rows: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError

    layer, stop = Failing(), threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            with hooked([(layer, lambda *_: None)]):
                pass

    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(come_and_go) for _ in range(3)]
        try:
            with hooked([(layer, lambda *_: None)]):
                for _ in range(3000):
                    with pytest.raises(torch.OutOfMemoryError):
                        layer(torch.zeros(1))
        finally:
            stop.set()
    assert all(other.exception() is None for other in others)
