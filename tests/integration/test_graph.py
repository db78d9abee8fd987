"""The graph on a real bank (SQLite, files, exact index) with a model that answers at once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any, TypedDict

import pytest
from graph_calls import FIRST, SECOND, Open
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph

from elm_agent import MemoryState, Runtime, UseOutcome
from elm_agent.errors import IndexUnavailable, InputError, SettingsError, StorageError, VerificationError
from elm_agent.integrations.langgraph import build_graph
from elm_agent.testing.doubles import FakeModel, FakeTrainer, FixedVerifier


def strict_saver() -> InMemorySaver:
    return InMemorySaver(serde=JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None))


def thread(name: str = "t") -> Any:
    return {"configurable": {"thread_id": name}}


# --- the main path ------------------------------------------------------------------------------------------


def test_first_question_has_no_memory_and_is_learnt(opened: Open) -> None:
    runtime = opened()
    out = build_graph(runtime).invoke(FIRST)
    assert (out["answer"], out["route"], out["reason"]) == ("1", "no_memory", "the bank has no memory")
    assert out["candidates"]["memory"] is None
    assert out["candidates"]["zero_shot"]["text"] == out["text"] == "\\boxed{1}"
    assert (out["memory_id"], out["use_id"]) == (None, None)
    job = runtime.bank.jobs.get("default", out["job_id"])
    assert (job.state, job.progress["step"]) == ("done", 2)
    assert runtime.bank.memory("default", str(job.memory_id)).question == FIRST["question"]
    assert set(out) == {
        "answer", "text", "route", "reason", "candidates", "memory_id", "memory_namespace", "similarity", "use_id",
        "job_id",
    }  # fmt: skip


@pytest.mark.parametrize(("memory_score", "route", "answer"), [(1.0, "memory", "2"), (-1.0, "zero_shot", "1")])
def test_the_verifier_routes(opened: Open, memory_score: float, route: str, answer: str) -> None:
    runtime = opened(verifier=FixedVerifier(memory=memory_score))
    graph = build_graph(runtime)
    graph.invoke(FIRST)
    out = graph.invoke(SECOND)
    assert (out["route"], out["answer"], out["reason"]) == (route, answer, None)
    assert out["candidates"]["memory"]["score"] == memory_score
    assert out["candidates"]["zero_shot"]["score"] == 0.0
    assert out["candidates"]["memory"]["memory_id"] == out["memory_id"]
    (use,) = runtime.bank.uses("default")
    assert (use.id, use.route, use.memory_answer, use.zero_shot_answer) == (out["use_id"], route, "2", "1")
    assert use.similarity == pytest.approx(out["similarity"])
    runtime.bank.settle_use("default", out["use_id"], UseOutcome.FIXED)
    assert runtime.bank.memory("default", out["memory_id"]).fixed == 1


def test_equivalent_answers_agree(opened: Open) -> None:
    verifier = FixedVerifier()
    graph = build_graph(opened(reply=lambda _p, m: "\\boxed{0.5}" if m else "\\boxed{1/2}", verifier=verifier))
    graph.invoke(FIRST)
    assert graph.invoke(SECOND)["route"] == "agreed"
    assert verifier.calls == 0


def test_both_rows_carry_the_same_question(opened: Open) -> None:
    runtime = opened()
    graph = build_graph(runtime)
    graph.invoke(FIRST)
    model = runtime.model
    assert isinstance(model, FakeModel)
    model.batches.clear()
    graph.invoke(SECOND)
    rows = [row for batch in model.batches for row in batch]
    assert {row.prompt_ids for row in rows} == {rows[0].prompt_ids}
    assert sorted(row.prefix is None for row in rows) == [False, True]


# --- every way of calling -----------------------------------------------------------------------------------


async def test_async_answers_like_sync(opened: Open) -> None:
    runtime = opened()
    graph = build_graph(runtime)
    await graph.ainvoke(FIRST)
    ours, theirs = await graph.ainvoke(SECOND), graph.invoke(SECOND)
    assert ours.pop("use_id") != theirs.pop("use_id")
    assert theirs["memory_id"] != ours["memory_id"]  # by now the second question's own memory is nearest
    assert (ours["route"], ours["answer"]) == (theirs["route"], theirs["answer"])


async def test_events_are_the_same_in_stream_and_astream(opened: Open) -> None:
    graph = build_graph(opened(learn=False))
    build_graph(opened(namespace="other")).invoke(FIRST, context={"namespace": "default"})
    sync = list(graph.stream(SECOND, stream_mode="custom"))
    asynchronous = [event async for event in graph.astream(SECOND, stream_mode="custom")]
    names = ["elm.retrieved", "elm.candidate", "elm.candidate", "elm.routed"]
    for events in (sync, asynchronous):
        assert [event["event"] for event in events] == names
        json.dumps(events)
        assert {event["source"] for event in events[1:3]} == {"memory", "zero_shot"}
    assert sync[0] == asynchronous[0]
    assert sync[3] == asynchronous[3]


async def test_it_stands_in_a_chain(opened: Open) -> None:
    asked = RunnableLambda(lambda number: {"question": f"What is {number} times 8?"})
    chain = asked | build_graph(opened(learn=False)) | itemgetter("answer")
    assert chain.invoke(7) == "1"
    assert chain.batch([2, 3]) == ["1", "1"]
    assert await chain.ainvoke(4) == "1"
    assert await chain.abatch([5, 6]) == ["1", "1"]


def test_queueing_is_an_event(opened: Open) -> None:
    graph = build_graph(opened())
    events = list(graph.stream(FIRST, stream_mode="custom"))
    assert events[-1]["event"] == "elm.consolidation.queued"
    assert events[-1]["created"] is True


def test_a_checkpointed_thread_forgets_the_last_question(opened: Open) -> None:
    runtime = opened(verifier=FixedVerifier(memory=1.0))
    graph = build_graph(runtime, checkpointer=strict_saver())
    graph.invoke(FIRST, thread())
    assert graph.invoke(SECOND, thread())["route"] == "memory"
    out = graph.invoke(FIRST, thread(), context={"namespace": "empty"})
    assert (out["route"], out["memory_id"], out["use_id"]) == ("no_memory", None, None)
    assert out["candidates"]["memory"] is None
    for snapshot in graph.get_state_history(thread()):
        json.dumps(snapshot.values)


async def test_a_resumed_run_keeps_its_options(opened: Open) -> None:
    runtime = opened()
    graph = build_graph(runtime, checkpointer=strict_saver())
    await graph.ainvoke(FIRST, thread(), context={"namespace": "ada"}, interrupt_before=["consolidate"])
    assert runtime.bank.jobs.list() == []
    await graph.ainvoke(None, thread())
    assert [job.namespace for job in runtime.bank.jobs.list()] == ["ada"]


def test_replaying_consolidation_changes_nothing(opened: Open) -> None:
    runtime = opened(worker={"mode": "external"})
    _learn(runtime, FIRST["question"])
    graph = build_graph(runtime, checkpointer=strict_saver())
    out = graph.invoke(SECOND, thread())
    before = next(state for state in graph.get_state_history(thread()) if state.next == ("consolidate",))
    again = graph.invoke(None, before.config)
    assert (again["job_id"], again["use_id"]) == (out["job_id"], out["use_id"])
    assert len(runtime.bank.uses("default")) == 1
    assert [job.question for job in runtime.bank.jobs.list(state=None)].count(SECOND["question"]) == 1


class Parent(TypedDict, total=False):
    question: str
    answer: str
    route: str
    seen: str


@pytest.mark.parametrize("context", [None, {"user": object()}, object()], ids=["none", "foreign dict", "object"])
async def test_as_node_of_another_graph(opened: Open, context: Any) -> None:
    runtime = opened()
    outer = (
        StateGraph(Parent)
        .add_node("memory", build_graph(runtime))
        .add_node("after", lambda state: {"seen": state["answer"] + state["route"]})
        .add_edge(START, "memory")
        .add_edge("memory", "after")
        .add_edge("after", END)
        .compile(checkpointer=strict_saver())
    )
    assert outer.invoke(FIRST, thread("a"), context=context)["seen"] == "1no_memory"
    assert (await outer.ainvoke(SECOND, thread("b"), context=context))["seen"] == "2memory"
    events = list(outer.stream(SECOND, thread("c"), stream_mode="custom", subgraphs=True))
    assert events[0][1]["event"] == "elm.retrieved"


async def test_concurrent_callers_get_their_own_answers(opened: Open) -> None:
    def number_of(prompt: str, _memory_id: str | None) -> str:
        return f"\\boxed{{{prompt.split()[2].rstrip('?')}}}"

    runtime = opened(worker={"mode": "thread", "poll_seconds": 0.01}, reply=number_of)
    graph = build_graph(runtime)
    asked = [{"question": f"What is {n}?"} for n in range(10)]
    with ThreadPoolExecutor(4) as pool:
        sync = list(pool.map(graph.invoke, asked))
    asynchronous = await asyncio.gather(*(graph.ainvoke(question) for question in asked))
    for outs in (sync, asynchronous):
        assert [out["answer"] for out in outs] == [str(n) for n in range(10)]
    assert [out["job_id"] for out in sync] == [out["job_id"] for out in asynchronous]
    assert runtime.runner.wait_idle(30)
    assert len(runtime.bank.memories("default")) == 10


# --- the run's context --------------------------------------------------------------------------------------


def test_namespaces_are_apart(opened: Open) -> None:
    runtime = opened()
    graph = build_graph(runtime)
    graph.invoke(FIRST, context={"namespace": "ada"})
    assert graph.invoke(SECOND, context={"namespace": "ben"})["route"] == "no_memory"
    assert graph.invoke(SECOND, context={"namespace": "ada"})["memory_id"] is not None


def test_learning_can_be_left_out(opened: Open) -> None:
    runtime = opened()
    out = build_graph(runtime).invoke(FIRST, context={"learn": False})
    assert out["job_id"] is None
    assert runtime.bank.jobs.list() == []


def test_below_the_threshold_nothing_is_retrieved(opened: Open) -> None:
    graph = build_graph(opened())
    graph.invoke(FIRST)
    out = graph.invoke(SECOND, context={"min_similarity": 0.999})
    assert (out["route"], out["memory_id"]) == ("no_memory", None)
    assert "below" in out["reason"] or "the threshold is 0.999" in out["reason"]
    assert out["similarity"] < 0.999


def test_strict_stream_never_serves_the_own_memory(opened: Open) -> None:
    runtime = opened(retrieval={"exclude_same_question": True})
    graph = build_graph(runtime)
    graph.invoke(FIRST)
    own = graph.invoke({"question": "  What is 7\ntimes 8? "})
    assert (own["route"], own["memory_id"]) == ("no_memory", None)
    assert graph.invoke(FIRST, context={"exclude_same_question": False})["similarity"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("context", "error"),
    [
        ({"min_similarity": 2}, InputError),
        ({"min_similarity": "high"}, InputError),
        ({"learn": "no"}, InputError),
        ({"namespace": 3}, InputError),
        ({"namespace": "../x"}, SettingsError),
    ],
)
def test_unusable_context_is_refused(opened: Open, context: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        build_graph(opened()).invoke(FIRST, context=context)


# --- what raises, and what must not -------------------------------------------------------------------------


@pytest.mark.parametrize("question", ["", "  \n", None, 7])
async def test_a_blank_question_is_refused(opened: Open, question: Any) -> None:
    graph = build_graph(opened())
    with pytest.raises(InputError):
        graph.invoke({"question": question})
    with pytest.raises(InputError):
        await graph.ainvoke({"question": question})


def test_a_question_longer_than_the_context_is_refused(opened: Open) -> None:
    runtime = opened()
    with pytest.raises(InputError, match="reads at most"):
        build_graph(runtime).invoke({"question": "long " * 2000})
    assert runtime.bank.jobs.list() == []


def test_a_zero_shot_failure_raises(opened: Open) -> None:
    runtime = opened()
    runtime.model.zero_shot_error = RuntimeError("CUDA out of memory")  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="out of memory"):
        build_graph(runtime).invoke(FIRST)


def _learn(runtime: Runtime, question: str, namespace: str = "default") -> str:
    runtime.bank.jobs.enqueue(
        namespace, question, task="math", model_id=runtime.model.fingerprint.id, recipe=runtime.recipe
    )
    assert runtime.worker().run(once=True) == 1
    return runtime.bank.memories(namespace, limit=1)[0].id


def _break_tensor(runtime: Runtime) -> None:
    (file,) = Path(runtime.settings.resolved_tensors).rglob("*.safetensors")
    file.write_bytes(b"altered" + file.read_bytes()[7:])


def _lose_tensor(runtime: Runtime) -> None:
    (file,) = Path(runtime.settings.resolved_tensors).rglob("*.safetensors")
    file.unlink()


def _no_room(runtime: Runtime) -> None:
    runtime.model._context_length = len(runtime.model.encode(runtime.task.messages(SECOND["question"]))) + 2  # type: ignore[attr-defined]


def _memory_oom(runtime: Runtime) -> None:
    runtime.model.memory_error = RuntimeError("CUDA out of memory")  # type: ignore[attr-defined]


def _index_down(runtime: Runtime) -> None:
    def down(*_args: Any, **_kwargs: Any) -> None:
        raise IndexUnavailable("the index is down")

    runtime.bank.nearest = down  # type: ignore[method-assign]


def _verifier_raises(runtime: Runtime) -> None:
    runtime.verifier.fail = True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_break_tensor, "is unusable"),
        (_lose_tensor, "is unusable"),
        (_no_room, "the answer with memory failed: InputError"),
        (_memory_oom, "RuntimeError: CUDA out of memory"),
        (_index_down, "IndexUnavailable: the index is down"),
        (_verifier_raises, "VerificationError"),
    ],
)
async def test_a_failure_of_memory_never_costs_the_answer(
    opened: Open, damage: Callable[[Runtime], None], reason: str
) -> None:
    runtime = opened(worker={"mode": "external"})
    _learn(runtime, FIRST["question"])
    damage(runtime)
    graph = build_graph(runtime)
    for out in (graph.invoke(SECOND), await graph.ainvoke(SECOND)):
        assert (out["answer"], out["route"]) == ("1", "failed_memory")
        assert reason in out["reason"]
        assert out["job_id"] is not None


def test_a_verifier_of_ones_own_may_raise_anything(opened: Open) -> None:
    def broken(_question: str, _candidate: object) -> float:
        raise KeyError("oops")

    runtime = opened(verifier=broken, worker={"mode": "external"})
    _learn(runtime, FIRST["question"])
    out = build_graph(runtime).invoke(SECOND)
    assert (out["answer"], out["route"]) == ("1", "failed_memory")
    assert VerificationError.__name__ in out["reason"]


def test_the_next_memory_serves_when_the_nearest_is_unreadable(opened: Open) -> None:
    runtime = opened(worker={"mode": "external"}, retrieval={"top_k": 2})
    _learn(runtime, "Name a colour")
    _lose_tensor(runtime)
    kept = _learn(runtime, "What is 3 plus 4?")
    out = build_graph(runtime).invoke({"question": "Name a colour"})
    assert (out["memory_id"], out["route"]) == (kept, "memory")
    assert "is unusable" in out["reason"]


def test_a_namespace_of_another_model_gives_zero_shot(opened: Open) -> None:
    runtime = opened()
    stranger = FakeModel(name="stranger")
    runtime.bank.bind("theirs", stranger.fingerprint)
    out = build_graph(runtime).invoke(FIRST, context={"namespace": "theirs"})
    assert (out["answer"], out["route"], out["job_id"]) == ("1", "failed_memory", None)
    assert "ModelMismatch" in out["reason"]
    assert "nothing is learnt from it" in out["reason"]


def test_a_queue_that_refuses_costs_nothing(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise StorageError("the disk is full")

    runtime = opened(worker={"mode": "external"})
    _learn(runtime, FIRST["question"])
    monkeypatch.setattr(runtime.bank.jobs, "enqueue", full)
    monkeypatch.setattr(runtime.bank, "record_use", full)
    out = build_graph(runtime).invoke(SECOND)
    assert (out["answer"], out["route"], out["job_id"], out["use_id"]) == ("2", "memory", None, None)
    assert out["reason"].count("the disk is full") == 2


def test_an_evicted_memory_is_not_retrieved(opened: Open) -> None:
    runtime = opened(worker={"mode": "external"})
    memory_id = _learn(runtime, FIRST["question"])
    runtime.bank.transition("default", memory_id, MemoryState.RETIRED, actor="test", reason=None)
    assert build_graph(runtime).invoke(SECOND)["route"] == "no_memory"


def test_learning_goes_on_behind_the_answer(opened: Open) -> None:
    may_go = threading.Event()
    runtime = opened(
        worker={"mode": "thread", "poll_seconds": 0.01},
        trainer=FakeTrainer(before_step=lambda _step: may_go.wait(30)),
    )
    graph = build_graph(runtime)
    graph.invoke(FIRST)
    assert graph.invoke(SECOND)["route"] == "no_memory"  # answered while the first is being learnt
    may_go.set()
    assert runtime.runner.wait_idle(30)
    assert graph.invoke({"question": "What is 7 times 7?"})["memory_id"] is not None


def test_a_run_may_leave_no_trace(opened: Open) -> None:
    runtime = opened()
    graph = build_graph(runtime)
    graph.invoke(FIRST)
    result = graph.invoke(SECOND, context={"learn": False, "note": False})
    assert result["memory_id"] is not None
    assert result["use_id"] is not None, "whoever notes it later has an id for it"
    assert (runtime.bank.uses("default"), result["job_id"]) == ([], None)
    with pytest.raises(InputError, match="context 'note' is true or false"):
        graph.invoke(SECOND, context={"note": "no"})
