"""A person between a memory's answer and the plain one: in the graph, or in a queue; and before memories serve."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from postgres import fresh_database

from elm_agent import MemoryState, Runtime, open_runtime
from elm_agent.errors import InputError
from elm_agent.integrations.langgraph import build_graph, build_messages_graph
from elm_agent.memory.reviewing import decide
from elm_agent.records import Effect, EventKind, Feedback, Review, Tier, UseOutcome
from elm_agent.storage.health.doctor import examine
from elm_agent.testing.doubles import FakeModel, FakeTrainer, FixedVerifier

FIRST, SECOND = {"question": "What is 7 times 8?"}, {"question": "What is 7 times 9?"}
ASKS: Any = {"review": "interrupt"}
THREAD: Any = {"configurable": {"thread_id": "t"}}
CHOICES = [("memory", "memory", "2", Effect.HELPED), ("zero_shot", "zero_shot", "1", Effect.HURT)]
NAMED = {"memory": "memory's", "zero_shot": "plain"}
Open = Callable[..., Runtime]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Runtimes on one bank that learn nothing from what they are asked; memories say 2, the plain model says 1."""
    runtimes: list[Runtime] = []

    def open_(*, plain: str = "\\boxed{1}", memory: float = 1.0, **settings: Any) -> Runtime:
        usual: dict[str, Any] = {"home": tmp_path, "worker": {"mode": "inline"}, "index": "exact", "learn": False}
        runtime = open_runtime(
            model=FakeModel(reply=lambda _prompt, of: "\\boxed{2}" if of else plain),
            trainer=FakeTrainer(),
            verifier=FixedVerifier(memory=memory),
            **(usual | {"task": "number"} | settings),
        )
        runtimes.append(runtime)
        return runtime

    yield open_
    for runtime in runtimes:
        runtime.close()


def taught(runtime: Runtime) -> str:
    """Puts one memory that serves into the bank; its id."""
    runtime.bank.jobs.enqueue(
        "default",
        FIRST["question"],
        task=runtime.task.name,
        model_id=runtime.model.fingerprint.id,
        recipe=runtime.recipe,
    )
    assert runtime.worker().run(once=True) == 1
    return runtime.bank.memories("default")[0].id


def rows(runtime: Runtime) -> int:
    assert isinstance(runtime.model, FakeModel)
    return sum(len(batch) for batch in runtime.model.batches)


def calls(runtime: Runtime) -> int:
    assert isinstance(runtime.verifier, FixedVerifier)
    return runtime.verifier.calls


def strict_saver() -> InMemorySaver:
    return InMemorySaver(serde=JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None))


def check_asked(out: dict[str, Any], memory_id: str) -> None:
    (asked,) = out["__interrupt__"]
    value = json.loads(json.dumps(asked.value))
    assert value.pop("why") == (
        "the memory's answer was taken, for verifier 'fixed' gave the memory's 1 and the plain one 0"
    )
    assert value.pop("similarity") > 0
    assert value == {
        "kind": "override",
        "question": SECOND["question"],
        "namespace": "default",
        "memory_id": memory_id,
        "memory_namespace": "default",
        "memory_answer": "2",
        "memory_text": "\\boxed{2}",
        "zero_shot_answer": "1",
        "zero_shot_text": "\\boxed{1}",
        "choices": ["memory", "zero_shot"],
    }
    assert asked.response_schema["properties"]["choice"]["enum"] == ["memory", "zero_shot"]


def check_noted(runtime: Runtime, out: dict[str, Any], choice: str, effect: Effect) -> None:
    """One use, one event, and nothing else of what the run did happened twice."""
    (use,) = runtime.bank.uses("default")
    verdict = Review.APPROVED if choice == "memory" else Review.REJECTED
    assert (use.id, use.route, use.answer) == (out["use_id"], out["route"], out["answer"])
    assert (use.review, use.feedback, use.feedback_effect) == (verdict, Feedback.RIGHT, effect)
    (event,) = runtime.bank.events("default", kind=EventKind.REVIEWED)
    assert (event.memory_id, event.detail) == (out["memory_id"], {"review": verdict.value, "use_id": use.id})
    (worth,) = runtime.bank.posteriors("default", [("default", use.memory_id)]).values()
    assert (worth.helped, worth.hurt) == ((2.0, 1.0) if choice == "memory" else (1.0, 2.0))
    assert runtime.bank.reviews.waiting() == {}
    assert examine(runtime.bank).findings == ()


# --- savers ---------------------------------------------------------------------------------------------------


@contextmanager
def memory_savers(_folder: Path, _request: Any) -> Iterator[Callable[[], Any]]:
    one = strict_saver()
    yield lambda: one


@contextmanager
def sqlite_savers(folder: Path, _request: Any) -> Iterator[Callable[[], Any]]:
    """A connection of its own each time, as another process has it."""
    sqlite = pytest.importorskip("langgraph.checkpoint.sqlite")
    made: list[Any] = []

    def another() -> Any:
        made.append(sqlite.SqliteSaver.from_conn_string(str(folder / "threads.sqlite")))
        return made[-1].__enter__()

    yield another
    for one in made:
        one.__exit__(None, None, None)


@contextmanager
def postgres_savers(_folder: Path, request: Any) -> Iterator[Callable[[], Any]]:
    postgres = pytest.importorskip("langgraph.checkpoint.postgres")
    made: list[Any] = []
    with fresh_database(request.getfixturevalue("postgres_server")) as url:

        def another() -> Any:
            made.append(postgres.PostgresSaver.from_conn_string(url.replace("+psycopg", "")))
            saver = made[-1].__enter__()
            saver.setup()
            return saver

        yield another
        for one in made:
            one.__exit__(None, None, None)


SAVERS = [
    pytest.param(memory_savers, id="memory"),
    pytest.param(sqlite_savers, id="sqlite"),
    pytest.param(postgres_savers, id="postgres", marks=pytest.mark.postgres),
]


@pytest.mark.parametrize(("choice", "route", "answer", "effect"), CHOICES)
@pytest.mark.parametrize("savers", SAVERS)
def test_a_run_stops_and_goes_on_with_what_a_person_chose(
    opened: Open, tmp_path: Path, request: Any, savers: Any, choice: str, route: str, answer: str, effect: Effect
) -> None:
    runtime = opened(review={"overrides": "interrupt"})
    memory_id = taught(runtime)
    with savers(tmp_path, request) as another:
        out = build_graph(runtime, checkpointer=another()).invoke(SECOND, THREAD)
        check_asked(out, memory_id)
        assert (rows(runtime), calls(runtime), runtime.bank.uses("default")) == (2, 1, [])
        later = opened()  # another process, which has no such setting: the run goes on as it began
        graph: Any = build_graph(later, checkpointer=another())
        events = list(graph.stream(Command(resume=choice), THREAD, stream_mode=["custom", "values"]))
        out = events[-1][1]
        assert (out["route"], out["answer"], out["text"]) == (route, answer, f"\\boxed{{{answer}}}")
        assert out["reason"] == f"a person chose the {NAMED[choice]} answer"
        told = [part["event"] for mode, part in events if mode == "custom"]
        assert told == ["elm.reviewed"]
        assert (rows(later), calls(later)) == (0, 0), "nothing is generated or judged again"
        check_noted(later, out, choice, effect)
        next_one = build_graph(later, checkpointer=another()).invoke(SECOND, THREAD)
    assert (next_one["route"], later.bank.use("default", next_one["use_id"]).review) == ("memory", None)


@asynccontextmanager
async def asqlite(folder: Path) -> AsyncIterator[Any]:
    aio = pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    async with aio.AsyncSqliteSaver.from_conn_string(str(folder / "threads.sqlite")) as saver:
        yield saver


@asynccontextmanager
async def amemory(_folder: Path) -> AsyncIterator[Any]:
    yield strict_saver()


@pytest.mark.parametrize("saver_in", [amemory, asqlite], ids=["memory", "sqlite"])
@pytest.mark.parametrize(("choice", "route", "answer", "effect"), CHOICES)
async def test_async_as_sync(
    opened: Open, tmp_path: Path, saver_in: Any, choice: str, route: str, answer: str, effect: Effect
) -> None:
    runtime = opened()
    memory_id = taught(runtime)
    async with saver_in(tmp_path) as saver:
        graph: Any = build_graph(runtime, checkpointer=saver)
        check_asked(await graph.ainvoke(SECOND, THREAD, context=ASKS), memory_id)
        with pytest.raises(InputError, match="answer it again"):
            await graph.ainvoke(Command(resume="both"), THREAD)
        out = await graph.ainvoke(Command(resume={"choice": choice}), THREAD)
    assert (out["route"], out["answer"], rows(runtime), calls(runtime)) == (route, answer, 2, 1)
    check_noted(runtime, out, choice, effect)


# --- what a person says ---------------------------------------------------------------------------------------

NUL = {"choice": "memory", "note": "a\x00b"}
WRONG = ["plain", "", 3, True, ["memory"], {"choice": "both"}, {"choice": "memory", "by": "me"}, {"note": "x"}, NUL]


def test_what_is_no_answer_is_one_sentence_and_the_question_still_waits(opened: Open) -> None:
    runtime = opened()
    memory_id = taught(runtime)
    graph: Any = build_graph(runtime, checkpointer=strict_saver())
    graph.invoke(SECOND, THREAD, context=ASKS)
    for said in WRONG:
        with pytest.raises(InputError) as refused:
            graph.invoke(Command(resume=said), THREAD)
        sentence = str(refused.value)
        assert "\n" not in sentence
        assert sentence.startswith("a review is answered with 'memory' or 'zero_shot', or with an object of choice")
        assert sentence.endswith("the question still waits, answer it again")
        snapshot = graph.get_state(THREAD)
        assert snapshot.next == ("review_override",)
        assert [one.value["memory_id"] for one in snapshot.interrupts] == [memory_id]
        assert runtime.bank.uses("default") == []
    out = graph.invoke(Command(resume="memory"), THREAD)
    assert (out["route"], out["answer"], rows(runtime)) == ("memory", "2", 2)
    check_noted(runtime, out, "memory", Effect.HELPED)


def test_a_note_stays_with_the_use_and_the_explanation_tells_of_the_person(opened: Open) -> None:
    runtime = opened()
    memory_id = taught(runtime)
    graph: Any = build_graph(runtime, checkpointer=strict_saver())
    out = graph.invoke(SECOND, THREAD, context={**ASKS, "explain": True})
    by_id = {out["__interrupt__"][0].id: {"choice": "zero_shot", "note": " 63 is 9 times 7 "}}
    out = graph.invoke(Command(resume=by_id), THREAD)
    assert out["explanation"]["why"] == (
        "the plain answer was taken, though verifier 'fixed' gave the memory's 1 and the plain one 0: a person chose "
        "the plain answer"
    )
    (event,) = runtime.bank.events("default", memory_id, kind=EventKind.REVIEWED)
    assert (event.note, event.actor) == (None, "agent")
    assert runtime.bank.use("default", out["use_id"]).review_note == "63 is 9 times 7"


def test_a_reference_still_says_more_than_a_person(opened: Open) -> None:
    runtime = opened()
    memory_id = taught(runtime)
    graph: Any = build_graph(runtime, checkpointer=strict_saver())
    graph.invoke(SECOND, THREAD, context=ASKS)
    out = graph.invoke(Command(resume="memory"), THREAD)
    runtime.bank.settle_use("default", out["use_id"], UseOutcome.BROKEN)
    (worth,) = runtime.bank.posteriors("default", [("default", memory_id)]).values()
    assert (worth.helped, worth.hurt) == (1.0, 2.0)


# --- who is asked, and about what -----------------------------------------------------------------------------


def test_nobody_is_asked_where_nobody_wants_to_be(opened: Open) -> None:
    runtime = opened()
    taught(runtime)
    graph: Any = build_graph(runtime, checkpointer=strict_saver())
    out = graph.invoke(SECOND, THREAD)
    assert (out["route"], out["reason"], "__interrupt__" in out) == ("memory", None, False)
    assert runtime.bank.use("default", out["use_id"]).review is None
    for wrong in ("yes", True, None):
        with pytest.raises(InputError, match="context 'review' is one of off, interrupt, queue; got"):
            graph.invoke(SECOND, THREAD, context={"review": wrong})


@pytest.mark.parametrize(
    ("how", "route"),
    [
        ({"memory": -1.0}, "zero_shot"),
        ({"plain": "\\boxed{2}"}, "agreed"),
        ({"plain": "I do not know"}, "memory"),
    ],
    ids=["verifier prefers the plain one", "agreed", "no plain answer"],
)
def test_only_an_answer_that_another_one_stands_against_is_asked_about(
    opened: Open, how: dict[str, Any], route: str
) -> None:
    runtime = opened(**how)
    taught(runtime)
    graph: Any = build_graph(runtime, checkpointer=strict_saver())
    for mode in ("interrupt", "queue"):
        out = graph.invoke(SECOND, THREAD, context={"review": mode})
        assert (out["route"], "__interrupt__" in out) == (route, False)
    assert runtime.bank.reviews.waiting() == {}


def test_a_cheap_answer_would_leave_nothing_to_choose(opened: Open) -> None:
    runtime = opened(budget={"tier": "cheap", "compare": 0.0, "cheap_uses": 1, "cheap_utility": -1.0})
    taught(runtime)
    graph: Any = build_graph(runtime)
    out = graph.invoke(SECOND, context={"tier": "normal"})
    runtime.bank.settle_use("default", out["use_id"], UseOutcome.FIXED)
    assert graph.invoke(SECOND)["route"] == "memory_alone"
    out = graph.invoke(SECOND, context={"review": "queue", "explain": True})
    assert (out["route"], out["explanation"]["budget"]["tier"]) == ("deferred", Tier.NORMAL)
    assert out["explanation"]["budget"]["reason"] == "a person may be asked, so there is a plain answer to choose"


class Parent(TypedDict, total=False):
    question: str
    answer: str
    route: str
    seen: str


def test_as_node_of_another_graph(opened: Open) -> None:
    runtime = opened(review={"overrides": "interrupt"})
    memory_id = taught(runtime)
    outer: Any = (
        StateGraph(Parent)
        .add_node("memory", build_graph(runtime))
        .add_node("after", lambda state: {"seen": state["answer"] + state["route"]})
        .add_edge(START, "memory")
        .add_edge("memory", "after")
        .add_edge("after", END)
        .compile(checkpointer=strict_saver())
    )
    check_asked(outer.invoke(SECOND, THREAD), memory_id)
    with pytest.raises(InputError, match="answer it again"):
        outer.invoke(Command(resume="both"), THREAD)
    assert outer.invoke(Command(resume="memory"), THREAD)["seen"] == "2memory"
    assert (rows(runtime), calls(runtime), len(runtime.bank.uses("default"))) == (2, 1, 1)


async def test_on_messages(opened: Open) -> None:
    """Its one node runs again; what the graph inside has done, it has not to do again."""
    runtime = opened(review={"overrides": "interrupt"})
    memory_id = taught(runtime)
    graph: Any = build_messages_graph(runtime, checkpointer=strict_saver())
    asked = {"messages": [("user", SECOND["question"])]}
    check_asked(graph.invoke(asked, THREAD), memory_id)
    message = graph.invoke(Command(resume="zero_shot"), THREAD)["messages"][-1]
    assert (message.text, message.response_metadata["route"]) == ("\\boxed{1}", "zero_shot")
    other: Any = {"configurable": {"thread_id": "other"}}
    check_asked(await graph.ainvoke(asked, other), memory_id)
    message = (await graph.ainvoke(Command(resume="memory"), other))["messages"][-1]
    assert (message.text, message.response_metadata["route"]) == ("\\boxed{2}", "memory")
    assert (rows(runtime), calls(runtime), len(runtime.bank.uses("default"))) == (4, 2, 2)


# --- the queue ------------------------------------------------------------------------------------------------


async def test_in_the_queue_the_plain_answer_is_returned_at_once(opened: Open) -> None:
    runtime = opened(review={"overrides": "queue"})
    memory_id = taught(runtime)
    graph: Any = build_graph(runtime)
    out = graph.invoke(SECOND, context={"explain": True})
    assert (out["route"], out["answer"], out["text"], out["memory_id"]) == ("deferred", "1", "\\boxed{1}", memory_id)
    assert out["reason"] == "the memory's answer was preferred, and awaits review"
    assert out["explanation"]["why"].startswith("the plain answer was taken for now: the memory's answer was pref")
    (use,) = runtime.bank.reviews.answers("default")
    assert (use.id, use.route, use.answer, use.memory_answer) == (out["use_id"], "deferred", "1", "2")
    decided = decide(runtime.bank, "default", use.id, Review.APPROVED, actor="ada").use
    assert decided is not None
    assert (decided.feedback, decided.feedback_answer, decided.feedback_effect) == ("wrong", "2", "helped")
    assert (await graph.ainvoke(SECOND))["route"] == "deferred"
    assert runtime.bank.reviews.count("default").answers == 1


def test_what_nobody_could_resume_is_queued(opened: Open) -> None:
    runtime = opened(review={"overrides": "interrupt"})
    taught(runtime)
    out: Any = build_graph(runtime).invoke(SECOND)
    assert (out["route"], "__interrupt__" in out) == ("deferred", False)
    assert runtime.bank.reviews.count("default").answers == 1


def test_a_user_may_say_it_first(opened: Open) -> None:
    runtime = opened(review={"overrides": "queue"})
    taught(runtime)
    out = build_graph(runtime).invoke(SECOND)
    report = runtime.feedback(out["use_id"], "wrong", answer="2")
    assert report.effect is Effect.HELPED
    assert [use.feedback_answer for use in runtime.bank.reviews.answers("default")] == ["2"]


# --- before a memory serves -----------------------------------------------------------------------------------


def test_a_trained_memory_waits_until_somebody_approves_it(opened: Open) -> None:
    runtime = opened(review={"memories": True})
    memory_id = taught(runtime)
    memory = runtime.bank.memory("default", memory_id)
    assert (memory.state, memory.reason, memory.review) == (MemoryState.CANDIDATE, "awaits review", Review.WAITING)
    graph = build_graph(runtime)
    assert graph.invoke(SECOND)["route"] == "no_memory"
    decide(runtime.bank, "default", memory_id, Review.APPROVED, actor="ada")
    assert graph.invoke(SECOND)["memory_id"] == memory_id
    assert examine(runtime.bank).findings == ()


def test_nobody_is_asked_about_what_was_not_admitted(opened: Open) -> None:
    runtime = opened(review={"memories": True}, admission={"min_vote_rise": 0.1})
    memory = runtime.bank.memory("default", taught(runtime))
    assert (memory.state, memory.review) == (MemoryState.CANDIDATE, None)
    assert str(memory.reason).startswith("the vote share rose by")
    assert runtime.bank.reviews.waiting() == {}
