"""Whether two mathematical expressions are equal, asked of math-verify in one worker process with a time limit.

math-verify times itself with SIGALRM (main thread only) and sympy may never come back, so it runs outside. A
plain subprocess, not multiprocessing: a script without a ``__main__`` guard must not be run a second time.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from elm_agent.errors import TaskError

_WORKER = Path(__file__).with_name("algebra_worker.py")


class Timeout(TaskError):
    """A comparison took longer than its limit."""


class Algebra:
    """Owns the worker process: started at the first question, killed and replaced when it is late or broken.

    ``time_limit``: seconds per comparison. ``start_limit``: seconds for the process to import sympy.
    Safe from any thread; one comparison at a time.
    """

    def __init__(self, *, time_limit: float = 5.0, start_limit: float = 120.0) -> None:
        self.time_limit = time_limit
        self.start_limit = start_limit
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    @property
    def running(self) -> bool:
        """Whether a worker process lives now."""
        return self._process is not None

    def same(self, left: str, right: str) -> bool:
        """Whether ``left`` and ``right`` (LaTeX or plain) are equal, seen from either side.

        Raises:
            Timeout: no reply within ``time_limit``.
            TaskError: the worker could not be started, died, or reported a failure.
        """
        with self._lock:
            process = self._process or self._start()
            request = {"left": left, "right": right, "limit": self.time_limit}
            reply = self._ask(process, json.dumps(request) + "\n", self.time_limit)
        if "error" in reply:
            raise TaskError(f"comparing {left[:60]!r} with {right[:60]!r} failed: {reply['error']}")
        return bool(reply["same"])

    def close(self) -> None:
        """End the worker process. Idempotent; a later question starts a new one."""
        with self._lock:
            self._stop()
        atexit.unregister(self.close)

    def _start(self) -> subprocess.Popen[str]:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER)],  # -P: no module of the current folder shadows a library
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
            )
        except OSError as error:
            raise TaskError(f"the algebra worker could not be started with {sys.executable!r}: {error}") from None
        self._process = process
        atexit.register(self.close)
        reply = self._ask(process, "", self.start_limit)
        if "error" in reply:
            self._stop()
            raise TaskError(f"the algebra worker could not start: {reply['error']}")
        return process

    def _ask(self, process: subprocess.Popen[str], line: str, limit: float) -> dict[str, Any]:
        """One line out, one line in. The timer kills a late worker, which ends the read."""
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit, give_up)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # a dead worker's pipe; told apart below
            answer = ""
        except BaseException:  # Ctrl-C: its reply would be read as the next one's
            self._stop()
            raise
        finally:
            timer.cancel()
        if answer.endswith("\n"):
            reply: dict[str, Any] = json.loads(answer)
            return reply
        self._stop()
        if late.is_set():
            raise Timeout(f"comparing two answers took longer than {limit:g} s; the worker was stopped")
        raise TaskError(
            f"the algebra worker ended with status {process.returncode}; the next comparison starts another"
        )

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # unsent bytes to a process that we have just killed
                    pipe.close()


shared = Algebra()
"""The one of this process, used by every ``MathTask`` that is not given its own."""
