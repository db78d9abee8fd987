"""A process that measures when it is asked, so that arms share neither memory nor caches and can take turns.

Knows processes and pipes; knows nothing of what is measured.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from elm_agent.errors import ElmError, ModelError
from elm_agent.models import spin_briefly

_PATIENCE = 5.0  # seconds for a child to end before it is killed


class Child:
    """``make(**arguments)`` in a process of its own, whose methods are called with ``ask``. Close it.

    Raises what ``make`` raised: an ``ElmError`` as it is, anything else as ``ModelError``.
    """

    def __init__(self, make: Callable[..., Any], **arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._pipe, theirs = context.Pipe()
        spin_briefly()  # inherited: in every process threads wait for each other alike, whoever computes there
        self._process = context.Process(target=_serve, args=(theirs, make, arguments))
        self._process.start()
        theirs.close()
        try:
            self._reply()
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any) -> Any:
        self._pipe.send((method, arguments))
        return self._reply()

    def close(self) -> None:
        """End the process, whatever it is doing. Idempotent."""
        self._pipe.close()  # a child that waits for a question ends by itself
        if self._process.is_alive():
            self._process.terminate()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _reply(self) -> Any:
        try:
            fine, value = self._pipe.recv()
        except EOFError:
            self._process.join(_PATIENCE)
            status = self._process.exitcode
            raise ModelError(f"a measuring process ended with status {status}: out of memory, or killed") from None
        if fine:
            return value
        raise value


def _serve(pipe: Connection, make: Callable[..., Any], arguments: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who then ends us
    if (service := _told(pipe, lambda: make(**arguments), keep=True)) is None:
        return
    while True:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        _told(pipe, lambda method=method, given=given: getattr(service, method)(*given))  # type: ignore[misc]


def _told(pipe: Connection, call: Callable[[], Any], *, keep: bool = False) -> Any:
    """Tell the parent what came of it; with ``keep`` only that it came, and return it."""
    try:
        value = call()
    except ElmError as error:
        pipe.send((False, error))
        return None
    except Exception as error:  # noqa: BLE001 - the border of the process: said in one sentence by the parent
        pipe.send((False, ModelError(f"{type(error).__name__}: {' '.join(str(error).split())}")))
        return None
    pipe.send((True, None if keep else value))
    return value
