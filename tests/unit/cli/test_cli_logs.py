"""Log lines on standard error: JSON with the ids of what they are about, or warnings in words; never on stdout."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from cli_calls import Elm
from typer.testing import Result

from elm_agent.cli.logs import lines_on_stderr

QUESTION = "What is 7 times 8?"


@pytest.fixture(autouse=True)
def words_again() -> Iterator[None]:
    yield
    lines_on_stderr("text")


def lines_of(result: Result) -> list[dict[str, Any]]:
    """The JSON lines; what is said to people, such as progress, is none of them."""
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]


@pytest.mark.usefixtures("fake")
def test_an_answer_and_what_is_learnt_from_it_are_told_with_their_ids(elm: Elm) -> None:
    result = elm("ask", QUESTION, "--wait", "--json", "--log-format", "json", "--namespace", "ada")
    lines = lines_of(result)
    by_step = {line["message"]: line for line in lines if line["logger"] == "elm_agent.steps"}
    answer = json.loads(result.stdout)
    assert by_step["answer.noted"]["job_id"] == answer["job_id"]
    assert by_step["answer.routed"]["route"] == "no_memory"
    assert by_step["job.done"]["job_id"] == answer["job_id"]
    assert by_step["job.done"]["memory_id"].startswith("mem_")
    for line in by_step.values():
        assert (line["level"], line["namespace"]) == ("info", "ada")
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
    assert len({line["answer_id"] for name, line in by_step.items() if name.startswith("answer.")}) == 1
    assert QUESTION not in result.stderr
    second = elm("ask", "What is 7 times 9?", "--json", "--no-learn", "--namespace", "ada", "--log-format=json")
    (found,) = [line for line in lines_of(second) if line["message"] == "answer.retrieved"]
    assert found["memory_id"] == by_step["job.done"]["memory_id"]


@pytest.mark.usefixtures("fake")
def test_a_variable_switches_them_on_and_words_are_the_default(elm: Elm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELM_LOG_FORMAT", "json")
    assert lines_of(elm("ask", QUESTION, "--no-learn"))
    assert not lines_of(elm("ask", QUESTION, "--no-learn", "--log-format", "text"))
    monkeypatch.delenv("ELM_LOG_FORMAT")
    assert not lines_of(elm("ask", QUESTION, "--no-learn"))
    refused = elm("ask", QUESTION, "--log-format", "yaml")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_a_warning_keeps_its_ids_and_its_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("elm_agent.somewhere")
    # What pytest captures goes from process to process, which such a character cannot.
    monkeypatch.setattr(logging.getLogger("elm_agent"), "propagate", False)

    def warn() -> str:
        try:
            raise ValueError("the disk\nis full \ud800")
        except ValueError as error:
            logger.warning("job %s failed", "job_1", exc_info=error, extra={"job_id": "job_1", "size": object})
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    lines_on_stderr("json")
    lines_on_stderr("json")  # again: one line all the same
    (line,) = warn().splitlines()
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"]) == ("warning", logger.name, "job job_1 failed")
    assert (told["job_id"], told["size"]) == ("job_1", "<class 'object'>")
    assert told["error"].startswith("ValueError: the disk")
    assert "Traceback" in told["traceback"]
    lines_on_stderr("text")
    assert warn() == "warning: job job_1 failed\n"
    logger.info("nobody asked")
    assert capsys.readouterr().err == ""
