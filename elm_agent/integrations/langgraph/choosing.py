"""What an answer may cost, which one it is, and why: decisions of a run on its state. Emits and stores nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from elm_agent.integrations.langgraph.state import CandidateState, Options, State
from elm_agent.memory.answering import Decision, decide, decide_alone, describe
from elm_agent.memory.explaining import explanation
from elm_agent.memory.recall import Recall
from elm_agent.memory.tiers import Chosen, Sample, choose, vote
from elm_agent.records import Candidate, Route, Tier
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
    if state.get("tier") == Tier.THOROUGH:
        decision, update = _voted(runtime, state, decision)
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
        memory_id=state["memory_id"],
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
    )


def joined(*reasons: str | None) -> str | None:
    """All reasons there are, in one line."""
    return "; ".join(reason for reason in reasons if reason) or None


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


def _voted(runtime: Runtime, state: State, decision: Decision) -> tuple[Decision, Update]:
    """What a vote of further samples makes of it. A failure costs the vote, not the answer."""
    try:
        texts = draw_texts(
            state["question"],
            model=runtime.model,
            task=runtime.task,
            samples=runtime.budget.samples,
            max_new_tokens=runtime.settings.max_new_tokens,
            seed=runtime.budget.seed,
        )
        voted, tally = vote(decision, [Sample(text, runtime.task.extract(text)) for text in texts], runtime.task)
    except Exception as error:
        logger.warning("the vote failed", exc_info=error)
        return replace(decision, reason=joined(decision.reason, f"the vote failed: {describe(error)}")), {}
    return voted, {"budget": state.get("budget", {}) | {"vote": asdict(tally)}}
