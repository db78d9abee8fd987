"""What the command line's tests share: judging a result, and running a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import Result

Elm = Callable[..., Result]
FAKE = Path(__file__).with_name("fake_elm.py")


def error_of(result: Result) -> dict[str, Any]:
    """The error of a ``--json`` call: one JSON document on standard output and nothing else."""
    [line] = result.stdout.splitlines()
    assert result.stderr == ""
    error: dict[str, Any] = json.loads(line)["error"]
    assert error["exit_code"] == result.exit_code
    return error


def assert_one_sentence(result: Result, code: int, words: str) -> None:
    """One line on standard error that says ``words``, nothing on standard output, the right status."""
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert (result.stdout, result.exit_code) == ("", code)


def ask(elm: Elm, *words: str) -> dict[str, Any]:
    """A question that is asked and not learned."""
    answer: dict[str, Any] = json.loads(elm("ask", "What is 6 times 7?", "--no-learn", "--json", *words).stdout)
    return answer


def python(*words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, for what only a whole process shows."""
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=120, **more)


def start(tmp_path: Path, *words: object, step: float = 0.0, answer: float = 0.0) -> subprocess.Popen[str]:
    """``elm-agent`` with pretended parts, as a process; ``step`` and ``answer``: seconds that each one takes."""
    slow = {"FAKE_STEP_SECONDS": str(step), "FAKE_ANSWER_SECONDS": str(answer), "FAKE_STEPS_BEGUN": "begun"}
    return subprocess.Popen(
        [sys.executable, str(FAKE), *map(str, words)],
        cwd=tmp_path,
        env={**os.environ, **slow},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Any, process: subprocess.Popen[str], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
