"""``elm-agent ask``: one question, one answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli.explain import show_explanation
from elm_agent.cli.opening import opened_runtime
from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output, short
from elm_agent.errors import InputError, JobError
from elm_agent.records import JobState, is_storable

if TYPE_CHECKING:
    from elm_agent.runtime import Runtime


class Wanted(StrEnum):
    """A tier of the budget, or that it is chosen by expected gain."""

    AUTO = "auto"
    CHEAP = "cheap"
    NORMAL = "normal"
    THOROUGH = "thorough"


def ask(
    options: Shared,
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="The question; - reads it from standard input.")
    ],
    subject: Annotated[
        str | None,
        typer.Option("--subject", metavar="NAME", help="Whose question it is; `forget --subject NAME` erases it."),
    ] = None,
    learn: Annotated[
        bool | None, typer.Option("--learn/--no-learn", help="Queue a learning job, or not.", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Learn before the command ends.")] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also show each candidate's score in parts, and why the route was taken."),
    ] = False,
    tier: Annotated[
        Wanted | None,
        typer.Option(
            "--tier", help="What it may cost: one answer, two, or two and a vote; or chosen.", show_default=False
        ),
    ] = None,
    events: Annotated[
        bool, typer.Option("--events", help="One JSON object a line as it happens; the last is the answer.")
    ] = False,
) -> int:
    """Ask one question. What it teaches is queued; `elm-agent worker --once`, or --wait here, learns it.

    With --wait the exit code is 6 if the learning failed; the answer is told all the same.
    """
    text = usable_question(sys.stdin.read() if question == "-" else question)
    out = options.output()
    overrides = {} if learn is None else {"learn": learn}
    with opened_runtime(options, worker={"mode": "thread" if wait else "external"}, **overrides) as runtime:
        result = _answer(out, runtime, text, subject, events=events, explain=explain, tier=tier)
        learned = not (wait and result["job_id"]) or _wait(out, runtime, result["job_id"])
    return 0 if learned else JobError.exit_code


def usable_question(text: str) -> str:
    """The question without surrounding white space.

    Raises:
        InputError: blank, or with characters that no database stores.
    """
    if not text.strip():
        raise InputError("the question is blank: ask something")
    if not is_storable(text):
        raise InputError("the question is not UTF-8 text without NUL characters")
    return text.strip()


def _answer(
    out: Output,
    runtime: Runtime,
    question: str,
    subject: str | None,
    *,
    events: bool,
    explain: bool,
    tier: Wanted | None,
) -> Mapping[str, Any]:
    from elm_agent.integrations.langgraph import build_graph

    result: Mapping[str, Any] = {}
    asked = {"question": question, "subject": subject}
    context: dict[str, Any] = {"explain": explain} | ({} if tier is None else {"tier": tier.value})
    graph: Any = build_graph(runtime)
    parts = graph.stream(asked, context=context, stream_mode=["custom", "values"])
    for mode, part in parts:
        if mode == "values":
            result = part
        elif events:
            out.event(part["event"], {name: value for name, value in part.items() if name != "event"})
    if events:
        out.event("answer", result)
    elif out.json:
        out.document(result)
    else:
        out.say(result["text"])
        out.note("\n" + _told(result))
        if explain:
            show_explanation(out, result["explanation"])
    return result


def _told(result: Mapping[str, Any]) -> str:
    parts = [f"answer {short(result['answer'])}", f"route {result['route']}"]
    if result["memory_id"]:
        parts.append(f"memory {result['memory_id']} at {result['similarity']:.3f}")
    if result["use_id"]:
        parts.append(f"use {result['use_id']}")
    if result["reason"]:
        parts.append(result["reason"])
    if result["job_id"]:
        parts.append(f"learning queued as {result['job_id']}")
    return "; ".join(parts)


def _wait(out: Output, runtime: Runtime, job_id: str) -> bool:
    """Wait for the end of the job; whether it was learned."""
    from elm_agent.bench.stream_parts import LOOK_SECONDS, wait_for

    job = wait_for(
        lambda: runtime.bank.jobs.get(runtime.settings.namespace, job_id),
        pause=lambda: runtime.runner.wait_idle(LOOK_SECONDS),
        observe=lambda _name, _detail: None,
    )
    out.note(f"{job.id}: {job.state}, {job.memory_id or job.reason}")
    return job.state is JobState.DONE
