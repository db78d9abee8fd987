"""What each node does, as functions of a runtime and the state; ``forms`` makes nodes of them.

A failure of memory never costs an answer: whatever goes wrong on that side is written into the state, and the
zero-shot answer stands. Only the zero-shot row itself, or a question that cannot be asked, raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

from langgraph.config import get_stream_writer
from langgraph.runtime import get_runtime

from elm_agent.integrations.langgraph import choosing, reviewing
from elm_agent.integrations.langgraph.state import CandidateState, RunContext, State, resolve_options, use_of
from elm_agent.integrations.langgraph.tracing import trace
from elm_agent.memory.answering import candidate, check_question, describe, joined
from elm_agent.memory.explaining import plain_abstention, plain_scores
from elm_agent.memory.recall import recall
from elm_agent.protocols import RowStream
from elm_agent.records import Candidate, Generation, JobState, Route, Tier, UseOutcome, UseRecord, new_id, utcnow
from elm_agent.runtime import Runtime

logger = logging.getLogger(__name__)

Update = dict[str, Any]


def retrieve_memory(runtime: Runtime, state: State, defaults: RunContext | None = None) -> Update:
    """Find the memory and read it into the bank's cache, so that generating with it costs no I/O.

    ``defaults``: options of a run that generates both answers by itself and whose context does not say otherwise; its
    tier is always normal, and no further memory is heard.

    Raises:
        InputError: the question is not a text or is blank, or the run's context is unusable.
    """
    question = check_question(state.get("question"))
    context = get_runtime(RunContext).context
    if defaults:
        context = cast(RunContext, {**defaults, **(context if isinstance(context, dict) else {})})
    options = resolve_options(context, runtime.settings, subject=state.get("subject"))
    if defaults is not None:
        options["tier"] = "normal"
    options["review"] = reviewing.mode_of(options.get("review", "off"), alone=defaults is not None)
    update: Update = {
        "options": options,
        "answer_id": new_id("ans"),
        "memory_id": None,
        "memory_namespace": None,
        "similarity": None,
        "memory_failed": False,
        "memory_note": None,
        # a checkpointed thread still holds the candidates of its last question
        "memory_candidate": None,
        "zero_shot_candidate": None,
        "considered": [],
        "opinions": [],
        "asks_example": False,
        "tier": Tier.NORMAL.value,
        "abstention": None,
        "budget": {},
        "decision": None,
    }
    if state.get("heard"):
        update["heard"] = []
    for words in ("example", "by_prompt"):
        if state.get(words):
            update[words] = None
    try:
        runtime.bind(options["namespace"])
        abstaining = None if options["manual_threshold"] else runtime.abstaining(options["namespace"])
        found = recall(
            question,
            bank=runtime.bank,
            model=runtime.model,
            namespace=options["namespace"],
            shared=runtime.shared(options["namespace"]),
            kind=runtime.settings.retrieval.key,
            top_k=runtime.settings.retrieval.top_k,
            others=0 if defaults is not None else runtime.settings.verification.opinions,
            min_similarity=options["min_similarity"],
            exclude_same_question=options["exclude_same_question"],
            ranking=runtime.ranking,
            abstaining=abstaining,
            explain=options.get("explain", False),
        )
        chosen = choosing.tier_of(runtime, question, options, found)
    except Exception as error:  # noqa: BLE001 - recorded as the reason
        update |= _memory_failure("no memory could be retrieved", error, namespace=options["namespace"])
    else:
        update |= {
            "memory_id": found.memory_id,
            "memory_namespace": found.namespace,
            "similarity": found.similarity,
            "memory_failed": found.failed,
            "memory_note": found.reason,
            "considered": plain_scores(found.considered),
            "opinions": [
                {"namespace": hit.namespace, "memory_id": hit.memory_id, "similarity": hit.similarity}
                for hit in found.others
            ],
            "asks_example": found.prompt is not None and defaults is None and runtime.settings.verification.example,
            "abstention": plain_abstention(abstaining),
            "tier": chosen.tier.value,
            "budget": {"reason": chosen.reason, "gains": {tier.value: gain for tier, gain in chosen.gains}},
        }
    trace(namespace=options["namespace"], memory_id=update["memory_id"], memory_namespace=update["memory_namespace"])
    _emit(
        "elm.retrieved",
        namespace=options["namespace"],
        memory_id=update["memory_id"],
        memory_namespace=update["memory_namespace"],
        similarity=update["similarity"],
        failed=update["memory_failed"],
        reason=update["memory_note"],
    )
    return update


def plan(state: State) -> list[str]:
    """The rows to generate: both at once, the plain one alone when no memory is usable, or the memory's alone."""
    if state["memory_id"] is None or state["memory_failed"]:
        return ["generate_zero_shot"]
    if state.get("tier") == Tier.CHEAP:
        return ["generate_with_memory"]
    return ["generate_with_memory", "generate_zero_shot"]


def begin_zero_shot(runtime: Runtime, state: State) -> Future[Generation] | RowStream:
    """Queue the plain row. Raises ``InputError`` when the question does not fit the model."""
    trace(namespace=state["options"]["namespace"])
    return choosing.row_of(runtime, state, pieces=state["options"].get("pieces", False))


def begin_with_memory(runtime: Runtime, state: State) -> Future[Generation] | RowStream:
    """Queue the row with the memory before it."""
    assert state["memory_id"] is not None
    assert state["memory_namespace"] is not None
    trace(
        namespace=state["options"]["namespace"],
        memory_id=state["memory_id"],
        memory_namespace=state["memory_namespace"],
    )
    memory = state["memory_namespace"], state["memory_id"]
    return choosing.row_of(runtime, state, memory, pieces=state["options"].get("pieces", False))


def piece_teller(source: str) -> Callable[[str], None]:
    """Emits the pieces of one candidate, from any thread; called where the node runs."""
    write = get_stream_writer()
    return lambda text: write({"event": "elm.piece", "source": source, "text": text})


def end_zero_shot(runtime: Runtime, generation: Generation) -> Update:
    return {"zero_shot_candidate": show_candidate("zero_shot", candidate(generation, task=runtime.task))}


def end_with_memory(runtime: Runtime, state: State, generation: Generation) -> Update:
    made = candidate(generation, task=runtime.task, memory_id=state["memory_id"])
    return {"memory_candidate": show_candidate("memory", made)}


def fail_with_memory(state: State, error: Exception) -> Update:
    ids = {"namespace": state["memory_namespace"], "memory_id": state["memory_id"]}
    update = _memory_failure("the answer with memory failed", error, **ids)
    _emit("elm.candidate", source="memory", failure=update["memory_note"])
    return update


def verify_and_route(runtime: Runtime, state: State) -> Update:
    """Choose the answer; see ``choosing``. A plain row that is missed only now is generated here."""
    routed = choosing.routed(runtime, state, partial(_late_zero_shot, runtime, state))
    # made here and kept by the checkpointer: consolidating again notes the same use
    update = routed | {"use_id": None if state["memory_id"] is None else new_id("use")}
    if state["options"].get("review") == "queue" and reviewing.overrides(update):
        update |= reviewing.deferred(update)
    if state["options"].get("explain", False):
        update["explanation"] = choosing.explained(runtime, state, update)
    elif state.get("explanation"):
        update["explanation"] = None  # of this thread's last question
    memory_id = update.get("memory_id", state["memory_id"])
    trace(namespace=state["options"]["namespace"], memory_id=memory_id, route=update["route"])
    memory, zero_shot = update["candidates"]["memory"], update["candidates"]["zero_shot"]
    _emit(
        "elm.routed",
        route=update["route"],
        answer=update["answer"],
        reason=update["reason"],
        memory_score=None if memory is None else memory["score"],
        zero_shot_score=None if zero_shot is None else zero_shot["score"],
    )
    return update


def onward(state: State) -> str:
    """The node after routing: a person is asked, where that was wanted and there is something to ask about."""
    if state["options"].get("review") == "interrupt" and reviewing.overrides(cast(Update, state)):
        return "review_override"
    return "consolidate"


def review_override(runtime: Runtime, state: State) -> Update:
    """Ask a person which of the two answers is returned. Resumed, the node runs again from here, and no other does.

    Raises ``InputError`` for an answer that is none; the question still waits.
    """
    decision = reviewing.asked(runtime, state)
    update = reviewing.decided(state, decision)
    if state["options"].get("explain", False):
        update["explanation"] = choosing.explained(runtime, state, update)
    trace(namespace=state["options"]["namespace"], memory_id=state["memory_id"], route=update["route"])
    _emit("elm.reviewed", choice=decision.choice, route=update["route"], answer=update["answer"])
    return update


def consolidate(runtime: Runtime, state: State) -> Update:
    """Note the use and queue one job, as far as the run wants it: a few milliseconds. A replay changes nothing.

    What cannot be written is said in ``reason``; the answer and its route stand.
    """
    update: Update = {"job_id": None, "use_id": state["use_id"]}
    problems = []
    if state["use_id"] is not None and state["options"].get("note", True):
        served = _use(runtime, state)
        for use in (reviewing.reviewed(served, state), *_uses_of_heard(served, state)):
            try:
                runtime.bank.record_use(use)
            except Exception as error:
                ids = {"memory_id": use.memory_id, "namespace": use.namespace}
                logger.warning("the use of memory %s is not noted", use.memory_id, exc_info=error, extra=ids)
                whose = "its use" if use.id == served.id else f"that {use.memory_id} was heard"
                problems.append(f"{whose} is not noted: {describe(error)}")
                if use.id == served.id:
                    update["use_id"] = None
    if state["options"]["learn"]:
        try:
            update["job_id"] = _enqueue(runtime, state)
        except Exception as error:
            ids = {"namespace": state["options"]["namespace"]}
            logger.warning("no learning job was queued", exc_info=error, extra=ids)
            problems.append(f"nothing is learnt from it: {describe(error)}")
    trace(
        namespace=state["options"]["namespace"],
        memory_id=state["memory_id"],
        use_id=update["use_id"],
        job_id=update["job_id"],
    )
    return update | {"reason": joined(state["reason"], *problems)}


# --- parts --------------------------------------------------------------------------------------------------


def _late_zero_shot(runtime: Runtime, state: State) -> CandidateState:
    options = {**state["options"], "pieces": False}
    generation = begin_zero_shot(runtime, cast(State, {**state, "options": options})).result()
    made: CandidateState = end_zero_shot(runtime, generation)["zero_shot_candidate"]
    return made


def _enqueue(runtime: Runtime, state: State) -> str:
    namespace = state["options"]["namespace"]
    runtime.bind(namespace)
    job, created = runtime.bank.jobs.enqueue(
        namespace,
        state["question"],
        task=runtime.task.name,
        model_id=runtime.model.fingerprint.id,
        recipe=runtime.recipe,
        max_attempts=runtime.settings.worker.max_attempts,
        subject=state["options"]["subject"],
    )
    _emit("elm.consolidation.queued", job_id=job.id, created=created, state=job.state.value)
    if job.state is JobState.QUEUED:
        runtime.runner.notify()
    return job.id


def _use(runtime: Runtime, state: State) -> UseRecord:
    assert state["use_id"] is not None
    assert state["memory_id"] is not None
    memory, zero_shot = state["candidates"]["memory"], state["candidates"]["zero_shot"]
    return UseRecord(
        id=state["use_id"],
        namespace=state["options"]["namespace"],
        memory_id=state["memory_id"],
        memory_namespace=state["memory_namespace"] or state["options"]["namespace"],
        subject=state["options"]["subject"],
        question=state["question"],
        similarity=state["similarity"] or 0.0,
        key_kind=runtime.settings.retrieval.key,
        route=Route(state["route"]),
        reason=state["reason"],
        answer=state["answer"],
        memory_answer=None if memory is None else memory["answer"],
        zero_shot_answer=None if zero_shot is None else zero_shot["answer"],
        tier=Tier(state.get("tier", Tier.NORMAL.value)),
        outcome=UseOutcome.UNKNOWN,
        created_at=utcnow(),
    )


def _uses_of_heard(served: UseRecord, state: State) -> list[UseRecord]:
    """Of the memories that answered beside the one that serves: each with its own answer and how that stood."""
    return [replace(served, **use_of(one)) for one in state.get("heard", [])]


def show_candidate(source: str, made: Candidate) -> CandidateState:
    plain = cast(CandidateState, asdict(made))
    _emit("elm.candidate", source=source, **plain)
    return plain


def _memory_failure(what: str, error: Exception, **ids: str | None) -> Update:
    logger.warning("%s", what, exc_info=error, extra=ids)
    return {"memory_failed": True, "memory_note": f"{what}: {describe(error)}"}


def _emit(event: str, **detail: Any) -> None:
    get_stream_writer()({"event": event, **detail})
