"""Whose experience it is goes with job, memory and use; a shared namespace is read and never written."""

from __future__ import annotations

import time
from typing import Any

import pytest
from graph_calls import Open

from elm_agent import UseOutcome
from elm_agent.errors import InputError, ModelMismatch, NotFound, SettingsError
from elm_agent.integrations.langgraph import build_graph
from elm_agent.records import EventKind, ModelFingerprint
from elm_agent.runtime import maintain_bank


def test_a_subject_goes_with_everything_and_can_be_forgotten(opened: Open) -> None:
    runtime = opened()
    bank, graph = runtime.bank, build_graph(runtime)
    graph.invoke({"question": "What is 7 times 8?", "subject": "ann"})
    graph.invoke({"question": "What is 7 times 9?"}, context={"subject": "bob"})
    out = graph.invoke({"question": "What is 7 times 7?", "subject": "ann"}, context={"subject": "bob"})
    assert {memory.question[-4:-1]: memory.subject for memory in bank.memories("default")} == {
        "s 8": "ann",
        "s 9": "bob",
        "s 7": "ann",
    }
    assert bank.jobs.get("default", out["job_id"]).subject == "ann"
    assert [use.subject for use in bank.uses("default")] == ["ann", "bob"]
    [forgotten] = bank.forget_subject("ann", actor="test")
    assert (len(forgotten.memory_ids), forgotten.jobs) == (2, 2)
    assert [memory.subject for memory in bank.memories("default")] == ["bob"]
    assert all(use.subject != "ann" for use in bank.uses("default"))


@pytest.mark.parametrize("subject", [7, "", " ", "a\x00b", "x" * 501, "\ud800"])
def test_unusable_subjects_are_one_sentence(opened: Open, subject: Any) -> None:
    with pytest.raises(InputError, match="subject"):
        build_graph(opened()).invoke({"question": "What is 1 plus 1?", "subject": subject})


def test_a_shared_namespace_is_read_and_never_written(opened: Open) -> None:
    team = opened(namespace="team")
    build_graph(team).invoke({"question": "What is 7 times 8?"})
    [memory] = team.bank.memories("team")
    before = [event.digest for event in team.bank.events("team")]
    mine = opened(namespace="mine", shared_namespaces=("team",))
    graph = build_graph(mine)
    out = graph.invoke({"question": "What is 7 times 9?", "subject": "ann"})
    assert (out["memory_id"], out["memory_namespace"], out["route"]) == (memory.id, "team", "memory")
    [use] = mine.bank.uses("mine")
    assert (use.memory_namespace, use.memory_id, use.subject) == ("team", memory.id, "ann")
    mine.bank.settle_use("mine", out["use_id"], UseOutcome.FIXED)
    assert mine.bank.memory("team", memory.id).fixed == 1
    assert [one.question for one in mine.bank.memories("mine")] == ["What is 7 times 9?"]
    assert [event.digest for event in team.bank.events("team")] == before
    with pytest.raises(InputError, match="'team' is shared here, so it is only read"):
        graph.invoke({"question": "What is 7 times 6?"}, context={"namespace": "team"})
    alone = build_graph(opened(namespace="alone")).invoke({"question": "What is 7 times 9?"})
    assert (alone["memory_id"], alone["memory_namespace"]) == (None, None)


def test_the_use_of_a_shared_memory_is_counted_in_its_own_chain(opened: Open) -> None:
    build_graph(opened(namespace="team")).invoke({"question": "What is 7 times 8?"})
    mine = opened(namespace="mine", shared_namespaces=("team",))
    build_graph(mine).invoke({"question": "What is 7 times 9?"})
    maintain_bank(mine.bank, mine.settings)
    assert [event.detail["uses"] for event in mine.bank.events("team") if event.kind is EventKind.USED] == [1]
    assert [event for event in mine.bank.events("mine") if event.kind is EventKind.USED] == []


def test_shared_namespaces_that_do_not_fit_are_said_at_open(opened: Open) -> None:
    with pytest.raises(NotFound, match="shared namespace 'team' is not in this bank"):
        opened(shared_namespaces=("team",))
    opened().bank.bind("team", ModelFingerprint("other", "sha256:w", "sha256:t", "sha256:c", 4))
    with pytest.raises(ModelMismatch, match="shared namespace 'team' was made for model 'other'"):
        opened(shared_namespaces=("team",))
    with pytest.raises(SettingsError, match="also one of shared_namespaces"):
        opened(namespace="team", shared_namespaces=("team",))


def test_a_worker_looks_after_the_bank(opened: Open) -> None:
    """The thread of the agent retires what is over capacity, between two jobs, without being asked."""
    runtime = opened(worker={"mode": "thread", "poll_seconds": 0.01}, eviction={"capacity": 0, "every_seconds": 0.02})
    build_graph(runtime).invoke({"question": "What is 7 times 8?"})
    assert runtime.runner.wait_idle(30)
    for _ in range(600):
        [memory] = runtime.bank.memories("default")
        if memory.state == "retired":
            break
        time.sleep(0.05)
    assert memory.reason == "least useful of 1 active memories, 0 may stay"
