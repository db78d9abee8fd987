"""Answer twice and choose: the two rows of a question, their candidates, and the decision (METHOD section 3).

Knows nothing of where a memory came from or what happens to the answer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from elm_agent.errors import InputError, VerificationError
from elm_agent.protocols import GenerationRequest, LanguageModel, Message, RowStream, StreamingModel, Task, Verifier
from elm_agent.records import Candidate, Generation, Route, is_storable

if TYPE_CHECKING:
    from elm_agent.adapters import Kept

logger = logging.getLogger(__name__)

LONGEST_SUBJECT = 500  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which candidate is returned, and why. The candidates carry the verifier's scores where it was asked."""

    route: Route
    answer: str | None
    text: str
    reason: str | None
    memory: Candidate | None
    zero_shot: Candidate


def check_question(question: object) -> str:
    """The question itself, or an ``InputError`` when it is not a text that can be asked and stored."""
    if not isinstance(question, str):
        raise InputError(f"a question is a text; got {type(question).__name__}")
    if not question.strip():
        raise InputError("the question is blank: expected some text")
    check_storable(question, "question")
    return question


def check_subject(subject: object) -> str | None:
    """The name of whose experience this is, or None; an ``InputError`` when it is not a text that can be stored."""
    if subject is None:
        return None
    if not isinstance(subject, str):
        raise InputError(f"a subject is a text; got {type(subject).__name__}")
    if not subject.strip() or len(subject) > LONGEST_SUBJECT:
        raise InputError(f"a subject has 1 to {LONGEST_SUBJECT} characters; got {len(subject.strip())}")
    check_storable(subject, "subject")
    return subject


def check_storable(text: str, what: str) -> None:
    """Raise ``InputError`` for a text that no database takes; ``what`` it is, for the message."""
    if not is_storable(text):
        raise InputError(f"the {what} is not UTF-8 text without NUL characters: it holds what no database stores")


def ask(
    question: str,
    *,
    model: LanguageModel,
    task: Task,
    max_new_tokens: int,
    prefix: Kept | None = None,
    pieces: bool = False,
    messages: Sequence[Message] | None = None,
) -> Future[Generation] | RowStream:
    """Queue the greedy row of a question, with a memory when ``prefix`` is given.

    Rows that are asked together run in one batch. ``messages``: the chat that asks it; by default the task's.
    ``pieces``: a stream of the row's text instead of a future, from a
    model that has one. Raises ``InputError`` when the row does not fit the model.
    """
    prompt_ids = model.encode(task.messages(question) if messages is None else messages)
    request = GenerationRequest(prompt_ids=prompt_ids, prefix=prefix, max_new_tokens=max_new_tokens)
    if pieces and isinstance(model, StreamingModel):
        return model.stream(request)
    return model.submit(request)


def candidate(generation: Generation, *, task: Task, memory_id: str | None = None) -> Candidate:
    """A generation with its extracted answer. Raises ``TaskError`` when extracting fails."""
    return Candidate(
        text=generation.text,
        answer=task.extract(generation.text),
        tokens=len(generation.token_ids),
        mean_logprob=generation.mean_logprob,
        self_certainty=generation.self_certainty,
        finished=generation.finished,
        seconds=generation.seconds,
        memory_id=memory_id,
    )


def decide(question: str, memory: Candidate, zero_shot: Candidate, task: Task, verifier: Verifier) -> Decision:
    """Choose between two candidates.

    Equivalent answers agree. An answer beats no answer, since a candidate without one cannot be right; two
    candidates without any agree when their texts do, else the plain one stands. Everything else is the
    verifier's: the higher score, a tie goes to zero-shot. A comparison or verifier that fails costs nothing:
    zero-shot, route ``failed_memory``, the reason recorded.
    """
    plain = _Choice(memory, zero_shot)
    if memory.answer is None or zero_shot.answer is None:
        return _without_both_answers(plain)
    try:
        if task.equivalent(memory.answer, zero_shot.answer):
            return plain.decision(Route.AGREED)
    except Exception as error:  # a task of one's own may raise anything
        logger.warning("task %r cannot compare", task.name, exc_info=error)
        return plain.decision(Route.FAILED_MEMORY, f"the answers could not be compared: {describe(error)}")
    try:
        choice = _scored(question, plain, verifier)
    except Exception as error:
        logger.warning("verifier %r failed", verifier.name, exc_info=error)
        return plain.decision(Route.FAILED_MEMORY, f"verifier {verifier.name!r} failed: {describe(error)}")
    assert choice.memory.score is not None
    assert choice.zero_shot.score is not None
    if choice.memory.score > choice.zero_shot.score:
        return choice.decision(Route.MEMORY)
    tie = choice.memory.score == choice.zero_shot.score
    return choice.decision(Route.ZERO_SHOT, f"verifier {verifier.name!r} gave both the same score" if tie else None)


def decide_alone(zero_shot: Candidate, route: Route, reason: str | None) -> Decision:
    """The plain candidate, when there is no other: route ``no_memory`` or ``failed_memory``."""
    return Decision(
        route=route, answer=zero_shot.answer, text=zero_shot.text, reason=reason, memory=None, zero_shot=zero_shot
    )


def describe(error: BaseException) -> str:
    """One line that names an error and says what it says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def joined(*reasons: str | None) -> str | None:
    """All reasons there are, in one line."""
    return "; ".join(reason for reason in reasons if reason) or None


@dataclass(frozen=True, slots=True)
class _Choice:
    memory: Candidate
    zero_shot: Candidate

    def decision(self, route: Route, reason: str | None = None) -> Decision:
        chosen = self.memory if route is Route.MEMORY else self.zero_shot
        return Decision(
            route=route,
            answer=chosen.answer,
            text=chosen.text,
            reason=reason,
            memory=self.memory,
            zero_shot=self.zero_shot,
        )


def _without_both_answers(choice: _Choice) -> Decision:
    if choice.memory.answer is not None:
        return choice.decision(Route.MEMORY, "the zero-shot text has no answer")
    if choice.zero_shot.answer is not None:
        return choice.decision(Route.ZERO_SHOT, "the memory's text has no answer")
    if choice.memory.text.split() == choice.zero_shot.text.split():
        return choice.decision(Route.AGREED, "neither text has an answer; both say the same")
    return choice.decision(Route.ZERO_SHOT, "neither text has an answer")


def _scored(question: str, choice: _Choice, verifier: Verifier) -> _Choice:
    verdicts = verifier.score(question, [choice.memory, choice.zero_shot])
    if len(verdicts) != 2:
        raise VerificationError(f"expected 2 verdicts; got {len(verdicts)}")
    scores = [float(verdict.score) for verdict in verdicts]
    if not all(math.isfinite(score) for score in scores):
        raise VerificationError(f"expected finite scores; got {scores}")
    memory, zero_shot = (
        replace(item, score=score) for item, score in zip((choice.memory, choice.zero_shot), scores, strict=True)
    )
    return _Choice(memory, zero_shot)
