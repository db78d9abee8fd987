"""What goes in and comes out as JSON: the bodies of questions, and answers made of records. Pydantic alone."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from elm_agent.memory.answering import LONGEST_SUBJECT
from elm_agent.memory.feedback import LONGEST_ANSWER
from elm_agent.memory.tiers import Wanted
from elm_agent.records import Candidate, Episode, EventRecord, Feedback, MemoryRecord, Route, UseRecord

LONGEST_QUESTION = 20_000  # characters; the model's context is the nearer limit
MOST_FOUND = 100  # memories recalled at once, as of `retrieval.top_k`
MOST_LISTED = 500  # rows of a page

Question = Annotated[str, Field(max_length=LONGEST_QUESTION, description="The question, as a person would ask it.")]
Subject = Annotated[
    str | None, Field(max_length=LONGEST_SUBJECT, description="Whose question it is, so that it can be forgotten.")
]
Similarity = Annotated[
    float | None,
    Field(ge=-1, le=1, allow_inf_nan=False, description="Cosine below which no memory is used; null: as configured."),
]
Learn = Annotated[bool | None, Field(description="Whether to learn from it; null: as configured.")]
Explain = Annotated[bool, Field(description="Also say why the answer is what it is.")]
Tier = Annotated[
    Wanted | None,
    Field(description="What the answer may cost; auto: as the memory's worth allows; null: as configured."),
]
Verdict = Annotated[Feedback, Field(description="Whether the answer that was returned is right.")]
RightAnswer = Annotated[
    str | None,
    Field(max_length=LONGEST_ANSWER, description="The right answer, if it is known; it must not contradict."),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AskBody(_Body):
    """A question to answer."""

    question: Question
    subject: Subject = None
    learn: Learn = None
    min_similarity: Similarity = None
    explain: Explain = False
    tier: Tier = None


class FeedbackBody(_Body):
    """What a user says of an answer."""

    verdict: Verdict
    answer: RightAnswer = None


class RecallBody(_Body):
    """A question to find memories for."""

    question: Question
    limit: Annotated[int, Field(ge=1, le=MOST_FOUND, description="At most so many.")] = 5
    min_similarity: Similarity = None


class Candidates(BaseModel):
    """Both answers; null where none was generated."""

    memory: Candidate | None
    zero_shot: Candidate | None


class Answered(BaseModel):
    """One answer, which of the two candidates it is, and what is noted of it."""

    answer: str | None
    text: str
    route: Route
    reason: str | None
    candidates: Candidates
    memory_id: str | None
    memory_namespace: str | None
    similarity: float | None
    use_id: str | None
    job_id: str | None
    explanation: dict[str, Any] | None = None


class Found(BaseModel):
    """One memory near a question, and how near."""

    similarity: float
    memory: MemoryRecord


class Lineage(BaseModel):
    """Where a memory comes from and what it did here. ``episode.rollouts`` is empty unless asked for."""

    memory: MemoryRecord
    episode: Episode
    uses: list[UseRecord]
    events: list[EventRecord]


class NamespaceShown(BaseModel):
    """One namespace and the model that its memories fit."""

    name: str
    model: str
    model_id: str
    revision: int


class Failure(BaseModel):
    """Why something could not be done, in one sentence."""

    type: str
    message: str


class Failed(BaseModel):
    """Every failure of the API."""

    error: Failure


FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failed, "description": text}
    for status, text in {
        400: "the body cannot be read",
        401: "no token, or one that is not known",
        404: "no such id, or no such namespace for this token",
        409: "the namespace or what is in it does not allow that",
        413: "the body is too large",
        422: "the question or an argument cannot be used",
        503: "a store or the model is busy or away: try again",
    }.items()
}
