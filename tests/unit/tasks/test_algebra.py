"""Algebra in the worker process: verdicts, limits, restarts, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

import elm_agent.tasks as tasks
from elm_agent.errors import TaskError
from elm_agent.tasks import MathTask, algebra
from elm_agent.tasks.algebra import Algebra, Timeout

HARD = "9^{9^{9^{9}}}"
"""Sympy does not come back from this."""


class Interrupted:
    """A pipe whose reader is interrupted once."""

    def __init__(self, pipe: IO[str]) -> None:
        self.pipe = pipe
        self.interrupts = 1

    def readline(self) -> str:
        self.interrupts -= 1
        if self.interrupts == 0:
            raise KeyboardInterrupt
        return self.pipe.readline()

    def close(self) -> None:
        self.pipe.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[Algebra]:
    worker = Algebra()
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("56", "7 \\times 8", True),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("x^2+2x+1", "(x-1)^2", False),
        ("2\\frac{1}{2}", "2.5", True),
        ("\\{1, 2\\}", "\\{2, 1\\}", True),
        ("(1, 2)", "(2, 1)", False),
        ("5\\text{ cm}", "5", True),
        ("hello", "world", False),
        ("\\frac{1}{", "}{", False),
        ("x\ud800", "1", False),
        ("\u6c49\u5b57", "\u00e9\u20ac", False),
    ],
)
def test_verdicts(worker: Algebra, left: str, right: str, same: bool) -> None:
    task = MathTask(algebra=worker)
    assert task.equivalent(left, right) is same
    assert task.equivalent(right, left) is same


def test_it_works_from_many_threads_and_off_the_main_one(worker: Algebra) -> None:
    task = MathTask(algebra=worker, cache_size=0)
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda k: task.equivalent(f"{k} x", f"{k % 3} x"), range(12)))
    assert verdicts == [k % 3 == k for k in range(12)]


def test_verdicts_are_cached_for_both_orders() -> None:
    class Counting(Algebra):
        asked = 0

        def same(self, left: str, right: str) -> bool:
            self.asked += 1
            return bool(left and right)

    counting = Counting()
    task = MathTask(algebra=counting)
    assert task.equivalent("2x", "x+x")
    assert task.equivalent("x+x", "2x")
    assert task.equivalent("x + x", "$2x$")
    assert counting.asked == 1
    assert not counting.running


def test_a_late_worker_is_killed_and_replaced() -> None:
    worker = Algebra(time_limit=0.5)
    try:
        with pytest.raises(Timeout, match=r"longer than 0\.5 s"):
            worker.same(HARD, "3")
        assert not worker.running
        worker.time_limit = 30.0
        assert worker.same("7 \\times 8", "56")
    finally:
        worker.close()


def test_a_time_out_is_a_task_error_and_costs_its_limit_once() -> None:
    class Late(Algebra):
        asked = 0

        def same(self, left: str, right: str) -> bool:
            self.asked += 1
            raise Timeout(f"late: {left} {right}")

    late = Late()
    task = MathTask(algebra=late)
    for pair in ((HARD, "3x"), ("3x", HARD), (HARD, "3x")):
        with pytest.raises(TaskError, match="took longer than 5 s"):
            task.equivalent(*pair)
    assert late.asked == 1


def test_a_dead_worker_is_one_failure_and_then_replaced() -> None:
    worker = Algebra()
    try:
        assert worker.same("2x", "x+x")
        assert worker._process is not None
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(TaskError, match="the algebra worker ended with status"):
            worker.same("2x", "x+x")
        assert worker.same("2x", "x+x")
    finally:
        worker.close()


def test_an_interrupted_comparison_leaves_no_reply_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Algebra()
    try:
        assert worker.same("2x", "x+x")
        assert worker._process is not None
        assert worker._process.stdout is not None
        monkeypatch.setattr(worker._process, "stdout", Interrupted(worker._process.stdout))
        with pytest.raises(KeyboardInterrupt):
            worker.same("3x", "3x+1")
        assert worker.same("2x", "x+x")
    finally:
        worker.close()


def test_close_ends_the_process_twice_is_fine_and_it_starts_again() -> None:
    before = set(threading.enumerate())
    worker = Algebra()
    worker.close()
    assert worker.same("2x", "x+x")
    assert worker._process is not None
    pid = worker._process.pid
    worker.close()
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not worker.running
    assert worker.same("2x", "x+x")
    worker.close()
    assert set(threading.enumerate()) <= before


def test_the_shared_worker_is_closed_by_name() -> None:
    assert MathTask().equivalent("2x", "x+x")
    assert algebra.shared.running
    tasks.close()
    assert not algebra.shared.running


def test_a_python_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TaskError, match="could not be started with '/nowhere/python'"):
        Algebra().same("2x", "x+x")


def test_a_script_without_a_main_guard_runs_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "sympy.py").write_text("raise SystemExit('a file beside the script was imported')")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            sys.path.remove(sys.path[0])
            from elm_agent.tasks import get_task
            from elm_agent.tasks import algebra
            print("ran", get_task("math").equivalent("2x", "x+x"), algebra.shared._process.pid)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.returncode == 0
    word, verdict, pid = done.stdout.split()
    assert (word, verdict) == ("ran", "True")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
