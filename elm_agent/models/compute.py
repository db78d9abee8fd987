"""One thread that computes for all who hold the model.

Every thread that calls torch gets a pool of OpenMP threads of its own. Once the pools together have more threads than
there are cores, GNU's OpenMP puts idle ones to sleep at once, and each of the thousands of small parallel sections of
a decode step has to wake them: one of 8 rows took 150 ms instead of 90 with two threads on two cores. Knows threads;
knows nothing of models.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

_Result = TypeVar("_Result")
_Around = Callable[[], AbstractContextManager[None]]
_Work = tuple[Future[Any], Callable[[], Any], bool]


class ComputeThread:
    """Starts with its first work; ends when it is closed, or when nobody refers to this any more.

    Args:
        around: what each work is done in.
    """

    def __init__(self, around: _Around = nullcontext) -> None:
        self._around = around
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], _Result]) -> _Result:
        """``work()`` over there, with or without gradient as here. Raises what it raises.

        An interrupt waits until the work is done, so that whoever comes next finds everything at rest.
        """
        if threading.current_thread() is self._thread:
            return work()
        future: Future[_Result] = Future()
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(
                    target=_serve, args=(self._work, self._around), name="elm-compute", daemon=True
                )
                thread.start()
                self._thread = thread
                weakref.finalize(self, self._work.put, None).atexit = False
            self._work.put((future, work, torch.is_grad_enabled()))
        try:
            return future.result()
        finally:
            wait([future])

    def close(self) -> None:
        """Let the thread end after the work it has. Idempotent; the next work starts another."""
        with self._starting:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._work.put(None)
                self._work = SimpleQueue()
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def _serve(waiting: SimpleQueue[_Work | None], around: _Around) -> None:
    while (item := waiting.get()) is not None:
        _do(*item, around)
        del item  # between two works nothing of the last one is held


def _do(future: Future[Any], work: Callable[[], Any], gradient: bool, around: _Around) -> None:
    try:
        with around(), torch.set_grad_enabled(gradient):
            result = work()
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the result
        future.set_exception(error)
    else:
        future.set_result(result)
