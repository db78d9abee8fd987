"""The process in which math-verify runs: one JSON request a line on stdin, one JSON reply a line on stdout.

Started by ``algebra`` by its path, so it imports nothing of elm_agent. Its main thread is free, it can be
killed at any time, and it ends by itself when its parent does.
Request: ``{"left": str, "right": str, "limit": seconds}``. Reply: ``{"same": bool}`` or ``{"error": str}``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys

MEMORY_LIMIT = 2 << 30
"""Bytes of address space; a tower of powers then fails here instead of swapping the machine to death."""


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)  # whatever a library prints must not be read as a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    logging.disable(logging.CRITICAL)
    _limit_memory()
    try:
        from math_verify import parse, verify
    except ImportError as error:
        _reply(replies, {"error": f"math-verify cannot be imported: {error}"})
        return
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        _alarm(request["limit"])
        try:
            left, right = (
                parse(f"${request[side]}$", parsing_timeout=None, raise_on_error=False) for side in ("left", "right")
            )
            same = any(
                verify(gold, answer, timeout_seconds=None, raise_on_error=False)
                for gold, answer in ((left, right), (right, left))
            )
            _reply(replies, {"same": bool(same)})
        except (ArithmeticError, ValueError, TypeError, RecursionError, MemoryError, AttributeError) as error:
            _reply(replies, {"error": f"{type(error).__name__}: {error}"})
        _alarm(0)


def _reply(replies: object, message: dict[str, object]) -> None:
    print(json.dumps(message), file=replies, flush=True)  # type: ignore[call-overload]


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _alarm(limit: float) -> None:
    """The parent kills a worker that is late; should the parent be gone, SIGALRM does a little later."""
    if sys.platform != "win32":
        signal.alarm(math.ceil(limit) + 2 if limit else 0)


if __name__ == "__main__":
    main()
