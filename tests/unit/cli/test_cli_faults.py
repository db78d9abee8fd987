"""Disks, locks, two workers on one bank, signals at any time: what a user of the commands sees of them."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import s3
from cli_calls import Elm, assert_one_sentence, error_of, start, wait_until
from small_disks import fill, remount_read_only, small_disk

from elm_agent.records import JobState
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database

pytestmark = pytest.mark.usefixtures("fake")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", kib=1024) as folder:
        yield folder


def jobs_of(elm: Elm, *words: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(elm("jobs", "list", "--json", *words).stdout)
    return found


# --- disks ----------------------------------------------------------------------------------------------


def test_a_bank_on_a_read_only_disk_still_answers_and_is_shown(elm: Elm, disk: Path) -> None:
    home = ("--home", disk / "bank")
    assert elm("ask", "What is 9 times 9?", "--wait", *home).exit_code == 0
    remount_read_only(disk)
    result = elm("ask", "What is 6 times 7?", *home)
    assert (result.exit_code, result.stdout) == (0, "\\boxed{42}\n")
    assert "nothing is learnt from it: StorageError" in result.stderr
    assert "is read-only; check the owner" in result.stderr
    assert "What is 9 times 9?" in elm("memories", "list", *home).stdout
    assert "everything agrees" in elm("doctor", *home).stdout
    [memory] = json.loads(elm("memories", "list", "--json", *home).stdout)
    assert_one_sentence(elm("memories", "evict", memory["id"], *home), 4, "is read-only; check the owner")
    assert_one_sentence(elm("ask", "What is 6 times 7?", "--home", disk / "new"), 4, "Read-only file system")


def test_learning_on_a_full_disk_says_so_and_can_be_done_later(elm: Elm, disk: Path, tmp_path: Path) -> None:
    home = ("--home", disk / "bank")
    (tmp_path / "elm.toml").write_text("[worker]\nbackoff_seconds = 0.0\n")
    assert elm("ask", "What is 9 times 9?", "--wait", *home).exit_code == 0
    filler = fill(disk)
    result = elm("ask", "What is 6 times 7?", "--wait", "--settings", "elm.toml", *home)
    assert (result.exit_code, result.stdout) == (6, "\\boxed{42}\n")
    assert "is full; free some space and run the same command again" in result.stderr
    assert_one_sentence(elm("ask", "What is 6 times 7?", "--home", disk / "new"), 4, "full disk; free some space")
    filler.unlink()
    assert "everything agrees" in elm("doctor", *home).stdout
    [failed] = [job for job in jobs_of(elm, *home) if job["state"] == "failed"]
    assert elm("jobs", "retry", failed["id"], *home).exit_code == 0
    assert elm("worker", "--once", *home).exit_code == 0
    assert [job["state"] for job in jobs_of(elm, *home)] == ["done", "done"]


def test_results_on_a_full_disk(elm: Elm, disk: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "What is 6 times 7?"}\n')
    fill(disk)
    assert_one_sentence(elm("run", "q.jsonl", "--out", disk / "r.jsonl"), 4, "No space left on device")
    assert elm("run", "q.jsonl").exit_code == 0


def test_the_doctor_goes_on_without_an_object_store(
    elm: Elm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert elm("ask", "What is 9 times 9?", "--wait").exit_code == 0
    for name, value in s3.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    away = tmp_path / "away.toml"
    away.write_text('tensors = "s3://bucket/x"\n[tensor_options]\nendpoint_url = "http://127.0.0.1:9"\n')
    result = elm("doctor", "--settings", away)
    assert result.exit_code == 4
    assert "1 memories" in result.stdout
    assert "not checked: the tensors, and what only they prove: " in result.stdout
    assert "everything that was checked agrees" in result.stdout
    said = json.loads(elm("doctor", "--json", "--settings", away).stdout)
    assert (said["clean"], said["incomplete"], len(said["skipped"])) == (True, True, 1)


# --- locks and company ----------------------------------------------------------------------------------


def test_a_locked_database_is_one_sentence(elm: Elm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert elm("ask", "What is 9 times 9?", "--wait").exit_code == 0
    monkeypatch.setattr(Database, "open", partial(Database.open, busy_seconds=0.2))
    holder = sqlite3.connect(tmp_path / ".elm" / "elm.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    words = "is locked by another process; wait for it or stop it"
    for command in (["memories", "list"], ["jobs", "list"], ["doctor"], ["ask", "What is 6 times 7?"]):
        assert_one_sentence(elm(*command), 4, words)
        assert error_of(elm(*command, "--json"))["type"] == "StoreBusy"
    holder.execute("ROLLBACK")
    holder.close()
    assert elm("memories", "list").exit_code == 0


def test_two_workers_on_one_bank_share_the_jobs(elm: Elm, tmp_path: Path) -> None:
    questions = [f"What is {a} times 7?" for a in range(2, 8)]
    for question in questions:
        assert elm("ask", question).exit_code == 0
    workers = [start(tmp_path, "worker", "--once", "--json", step=0.05) for _ in range(2)]
    told = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    jobs = jobs_of(elm)
    assert {(job["state"], job["attempts"]) for job in jobs} == {("done", 1)}
    assert sum(out.count('"job.done"') for out, _ in told) == len(questions)
    memories = json.loads(elm("memories", "list", "--json").stdout)
    assert sorted(memory["question"] for memory in memories) == questions
    assert "everything agrees" in elm("doctor").stdout


# --- signals --------------------------------------------------------------------------------------------


def bank_of(tmp_path: Path) -> Bank:
    return open_bank(Settings(home=tmp_path / ".elm"), owns_index=False)


@pytest.mark.parametrize(
    ("event", "number"),
    [
        ("job.claimed", signal.SIGINT),
        ("train.step", signal.SIGTERM),
        ("train.done", signal.SIGINT),
        ("tensor.durable", signal.SIGTERM),
        ("publish.committed", signal.SIGINT),
    ],
)
def test_a_worker_stopped_at_any_event_loses_nothing(
    elm: Elm, tmp_path: Path, event: str, number: signal.Signals
) -> None:
    elm("ask", "What is 2 times 7?")
    process = start(tmp_path, "worker", "--json", step=0.1)
    assert process.stdout is not None
    assert any(json.loads(line)["event"] == event for line in process.stdout), "it never came to this event"
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    [job] = jobs_of(elm)
    assert (job["state"], job["attempts"]) in {("queued", 0), ("done", 1)}
    assert "everything agrees" in elm("doctor").stdout
    assert elm("worker", "--once").exit_code == 0
    [memory] = json.loads(elm("memories", "list", "--json").stdout)
    assert memory["state"] == "active"


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_second_signal_does_not_wait_for_the_step(elm: Elm, tmp_path: Path, concurrency: int) -> None:
    for a in range(2, 2 + concurrency):
        elm("ask", f"What is {a} times 7?")
    process = start(tmp_path, "worker", "--concurrency", concurrency, step=600.0)
    bank = bank_of(tmp_path)
    begun = tmp_path / "begun"
    wait_until(lambda: begun.exists() and len(begun.read_text().splitlines()) == concurrency, process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)  # noted, and waiting for the end of the step
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    jobs = bank.jobs.list()
    bank.close()
    assert (process.returncode, err.splitlines()[-1]) == (130, "error: interrupted"), err
    assert [(job.state, job.attempts) for job in jobs] == [(JobState.QUEUED, 0)] * concurrency


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_stopped_ask_leaves_its_job_in_the_queue(elm: Elm, tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "ask", "What is 2 times 7?", "--wait", "--events", step=0.3)
    assert process.stdout is not None
    assert any(json.loads(line)["event"] == "answer" for line in process.stdout)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, "Traceback" in err) == (130, False), err
    [job] = jobs_of(elm)
    assert (job["state"], job["attempts"]) in {("queued", 0), ("done", 1)}
    assert "everything agrees" in elm("doctor").stdout


def test_ctrl_c_while_the_program_is_loaded(tmp_path: Path) -> None:
    script = """
import builtins, sys
real = builtins.__import__
def interrupted(name, *rest):
    if name == "typer":
        raise KeyboardInterrupt
    return real(name, *rest)
builtins.__import__ = interrupted
from elm_agent.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")
