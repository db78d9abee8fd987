"""The frame of the command line: help, shared options, failures, signals, closed pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import Elm, assert_one_sentence, error_of, python

import elm_agent
from elm_agent import errors
from elm_agent.cli import config
from elm_agent.cli.app import EXIT_CODES
from elm_agent.cli.options import Shared

HEAVY = ("torch", "transformers", "chromadb", "sqlalchemy", "langgraph", "numpy", "rich")


@pytest.mark.parametrize("words", [["--help"], ["memories", "why", "--help"], ["run", "--help"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    script = f"""
import sys
from elm_agent.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = python("-c", script, *words)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_the_first_help_needs_no_pydantic_either() -> None:
    script = "import sys; from elm_agent.cli.app import app; sys.exit('pydantic' in sys.modules)"
    assert python("-c", script).returncode == 0


def test_no_command_shows_the_help(elm: Elm) -> None:
    assert elm().stdout == elm("--help").stdout
    assert elm().exit_code == 0


def test_version(elm: Elm) -> None:
    assert elm("--version").stdout == f"elm-agent {elm_agent.__version__}\n"


def test_exit_codes_are_those_of_the_errors(elm: Elm) -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert {kind.exit_code for kind in classes if issubclass(kind, errors.ElmError)} <= set(EXIT_CODES)
    text = " ".join(elm("--help").stdout.split())
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "No such command 'nope'; see `elm-agent --help`"),
        (["memories"], "Missing command; see `elm-agent memories --help`"),
        (["ask"], "Missing argument 'QUESTION'; see `elm-agent ask --help`"),
        (["ask", "x", "--nope"], "No such option"),
        (["memories", "list", "--state", "asleep"], "'asleep' is not one of"),
        (["memories", "list", "--limit", "0"], "'--limit'"),
    ],
)
def test_usage_errors(elm: Elm, words: list[str], message: str) -> None:
    assert_one_sentence(elm(*words), 2, message)
    assert message in error_of(elm("--json", *words))["message"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("got this,\nexpected that"), 2),
        (errors.NotFound("no such thing"), 3),
        (errors.StorageError("full disk"), 4),
        (errors.ModelMismatch("another model"), 5),
        (errors.LeaseLost("too late"), 6),
        (errors.TrainingError("not finite"), 1),
    ],
)
def test_every_failure_is_one_sentence(
    elm: Elm, monkeypatch: pytest.MonkeyPatch, error: errors.ElmError, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Shared, "load", fail)
    sentence = " ".join(str(error).split())
    assert_one_sentence(elm("config", "show"), code, f"error: {sentence}\n")
    told = error_of(elm("config", "show", "--json"))
    assert told == {"type": type(error).__name__, "message": sentence, "exit_code": code}


def test_an_unexpected_failure_names_the_way_to_its_traceback(elm: Elm, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(Shared, "load", fail)
    assert_one_sentence(elm("config", "show"), 1, "unexpected ZeroDivisionError: by nought (ELM_DEBUG=1 shows")
    monkeypatch.setenv("ELM_DEBUG", "1")
    assert "Traceback" in elm("config", "show").stderr


def test_an_error_cannot_move_the_cursor(elm: Elm) -> None:
    result = elm("config", "show", "--settings", "\x1b[2Jx.toml")
    assert "\x1b" not in result.stderr
    assert result.exit_code == 2


def test_sigterm_and_ctrl_c_end_with_130(elm: Elm, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT):
        monkeypatch.setattr(Shared, "load", lambda *_, number=number: os.kill(os.getpid(), number))
        assert_one_sentence(elm("config", "show"), 130, "error: interrupted\n")
    assert error_of(elm("config", "show", "--json"))["type"] == "Interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m elm_agent.cli config show --json | head -c 1 > /dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 141)  # 0: all was in the pipe before head went
    assert done.stderr == ""


def test_a_closed_standard_output_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "elm_agent.cli", "config", "show"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


# --- shared options -------------------------------------------------------------------------------------


def shown(elm: Elm, *words: object) -> dict[str, object]:
    result = elm(*words)
    assert result.exit_code == 0, result.output
    values: dict[str, object] = json.loads(result.stdout)
    return values


def test_shared_options_stand_before_after_and_between(elm: Elm) -> None:
    for words in (
        ["--namespace", "a", "--json", "config", "show"],
        ["config", "--namespace", "a", "--json", "show"],
        ["config", "show", "--namespace", "a", "--json"],
        ["--namespace", "x", "config", "--namespace", "y", "show", "--json", "--namespace", "a"],
    ):
        assert shown(elm, *words)["namespace"] == "a"


def test_shared_options_become_settings(elm: Elm, tmp_path: Path) -> None:
    (tmp_path / "elm.toml").write_text('model = "from-file"\n[learning]\nsteps = 3\n')
    words = ("--settings", "elm.toml", "--home", "there", "--database-url", "sqlite:///x.db")
    values = shown(elm, "config", "show", "--json", *words)
    assert (values["model"], values["home"], values["database_url"]) == ("from-file", "there", "sqlite:///x.db")
    assert values["learning"]["steps"] == 3  # type: ignore[index]
    assert shown(elm, "config", "show", "--json", *words, "--model", "other")["model"] == "other"


@pytest.mark.parametrize(
    ("file", "words", "message"),
    [
        ("modle = 'x'", [], "unknown setting 'modle': `elm-agent config show` lists the known ones"),
        ("[learning]\nstep = 1", [], "unknown setting 'learning.step'"),
        ("[learning]\nsteps = 0", [], "setting 'learning.steps': got '0'"),
        ("not toml", [], "is not TOML"),
        ("", ["--namespace", "../etc"], "namespace '../etc' is not usable"),
    ],
)
def test_unusable_settings(elm: Elm, tmp_path: Path, file: str, words: list[str], message: str) -> None:
    (tmp_path / "elm.toml").write_text(file)
    assert_one_sentence(elm("config", "show", "--settings", "elm.toml", *words), 2, message)


def test_a_missing_settings_file(elm: Elm) -> None:
    assert_one_sentence(elm("memories", "list", "--settings", "nowhere.toml"), 2, "'nowhere.toml' does not exist")


# --- config ---------------------------------------------------------------------------------------------


def test_config_shows_every_setting_with_its_variable(elm: Elm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELM_LEARNING__LEARNING_RATE", "1e-05")
    text = elm("config", "show").stdout
    assert "ELM_LEARNING__STEPS" in text
    assert "1e-05" in text


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("postgresql://me:se:cr@t@host:5432/bank", "postgresql://me:***@host:5432/bank"),
        ("postgresql://host/bank?user=me&password=secret&x=1", "postgresql://host/bank?user=me&password=***&x=1"),
        ("postgresql://me@host:5432/bank", "postgresql://me@host:5432/bank"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
    ],
)
def test_passwords_are_not_shown(elm: Elm, url: str, safe: str) -> None:
    assert config.hide_password(url) == safe
    assert shown(elm, "config", "show", "--json", "--database-url", url)["database_url"] == safe
    assert "secret" not in elm("config", "show", "--database-url", url).stdout


# --- the page -------------------------------------------------------------------------------------------


def test_the_page_of_commands_is_not_stale() -> None:
    root = Path(__file__).parents[3]
    done = python("-m", "elm_agent.cli.docs", "--check", cwd=root)
    assert done.returncode == 0, "docs/cli.md is stale: run python -m elm_agent.cli.docs"


def test_completion_is_offered() -> None:
    environment = {
        **os.environ,
        "_ELM_AGENT_COMPLETE": "complete_bash",
        "COMP_WORDS": "elm-agent mem",
        "COMP_CWORD": "1",
    }
    program = Path(sys.executable).with_name("elm-agent")
    done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["memories"]
