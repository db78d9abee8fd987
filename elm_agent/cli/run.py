"""``elm-agent run``: a stream of questions from a file, answered and learned from, resumable after a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli.opening import opened_runtime
from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output, plain, short
from elm_agent.cli.progress import Advance, stream_bar
from elm_agent.errors import InputError

if TYPE_CHECKING:
    from elm_agent.bench.results import ResultsFile
    from elm_agent.bench.stream_run import StreamSummary
    from elm_agent.bench.streams import Line


def run(
    options: Shared,
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="One JSON object a line.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Results, JSONL; by default FILE.results.jsonl.")
    ] = None,
    question_field: Annotated[
        str, typer.Option("--question-field", metavar="NAME", help="Holds the question.")
    ] = "question",
    answer_field: Annotated[
        str, typer.Option("--answer-field", metavar="NAME", help="Holds the reference answer, where there is one.")
    ] = "answer",
    subject_field: Annotated[
        str, typer.Option("--subject-field", metavar="NAME", help="Holds whose question it is, where there is one.")
    ] = "subject",
    learn: Annotated[
        bool | None,
        typer.Option(
            "--learn/--no-learn", help="Learn from each answer before the next question.", show_default=False
        ),
    ] = None,
) -> int:
    """Answer a stream of questions in order; each one is learned from before the next is asked.

    The same command goes on where a stopped run ended. Lines that cannot be used are named in the results and make
    the exit code 2; the rest goes on. References are for counting only: learning never sees them.
    """
    from elm_agent.bench.results import ResultsFile
    from elm_agent.bench.stream_run import pending, record_faults, summarise
    from elm_agent.bench.streams import read_questions

    fields = {"question_field": question_field, "answer_field": answer_field, "subject_field": subject_field}
    lines = list(read_questions(file, **fields))
    where = out or file.with_suffix(".results.jsonl")
    if where.exists() and where.samefile(file):
        raise InputError(f"{where} is the input itself: name another results file with --out")
    show = options.output()
    with ResultsFile(where) as results:
        left = pending(lines, results)
        _resumed(show, results, done=len(lines) - len(left))
        record_faults(lines, results, observe=_Teller(show))
        if any(line.question is not None for line in left):
            _answer(options, show, lines, results, _learning(learn))
        summary = summarise(lines, results)
    _sum_up(show, summary, where)
    return InputError.exit_code if summary.failed else 0


def _answer(
    options: Shared, show: Output, lines: Sequence[Line], results: ResultsFile, overrides: dict[str, Any]
) -> None:
    from elm_agent.bench.stream_parts import parts_of
    from elm_agent.bench.stream_run import pending, run_stream

    strict = {"exclude_same_question": True}  # a question asked twice, or again after a kill, must not meet itself
    with opened_runtime(options, retrieval=strict, **overrides) as runtime:
        if runtime.settings.learn and runtime.settings.worker.mode != "external":
            runtime.runner.wait_idle()  # what a stopped run had queued is learned before the next question
        left = len(pending(lines, results))
        with stream_bar(show, total=len(lines), done=len(lines) - left) as bar:
            tell = _Teller(show, bar)
            run_stream(lines, results, parts_of(runtime, observe=tell), observe=tell)


def _learning(learn: bool | None) -> dict[str, Any]:
    """Settings of --learn and --no-learn; without learning the queue is left alone, or the bank would change."""
    if learn is None:
        return {}
    return {"learn": True} if learn else {"learn": False, "worker": {"mode": "external"}}


class _Teller:
    """Tells each event: a line of JSON, or a line for people and the bar."""

    def __init__(self, show: Output, bar: Advance | None = None) -> None:
        self._show = show
        self._bar = bar

    def __call__(self, name: str, detail: Mapping[str, Any]) -> None:
        if self._show.json:
            self._show.event(name, detail)
        elif name == "answer":
            self._show.say(_answer_line(detail))
        elif name == "failure":
            self._show.note(f"line {detail['line']}: {_without_number(detail)}")
        elif name == "learned" and detail["state"] != "done":
            self._show.note(f"line {detail['line']}: learning {detail['state']}: {detail['reason']}")
        if self._bar is not None:
            self._bar(name == "answer" or name == "failure", _words(name, detail))


def _words(name: str, detail: Mapping[str, Any]) -> str:
    if name != "learning":
        return ""
    parts = [
        f"{key.replace('_', ' ')} {value:.3g}" for key, value in detail.items() if isinstance(value, int | float)
    ]
    return "learning: " + ", ".join(parts[:3])


def _without_number(detail: Mapping[str, Any]) -> str:
    return str(detail["reason"]).removeprefix(f"line {detail['line']}").lstrip(": ")


def _answer_line(record: Mapping[str, Any]) -> str:
    mark = {None: "", True: "right", False: "wrong"}[record["right"]]
    memory = f", {record['memory_id']} at {record['similarity']:.3f}" if record["memory_id"] else ""
    flip = f", {record['outcome']}" if record["outcome"] in ("fixed", "broken") else ""
    asked, said = short(record["question"], 60), short(record["answer"], 30)
    return f"{record['line']:>4}  {mark:<5}  {asked}  ->  {said}  ({record['route']}{memory}{flip})"


def _resumed(show: Output, results: ResultsFile, *, done: int) -> None:
    if results.mended:
        show.note("the last line of the results was cut off and has been dropped")
    if done:
        show.note(f"{done} lines are answered already; going on with the rest")


def _sum_up(show: Output, summary: StreamSummary, where: Path) -> None:
    if show.json:
        show.event("summary", {**plain(summary), "results": where})
        return
    show.say(f"\n{summary.answered} of {summary.lines} answered, {summary.failed} failed; results in {where}")
    if summary.judged:
        share = f"{summary.right}/{summary.judged} right, zero-shot {summary.zero_shot_right}/{summary.judged}"
        show.say(f"{share}; memories fixed {summary.fixed}, broke {summary.broken}")
    if summary.routes:
        show.say("routes: " + ", ".join(f"{route} {count}" for route, count in summary.routes.items()))
