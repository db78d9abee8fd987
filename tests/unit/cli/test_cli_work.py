"""``ask``, ``run``, ``worker`` and ``doctor`` on a real bank, graph and queue; model and trainer pretend."""

from __future__ import annotations

import json
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Elm, ask, assert_one_sentence, error_of, start, wait_until

from elm_agent.records import JobState
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.storage.bank import Bank

PRODUCTS = [{"question": f"What is {a} times 7?", "answer": a * 7} for a in range(2, 6)]

pytestmark = pytest.mark.usefixtures("fake")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in PRODUCTS))
    return file


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


# --- ask ------------------------------------------------------------------------------------------------


def test_ask(elm: Elm) -> None:
    result = elm("ask", "What is 6 times 7?")
    assert (result.exit_code, result.stdout) == (0, "\\boxed{43}\n")
    assert "answer 43; route no_memory" in result.stderr
    assert "learning queued as job_" in result.stderr
    assert [job["state"] for job in json.loads(elm("jobs", "list", "--json").stdout)] == ["queued"]


def test_ask_and_wait_learns(elm: Elm, bank: Bank) -> None:
    [memory] = bank.memories("default")
    answer = ask(elm)
    assert (answer["answer"], answer["route"], answer["job_id"]) == ("42", "memory", None)
    assert answer["memory_id"] == memory.id
    assert answer["candidates"]["zero_shot"]["answer"] == "43"


def test_ask_tells_events(elm: Elm) -> None:
    result = elm("ask", "-", "--events", input="What is 6 times 7?\n")
    told = [json.loads(line) for line in result.stdout.splitlines()]
    names = ["elm.retrieved", "elm.candidate", "elm.routed", "elm.consolidation.queued", "answer"]
    assert [event["event"] for event in told] == names
    assert told[-1]["answer"] == "43"


@pytest.mark.parametrize(
    ("question", "message"),
    [("", "the question is blank"), (" \n", "is blank"), ("a\udcff", "not UTF-8"), ("x" * 500, "reads at most 400")],
)
def test_unusable_questions(elm: Elm, question: str, message: str) -> None:
    assert_one_sentence(elm("ask", question), 2, message)


def test_an_unknown_model(elm: Elm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the folder, too, is the one of the tests again
    words = ("ask", "What is 6 times 7?", "--model", "./no-such-model", "--home", tmp_path / "h")
    assert_one_sentence(elm(*words), 5, "no-such-model")
    assert error_of(elm(*words, "--json"))["type"] == "ModelUnavailable"


def test_a_folder_that_cannot_be_made(elm: Elm, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_one_sentence(elm("ask", "What is 6 times 7?", "--home", "file"), 4, "file")


# --- run ------------------------------------------------------------------------------------------------


def test_run_answers_learns_and_counts(elm: Elm, questions: Path, tmp_path: Path) -> None:
    result = elm("run", questions)
    assert result.exit_code == 0, result.output
    assert "4 of 4 answered, 0 failed" in result.stdout
    assert "3/4 right, zero-shot 0/4; memories fixed 3, broke 0" in result.stdout
    found = records(tmp_path / "q.results.jsonl")
    assert [record["line"] for record in found] == [1, 2, 3, 4]
    assert [record["route"] for record in found] == ["no_memory", "memory", "memory", "memory"]
    assert [record["outcome"] for record in found] == ["both_wrong", "fixed", "fixed", "fixed"]
    memories = json.loads(elm("memories", "list", "--json").stdout)
    assert len(memories) == 4
    assert sum(memory["fixed"] for memory in memories) == 3


def test_run_again_asks_nothing(elm: Elm, questions: Path, tmp_path: Path) -> None:
    elm("run", questions)
    before = (tmp_path / "q.results.jsonl").read_bytes()
    result = elm("run", questions, "--model", "not even looked for")
    assert "4 lines are answered already" in result.stderr
    assert "4 of 4 answered" in result.stdout
    assert (tmp_path / "q.results.jsonl").read_bytes() == before


def test_run_without_learning(elm: Elm, questions: Path) -> None:
    assert "routes: no_memory 4" in elm("run", questions, "--no-learn").stdout
    assert json.loads(elm("jobs", "list", "--json").stdout) == []


def test_faulty_lines_are_named_and_the_rest_goes_on(elm: Elm, tmp_path: Path) -> None:
    lines = [
        b'{"question": "What is 2 times 3?"}',
        b"not JSON",
        b'{"query": "What is 2 times 4?"}',
        b'{"question": "caf\xe9"}',
        json.dumps({"question": "x" * 500}).encode(),
        b'{"question": "What is 2 times 5?"}',
    ]
    (tmp_path / "q.jsonl").write_bytes(b"\n".join(lines))
    result = elm("run", "q.jsonl", "--out", "out/r.jsonl")
    assert result.exit_code == 2
    assert "2 of 6 answered, 4 failed" in result.stdout
    for words in (
        "line 2: is not JSON",
        "line 3: no field 'question'",
        "line 4: is not UTF-8",
        "line 5: the question",
    ):
        assert words in result.stderr
    found = {record["line"]: record for record in records(tmp_path / "out/r.jsonl")}
    assert {line for line, record in found.items() if record["status"] == "failed"} == {2, 3, 4, 5}
    assert elm("run", "q.jsonl", "--out", "out/r.jsonl").exit_code == 2
    assert len(records(tmp_path / "out/r.jsonl")) == 6


def test_run_as_json_lines(elm: Elm, questions: Path) -> None:
    result = elm("run", questions, "--json")
    told = [json.loads(line) for line in result.stdout.splitlines()]
    names = [event["event"] for event in told if event["event"] != "learning"]
    assert names == ["answer", "learned"] * 4 + ["summary"]
    assert (told[-1]["right"], told[-1]["fixed"]) == (3, 3)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.jsonl"], "'nowhere.jsonl' does not exist"),
        (["q.jsonl", "--out", "q.jsonl"], "is the input itself"),
        (["q.jsonl", "--out", "other.jsonl"], "was made from other input (line 1 differs)"),
        (["q.jsonl", "--out", "notes.txt"], "is not a record of a run"),
    ],
)
def test_run_refuses(elm: Elm, questions: Path, tmp_path: Path, words: list[str], message: str) -> None:
    record = {"line": 1, "question_digest": "sha256:0", "status": "answered"}
    (tmp_path / "other.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "notes.txt").write_text("buy milk")
    before = questions.read_bytes()
    assert_one_sentence(elm("run", *words), 2, message)
    assert questions.read_bytes() == before
    assert (tmp_path / "notes.txt").read_text() == "buy milk"


# --- signals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on(elm: Elm, questions: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Stopped while it learns from the first line: the job is not lost, and no line is asked twice."""
    results = tmp_path / "q.results.jsonl"
    process = start(tmp_path, "run", questions, "--json", step=0.3)
    wait_until(lambda: results.exists() and results.read_bytes().count(b"\n") >= 1, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    if number is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        with results.open("ab") as file:
            file.write(b'{"line":2,"question_digest":"sha2')  # as a kill in the middle of a write leaves it
    else:
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert json.loads(out.splitlines()[-1])["error"]["type"] == "Interrupted"
        bank = open_bank(Settings(home=tmp_path / ".elm"), owns_index=False)
        assert {job.state for job in bank.jobs.list()} <= {JobState.QUEUED, JobState.DONE}
        bank.close()
    done = len([line for line in results.read_bytes().split(b"\n")[:-1] if line])

    result = elm("run", questions)
    assert result.exit_code == 0, result.output
    assert f"{done} lines are answered already" in result.stderr
    assert ("has been dropped" in result.stderr) == (number is signal.SIGKILL)
    assert [record["line"] for record in records(results)] == [1, 2, 3, 4]
    jobs = json.loads(elm("jobs", "list", "--json").stdout)
    assert [job["state"] for job in jobs] == ["done"] * 4


# --- worker and doctor ----------------------------------------------------------------------------------


def test_worker_once_learns_what_waits(elm: Elm) -> None:
    for a in (2, 3):
        elm("ask", f"What is {a} times 7?")
    result = elm("worker", "--once", "--concurrency", 2)
    assert (result.exit_code, result.stdout.count(", active")) == (0, 2), result.output
    assert "2 jobs taken; none is due" in result.stderr
    assert "0 jobs taken" in elm("worker", "--once").stderr


def test_worker_once_says_what_still_waits(elm: Elm, tmp_path: Path) -> None:
    """What failed once is due again after a pause, and a worker that ends meanwhile has not learned it."""
    elm("ask", "What is 2 times 7?")
    with closing(open_bank(Settings(home=tmp_path / ".elm"), owns_index=False)) as bank:
        lease = bank.jobs.claim("another", lease_seconds=60)
        assert lease is not None
        bank.jobs.fail(lease, "the store was away", backoff_seconds=600)
    result = elm("worker", "--once")
    assert result.exit_code == 0
    assert "0 jobs taken; none is due, but some wait for another attempt" in result.stderr
    assert "elm-agent jobs list" in result.stderr


def test_worker_as_json_lines(elm: Elm) -> None:
    elm("ask", "What is 2 times 7?")
    told = [json.loads(line) for line in elm("worker", "--once", "--json").stdout.splitlines()]
    names = [event["event"] for event in told]
    assert (names[0], names[-1], names.count("train.step")) == ("job.claimed", "job.done", 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_worker_gives_its_job_back(elm: Elm, tmp_path: Path, number: signal.Signals) -> None:
    elm("ask", "What is 2 times 7?")
    process = start(tmp_path, "worker", step=1.0)
    bank = open_bank(Settings(home=tmp_path / ".elm"), owns_index=False)
    wait_until(lambda: bank.jobs.counts()[JobState.RUNNING] == 1, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    [job] = bank.jobs.list()
    bank.close()
    assert (process.returncode, err.splitlines()[-1]) == (130, "error: interrupted")
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)


def test_doctor_finds_and_mends(elm: Elm, bank: Bank, tmp_path: Path) -> None:
    assert "everything agrees" in elm("doctor").stdout
    assert json.loads(elm("doctor", "--json").stdout)["clean"] is True
    [tensor] = (tmp_path / ".elm" / "tensors").rglob("*.safetensors")
    tensor.write_bytes(b"altered" + tensor.read_bytes()[7:])
    found = elm("doctor", "--json")
    assert (found.exit_code, json.loads(found.stdout)["left"]) == (4, 1)
    assert json.loads(found.stdout)["findings"][0]["kind"] == "altered_tensor"
    mended = elm("doctor", "--repair")
    assert mended.exit_code == 0
    assert "1 found, 1 mended" in mended.stdout
    [memory] = bank.memories("default")
    assert memory.state == "quarantined"


def test_doctor_without_a_bank(elm: Elm) -> None:
    assert_one_sentence(elm("doctor"), 3, "there is no bank in .elm")
