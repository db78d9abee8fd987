"""``elm-agent ask``: one question, one answer."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from elm_agent.cli.opening import opened_runtime
from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output, plain, short
from elm_agent.errors import InputError


def ask(
    options: Shared,
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="The question; - reads it from standard input.")
    ],
    learn: Annotated[
        bool | None, typer.Option("--learn/--no-learn", help="Queue a learning job, or not.", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Learn before the command ends.")] = False,
) -> None:
    """Ask one question. What it teaches is queued; `elm-agent worker --once`, or --wait here, learns it."""
    text = usable_question(sys.stdin.read() if question == "-" else question)
    out = options.output()
    overrides = {} if learn is None else {"learn": learn}
    with opened_runtime(options, worker={"mode": "thread" if wait else "external"}, **overrides) as runtime:
        from elm_agent.integrations.langgraph import build_graph

        result = plain(build_graph(runtime).invoke({"question": text}))
        _show(out, result)
        if wait and result.get("job_id"):
            runtime.runner.wait_idle()
            job = runtime.bank.jobs.get(result["job_id"])
            out.note(f"job {job.id}: {job.state}{f', memory {job.memory_id}' if job.memory_id else ''}")


def usable_question(text: str) -> str:
    """The question without surrounding white space.

    Raises:
        InputError: blank, or with characters that no database stores.
    """
    if not text.strip():
        raise InputError("the question is blank: ask something")
    if "\x00" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError("the question is not UTF-8 text without NUL characters")
    return text.strip()


def _show(out: Output, result: dict[str, object]) -> None:
    if out.json:
        out.document(result)
        return
    out.say(str(result.get("text") or result.get("answer")))
    memory = result.get("memory_id")
    out.note(
        f"\nanswer {short(result.get('answer'))} · route {result.get('route')}"
        + (f" · memory {memory} (similarity {result.get('similarity'):.3f})" if memory else "")
        + (f" · {result.get('reason')}" if result.get("reason") else "")
        + (f" · learning queued as {result.get('job_id')}" if result.get("job_id") else "")
    )
