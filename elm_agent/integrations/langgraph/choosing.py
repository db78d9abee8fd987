"""What an answer may cost, which one it is, and why: decisions of a run on its state. Emits and stores nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any, cast

from elm_agent.errors import InputError, NotFound, TensorCorrupt, TensorMissing
from elm_agent.integrations.langgraph.state import CandidateState, Heard, Opinion, Options, State
from elm_agent.memory.answering import Decision, ask, candidate, decide, decide_alone, describe, joined
from elm_agent.memory.example import example_of, with_turns
from elm_agent.memory.explaining import explanation
from elm_agent.memory.opinions import hear, stay, stood, undecided
from elm_agent.memory.recall import Recall
from elm_agent.memory.tiers import Chosen, Sample, choose, vote
from elm_agent.protocols import Message, RowStream
from elm_agent.records import Candidate, Generation, Route, Tier, new_id
from elm_agent.runtime import Runtime
from elm_agent.verification import draw_texts

logger = logging.getLogger(__name__)

Update = dict[str, Any]


def tier_of(runtime: Runtime, question: str, options: Options, found: Recall) -> Chosen:
    """What the answer may cost. Asks what the memory is worth only where that matters. Raises ``StorageError``."""
    wanted = options.get("tier", "normal")
    worth = chance = None
    if wanted in ("auto", "cheap") and found.memory_id is not None and found.namespace is not None:
        home = found.namespace, found.memory_id
        worth = runtime.bank.posteriors(options["namespace"], [home], runtime.ranking.weights)[home]
        chances = [one.chance for one in found.considered if (one.hit.namespace, one.hit.memory_id) == home]
        chance = chances[0] if chances else None
    chosen = choose(question, worth, runtime.budget, wanted=wanted, chance=chance)
    if chosen.tier is Tier.CHEAP and options.get("review", "off") != "off":
        return replace(chosen, tier=Tier.NORMAL, reason="a person may be asked, so there is a plain answer to choose")
    return chosen


def row_of(
    runtime: Runtime,
    state: State,
    memory: tuple[str, str] | None = None,
    *,
    messages: Sequence[Message] | None = None,
    pieces: bool = False,
) -> Future[Generation] | RowStream:
    """Queue a row of the question; see ``memory.answering.ask``. ``memory``: namespace and id, put before it."""
    return ask(
        state["question"],
        model=runtime.model,
        task=runtime.task,
        max_new_tokens=runtime.settings.max_new_tokens,
        prefix=None if memory is None else runtime.bank.prompt(*memory),
        messages=messages,
        pieces=pieces,
    )


def routed(runtime: Runtime, state: State, late_zero_shot: Callable[[], CandidateState]) -> Update:
    """The answer, its route and reason; see ``memory.answering.decide``, and ``memory.tiers`` for what it may cost.

    ``late_zero_shot``: generates the plain candidate, where the memory's row alone was asked for and has no answer.
    """
    memory, zero_shot = state["memory_candidate"], state["zero_shot_candidate"]
    if zero_shot is None and memory is not None and memory["answer"] is not None:
        return _alone(state, memory)
    decision = _decided(runtime, state, Candidate(**(zero_shot or late_zero_shot())))
    # two rows were generated after all where one should have been enough
    update: Update = {"tier": Tier.NORMAL.value} if state.get("tier") == Tier.CHEAP else {}
    tallies: dict[str, Any] = {}
    asked = state.get("opinions") or state.get("asks_example") or runtime.settings.verification.lead
    if asked and undecided(decision):
        decision, tallies, served = _heard(runtime, state, decision)
        update |= served
    if state.get("tier") == Tier.THOROUGH:
        decision, voted = _voted(runtime, state, decision)
        tallies |= voted
    if tallies:
        update["budget"] = state.get("budget", {}) | tallies
    for one in update.get("heard", []):  # by the last word, which may be that of the samples
        one["route"] = stood(Candidate(**one["candidate"]), decision, runtime.task).value
    return update | {
        "answer": decision.answer,
        "text": decision.text,
        "route": decision.route.value,
        "reason": joined(state["memory_note"] if decision.memory is not None else None, decision.reason),
        "candidates": {
            "memory": None if decision.memory is None else asdict(decision.memory),
            "zero_shot": asdict(decision.zero_shot),
        },
    }


def explained(runtime: Runtime, state: State, update: Update) -> Update:
    """Why; see ``memory.explaining``. ``update``: of ``routed``."""
    candidates = update["candidates"]
    return explanation(
        ranking=runtime.ranking,
        top_k=runtime.settings.retrieval.top_k,
        threshold=state["options"]["min_similarity"],
        considered=state.get("considered", []),
        memory_id=update.get("memory_id", state["memory_id"]),
        route=Route(update["route"]),
        reason=update["reason"],
        verifier=runtime.verifier.name,
        memory=candidates["memory"],
        zero_shot=candidates["zero_shot"],
        abstention=state.get("abstention"),
        budget={
            "tier": update.get("tier") or state.get("tier", Tier.NORMAL.value),
            **(update.get("budget") or state.get("budget") or {}),
        },
        heard=update.get("heard") or state.get("heard") or [],
        example=update.get("example") or state.get("example"),
        by_prompt=update.get("by_prompt") or state.get("by_prompt"),
    )


def _alone(state: State, memory: CandidateState) -> Update:
    return {
        "answer": memory["answer"],
        "text": memory["text"],
        "route": Route.MEMORY_ALONE.value,
        "reason": joined(state["memory_note"], state.get("budget", {}).get("reason")),
        "candidates": {"memory": memory, "zero_shot": None},
    }


def _decided(runtime: Runtime, state: State, zero_shot: Candidate) -> Decision:
    if state["memory_failed"]:
        return decide_alone(zero_shot, Route.FAILED_MEMORY, state["memory_note"])
    if state["memory_candidate"] is None:
        return decide_alone(zero_shot, Route.NO_MEMORY, state["memory_note"])
    memory = Candidate(**state["memory_candidate"])
    return decide(state["question"], memory, zero_shot, runtime.task, runtime.verifier)


def _heard(runtime: Runtime, state: State, decision: Decision) -> tuple[Decision, dict[str, Any], Update]:
    """What further memories, and the nearest one in words, make of it, their rows drawn in one batch. Also the tally,
    who serves and who spoke. A further memory that has no words speaks by its prompt.

    A failure costs their say, not the answer; where one has to lead the plain answer, that one stands.
    """
    lead, by_words = runtime.settings.verification.lead, runtime.settings.verification.opinions_by == "words"
    try:
        homes = _readable(runtime, state.get("opinions", []))
        worded = [_asked_in_words(runtime, state, home) if by_words else None for home in homes]
        rows = [
            row or row_of(runtime, state, (home["namespace"], home["memory_id"]))
            for row, home in zip(worded, homes, strict=True)
        ]
        in_words = _asked_in_words(runtime, state, _nearest(state)) if state.get("asks_example") else None
        opinions = [
            candidate(row.result(), task=runtime.task, memory_id=home["memory_id"])
            for row, home in zip(rows, homes, strict=True)
        ]
        if in_words is not None:  # the last voice, and no further memory's
            opinions.append(candidate(in_words.result(), task=runtime.task, memory_id=state["memory_id"]))
        if not opinions and not lead:
            return decision, {}, {}
        heard = hear(state["question"], decision, opinions, runtime.task, runtime.verifier, lead=lead)
    except Exception as error:
        logger.warning("no further memory was heard", exc_info=error)
        stands = stay(decision) if lead else decision
        return _without(stands, "no further memory was heard", error), {}, {}
    tally = {"votes": heard.votes, "voters": heard.voters, "memories": [home["memory_id"] for home in homes]}
    spoke = [
        _spoke(home, said, in_words=row is not None)
        for home, said, row in zip(homes, heard.opinions, worded, strict=False)
    ]
    told: Update = {"heard": spoke} if homes else {}
    if in_words is not None:
        told["example"] = asdict(heard.opinions[-1])
    nearest = decision.memory
    assert nearest is not None
    if heard.speaker is None:
        return heard.decision, {"opinions": tally}, told
    if heard.speaker == len(homes):  # the nearest one serves, by its words
        return heard.decision, {"opinions": tally}, told | {"by_prompt": asdict(nearest)}
    home = homes[heard.speaker]
    spoke[heard.speaker] = _spoke(_nearest(state), nearest)  # the two change places
    served = {"memory_namespace": home["namespace"], "memory_id": home["memory_id"], "similarity": home["similarity"]}
    return heard.decision, {"opinions": tally}, told | served


def _asked_in_words(runtime: Runtime, state: State, home: Opinion) -> Future[Generation] | RowStream | None:
    """The row of the question after the memory's own example; None where it has none, or none that fits."""
    namespace, memory_id = home["namespace"], home["memory_id"]
    try:
        memory, episode = runtime.bank.memory(namespace, memory_id), runtime.bank.episode(namespace, memory_id)
        example = example_of(memory, episode, runtime.task)
        if example is None:
            return None
        return row_of(runtime, state, messages=with_turns(runtime.task, state["question"], [example]))
    except (NotFound, InputError) as error:
        logger.warning("memory %s has no example: %s", memory_id, error)
        return None


def _nearest(state: State) -> Opinion:
    assert state["memory_id"] is not None
    return Opinion(
        namespace=state["memory_namespace"] or state["options"]["namespace"],
        memory_id=state["memory_id"],
        similarity=state["similarity"] or 0.0,
    )


def _spoke(home: Opinion, said: Candidate, *, in_words: bool = False) -> Heard:
    """How it stood is known when the answer is."""
    plain = cast(CandidateState, asdict(said))
    return Heard(**home, use_id=new_id("use"), route=Route.OUTVOTED.value, candidate=plain, in_words=in_words)


def _readable(runtime: Runtime, homes: Sequence[Opinion]) -> list[Opinion]:
    """Those whose memory can be read; it is in the bank's cache then."""
    found = []
    for home in homes:
        try:
            runtime.bank.prompt(home["namespace"], home["memory_id"])
        except (TensorMissing, TensorCorrupt, NotFound) as error:
            ids = {"memory_id": home["memory_id"], "namespace": home["namespace"]}
            logger.warning("memory %s is not heard: %s", home["memory_id"], error, extra=ids)
        else:
            found.append(home)
    return found


def _voted(runtime: Runtime, state: State, decision: Decision) -> tuple[Decision, dict[str, Any]]:
    """What a vote of further samples makes of it. A failure costs the vote, not the answer."""
    try:
        texts = draw_texts(
            state["question"],
            model=runtime.model,
            task=runtime.task,
            samples=runtime.budget.samples,
            max_new_tokens=runtime.settings.max_new_tokens,
            temperature=runtime.recipe.temperature,
            seed=runtime.budget.seed,
        )
        voted, tally = vote(decision, [Sample(text, runtime.task.extract(text)) for text in texts], runtime.task)
    except Exception as error:
        logger.warning("the vote failed", exc_info=error)
        return _without(decision, "the vote failed", error), {}
    return voted, {"vote": asdict(tally)}


def _without(decision: Decision, what: str, error: Exception) -> Decision:
    return replace(decision, reason=joined(decision.reason, f"{what}: {describe(error)}"))
