"""A stream of questions, answered in order and learned from, that can be killed at any point and taken up again.

The order is the paper's (METHOD section 3): a question is answered with the bank as it was before it, and only
then learned from. Knows nothing of terminals; what happens is told to an observer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elm_agent.bench.results import ResultsFile
from elm_agent.bench.streams import Line
from elm_agent.errors import InputError, TaskError
from elm_agent.protocols import Observer
from elm_agent.records import UseOutcome, question_digest

ANSWERED, FAILED = "answered", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamParts:
    """What a stream needs of a runtime.

    ``answer`` maps a question, and whose it is, to the graph's output; ``equivalent`` compares two answers;
    ``settle`` records what a use led to; ``learn`` waits until a job is over and tells how it went. Without
    ``learn`` the stream does not wait.
    """

    answer: Callable[[str, str | None], Mapping[str, Any]]
    equivalent: Callable[[str, str], bool]
    settle: Callable[[str, UseOutcome], None]
    learn: Callable[[str], Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSummary:
    """Counts over the whole results file, earlier runs of the same stream included."""

    lines: int
    answered: int
    failed: int
    judged: int  # answers with a reference
    right: int
    zero_shot_right: int
    fixed: int
    broken: int
    routes: dict[str, int]
    seconds_per_answer: float | None


def pending(lines: Sequence[Line], results: ResultsFile) -> list[Line]:
    """The lines that have no answer yet.

    Raises:
        InputError: the results were made from other input.
    """
    known = {line.number: _digest(line) for line in lines}
    for number, record in results.records.items():
        digest = record["question_digest"]
        if number not in known or (digest is not None and digest != known[number]):
            raise InputError(
                f"{results.path} was made from other input (line {number} differs): "
                "name another results file, or move this one away"
            )
    return [line for line in lines if results.records.get(line.number, {}).get("status") != ANSWERED]


def record_faults(lines: Sequence[Line], results: ResultsFile, *, observe: Observer) -> None:
    """Write down the lines that hold no question. Needs no model, so it is done before one is loaded.

    Told to ``observe``: ``failure`` with each record, also of those that an earlier run wrote down.

    Raises:
        InputError: the results were made from other input.
    """
    for line in pending(lines, results):
        if line.question is None:
            _keep(_failed(line, line.fault), results, observe)


def run_stream(lines: Sequence[Line], results: ResultsFile, parts: StreamParts, *, observe: Observer) -> None:
    """Answer every question that has no answer yet, in order; a record is on disk before its learning is waited for.

    Told to ``observe``: ``answer`` and ``failure`` with the record, ``learned`` with what ``parts.learn`` returns.

    Raises:
        InputError: the results were made from other input.
        ElmError: what concerns the whole stream (storage, model). What concerns one line becomes its record.
    """
    for line in pending(lines, results):
        if line.question is None:
            continue
        record = _answered(line, line.question, parts)
        _keep(record, results, observe)
        if record.get("job_id") and parts.learn is not None:
            observe("learned", {"line": line.number, **parts.learn(record["job_id"])})


def _keep(record: dict[str, Any], results: ResultsFile, observe: Observer) -> None:
    """On disk first, then told. A failure that an earlier run wrote down is told again, not written again."""
    if record != results.records.get(record["line"]):
        results.append(record)
    observe("answer" if record["status"] == ANSWERED else "failure", record)


def summarise(lines: Sequence[Line], results: ResultsFile) -> StreamSummary:
    """Counts over the records of ``results``."""
    records = list(results.records.values())
    answered = [record for record in records if record["status"] == ANSWERED]
    judged = [record for record in answered if record["right"] is not None]
    seconds = [record["seconds"] for record in answered]
    routes = [record["route"] for record in answered]
    return StreamSummary(
        lines=len(lines),
        answered=len(answered),
        failed=sum(record["status"] == FAILED for record in records),
        judged=len(judged),
        right=sum(record["right"] for record in judged),
        zero_shot_right=sum(bool(record["zero_shot_right"]) for record in judged),
        fixed=sum(record["outcome"] == UseOutcome.FIXED for record in judged),
        broken=sum(record["outcome"] == UseOutcome.BROKEN for record in judged),
        routes={str(route): routes.count(route) for route in sorted(set(routes))},
        seconds_per_answer=sum(seconds) / len(seconds) if seconds else None,
    )


def judged_outcome(zero_shot_right: bool, right: bool) -> UseOutcome:
    """What the memory did, given what was right."""
    if right:
        return UseOutcome.BOTH_RIGHT if zero_shot_right else UseOutcome.FIXED
    return UseOutcome.BROKEN if zero_shot_right else UseOutcome.BOTH_WRONG


def _digest(line: Line) -> str | None:
    return None if line.question is None else question_digest(line.question)


def _answered(line: Line, question: str, parts: StreamParts) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        result = parts.answer(question, line.subject)
    except (InputError, TaskError) as error:
        return _failed(line, str(error))
    seconds = round(time.perf_counter() - started, 4)
    told = {**_told(result), **_judged(line, result, parts), "seconds": seconds}
    return {**_head(line), "status": ANSWERED, **told}


def _failed(line: Line, reason: str | None) -> dict[str, Any]:
    return {**_head(line), "status": FAILED, "reason": reason}


def _head(line: Line) -> dict[str, Any]:
    head = {"line": line.number, "question_digest": _digest(line)}
    return head | {"question": line.question, "reference": line.reference}


def _told(result: Mapping[str, Any]) -> dict[str, Any]:
    names = ("answer", "route", "reason", "memory_id", "similarity", "use_id", "job_id")
    told = {name: result.get(name) for name in names}
    return told | {"text": result.get("text"), **_candidate(result, "zero_shot"), **_candidate(result, "memory")}


def _candidate(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    candidate = (result.get("candidates") or {}).get(name) or {}
    return {f"{name}_answer": candidate.get("answer"), f"{name}_score": candidate.get("score")}


def _judged(line: Line, result: Mapping[str, Any], parts: StreamParts) -> dict[str, Any]:
    """Right or wrong against the reference; a comparison that fails is told, and counts as neither."""
    nothing = {"right": None, "zero_shot_right": None, "outcome": UseOutcome.UNKNOWN.value}
    if line.reference is None:
        return nothing
    try:
        right = _right(result.get("answer"), line.reference, parts)
        plain_right = _right(_candidate(result, "zero_shot")["zero_shot_answer"], line.reference, parts)
    except TaskError as error:
        return nothing | {"judging_failed": str(error)}
    outcome = judged_outcome(plain_right, right)
    if result.get("use_id"):
        parts.settle(str(result["use_id"]), outcome)
    return {"right": right, "zero_shot_right": plain_right, "outcome": outcome.value}


def _right(answer: str | None, reference: str, parts: StreamParts) -> bool:
    return answer is not None and parts.equivalent(answer, reference)
