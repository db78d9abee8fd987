"""A person between a memory's answer and the plain one that it would stand in for: what they are asked and may say.

Knows the state and LangGraph's interrupts; stores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypedDict, TypeVar, get_args

from langgraph.config import get_config
from langgraph.constants import CONFIG_KEY_CHECKPOINTER
from langgraph.errors import is_invalid_resume
from langgraph.types import interrupt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from elm_agent.errors import InputError
from elm_agent.integrations.langgraph.choosing import Update
from elm_agent.integrations.langgraph.state import State
from elm_agent.memory.answering import joined
from elm_agent.memory.explaining import why
from elm_agent.memory.reviewing import LONGEST_NOTE, check_note, chosen
from elm_agent.records import Review, Route, UseRecord
from elm_agent.runtime import Runtime

Choice = Literal["memory", "zero_shot"]


class OverrideAsked(TypedDict):
    """The value of the interrupt: both answers, and why the memory's would be returned. JSON-safe."""

    kind: Literal["override"]
    question: str
    namespace: str
    memory_id: str
    memory_namespace: str
    similarity: float | None
    memory_answer: str
    memory_text: str
    zero_shot_answer: str
    zero_shot_text: str
    why: str
    choices: list[str]


class Reply(BaseModel):
    """What resumes a run: an object of choice and note, or the choice alone as a word."""

    model_config = ConfigDict(extra="forbid")

    note: str | None = Field(None, max_length=LONGEST_NOTE)

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"choice": value} if isinstance(value, str) else value

    @field_validator("note")
    @classmethod
    def _storable(cls, value: str | None) -> str | None:
        return check_note(value)  # here, for an answer that the interrupt has taken cannot be given again


class OverrideDecision(Reply):
    """What resumes the run: ``{"choice": "memory", "note": "..."}``, or the choice alone as a word."""

    choice: Choice


Decision = TypeVar("Decision", bound=Reply)


def resumable() -> bool:
    """Whether the run is kept somewhere, so that it can stop for a person and go on."""
    return bool(get_config().get("configurable", {}).get(CONFIG_KEY_CHECKPOINTER))


def mode_of(wanted: str, *, alone: bool) -> str:
    """How the run asks: "off", "interrupt" or "queue". A run that nothing could resume does not stop, it queues.

    ``alone``: whether the run generates its answers by itself, and would do so again if it were resumed.
    """
    return "queue" if wanted == "interrupt" and (alone or not resumable()) else wanted


def overrides(update: Update) -> bool:
    """Whether a memory's answer is to be returned though the plain text has another one."""
    if update["route"] != Route.MEMORY.value:
        return False
    zero_shot = update["candidates"]["zero_shot"]
    return zero_shot is not None and zero_shot["answer"] is not None


def deferred(update: Update) -> Update:
    """The plain answer in the place of the memory's, until somebody has decided."""
    plain = update["candidates"]["zero_shot"]
    return {
        "route": Route.DEFERRED.value,
        "answer": plain["answer"],
        "text": plain["text"],
        "reason": joined(update["reason"], "the memory's answer was preferred, and awaits review"),
    }


def asked(runtime: Runtime, state: State) -> OverrideDecision:
    """Stop the run until somebody has decided; once they have, what they said.

    Raises:
        InputError: it is neither of the two. The question still waits, and can be answered again.
    """
    return answered(payload(runtime, state), OverrideDecision)


def answered(question: Mapping[str, Any], form: type[Decision]) -> Decision:
    """Stop the run until somebody has answered in the form, which has a ``choice`` and a ``note``.

    Raises:
        InputError: the answer has another form. The question still waits, and can be answered again.
    """
    try:
        return interrupt(question, response_schema=form)
    except ValidationError as error:
        if not is_invalid_resume(error):
            raise
        got = error.errors()[0]["input"]
        raise InputError(
            f"a review is answered with {' or '.join(map(repr, question['choices']))}, or with an object of choice "
            f"and note; got {got!r:.80}: the question still waits, answer it again"
        ) from error


def payload(runtime: Runtime, state: State) -> OverrideAsked:
    """What a person sees."""
    memory, plain = state["candidates"]["memory"], state["candidates"]["zero_shot"]
    assert memory is not None
    assert plain is not None
    assert state["memory_id"] is not None
    scores = {"memory": memory["score"], "zero_shot": plain["score"]}
    return OverrideAsked(
        kind="override",
        question=state["question"],
        namespace=state["options"]["namespace"],
        memory_id=state["memory_id"],
        memory_namespace=state["memory_namespace"] or state["options"]["namespace"],
        similarity=state["similarity"],
        memory_answer=memory["answer"] or "",
        memory_text=memory["text"],
        zero_shot_answer=plain["answer"] or "",
        zero_shot_text=plain["text"],
        why=why(Route(state["route"]), state["reason"], verifier=runtime.verifier.name, **scores),
        choices=list(get_args(Choice)),
    )


def decided(state: State, decision: OverrideDecision) -> Update:
    """The answer that they chose. ``decision`` stays in the state until the use is noted."""
    update: Update = {"decision": decision.model_dump(), "candidates": state["candidates"]}
    if decision.choice == "memory":
        return update | {"reason": joined(state["reason"], "a person chose the memory's answer"), **_answer(state)}
    plain = state["candidates"]["zero_shot"]
    assert plain is not None
    return update | {
        "route": Route.ZERO_SHOT.value,
        "answer": plain["answer"],
        "text": plain["text"],
        "reason": "a person chose the plain answer",
    }


def reviewed(use: UseRecord, state: State) -> UseRecord:
    """The use with what a person has said, or is to say."""
    decision = state.get("decision")
    if decision is None:
        return replace(use, review=Review.WAITING) if use.route is Route.DEFERRED else use
    verdict = Review.APPROVED if decision["choice"] == "memory" else Review.REJECTED
    return chosen(use, verdict, decision["note"])


def _answer(state: State) -> Update:
    return {name: state[name] for name in ("route", "answer", "text")}
