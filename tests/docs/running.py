"""Runs what a document says, in a forked process of its own: code as one program, commands as the command line."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from forks import forks


def run_code(code: str, name: str, folder: Path, variables: Mapping[str, str]) -> str:
    """What the code prints. Fails with its traceback, or what it wrote on standard error that is one."""
    return _in_child(_execute, (code, name), folder, variables)


def run_commands(lines: Sequence[str], folder: Path, variables: Mapping[str, str]) -> str:
    """What the commands print, one after the other; each has to end well."""
    return _in_child(_command_all, (list(lines),), folder, variables)


def _in_child(
    target: Callable[..., None], arguments: tuple[object, ...], folder: Path, variables: Mapping[str, str]
) -> str:
    out, err = folder / "stdout", folder / "stderr"
    child = forks().Process(target=_child, args=(target, arguments, str(folder), dict(variables)))
    child.start()
    child.join(300)
    if child.is_alive():
        child.kill()
        raise AssertionError(f"not done after 300 s: {err.read_text('utf-8')}")
    said = err.read_text("utf-8")
    assert child.exitcode == 0, said
    assert "Traceback" not in said, said
    return out.read_text("utf-8")


def _child(
    target: Callable[..., None], arguments: tuple[object, ...], folder: str, variables: dict[str, str]
) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
        stream.reconfigure(encoding="utf-8", line_buffering=True)
    warnings.simplefilter("error", ResourceWarning)
    target(*arguments)
    atexit._run_exitfuncs()  # a forked process does not run them by itself


def _execute(code: str, name: str) -> None:
    module = ModuleType("__main__")  # classes of the document belong to it
    sys.modules["__main__"] = module
    exec(compile(code, name, "exec"), vars(module))


def _command_all(lines: list[str]) -> None:
    from elm_agent import open_bank
    from elm_agent.cli import main

    open_bank().close()  # most commands look at one that is there
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:
            _set(words.pop(0))
        if words[:1] == ["export"]:
            for word in words[1:]:
                _set(word)
        elif words[:1] == ["elm-agent"]:
            sys.argv = ["elm-agent", *map(os.path.expanduser, words[1:])]
            status = _status(main)
            if status:
                raise AssertionError(f"{line!r} ended with {status}")
        elif words[:2] != ["pip", "install"]:
            raise AssertionError(f"{line!r} is no command that can be run here: say why the block is not run")


def _set(word: str) -> None:
    variable, _, value = word.partition("=")
    os.environ[variable] = os.path.expanduser(value)


def _status(main: Callable[[], None]) -> str | int | None:
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0
