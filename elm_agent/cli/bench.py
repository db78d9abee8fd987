"""``elm-agent bench``: measurements of this library on this machine. Opens no bank."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli import evidence
from elm_agent.cli.options import Shared, group, shared
from elm_agent.cli.output import Output
from elm_agent.cli.progress import fetch_embedded, stream_bar
from elm_agent.errors import InputError

if TYPE_CHECKING:
    from elm_agent.bench.speed_machine import ModelChoice
    from elm_agent.bench.speed_plan import Findings
    from elm_agent.cli.progress import Advance
    from elm_agent.settings import Settings

app = group("bench", "Measure what memories are worth, and how fast this library is on this machine.")
app.command("online")(shared(evidence.online))
app.command("offline")(shared(evidence.offline))
app.command("transfer")(shared(evidence.transfer))


@app.command()
@shared
def speed(
    options: Shared,
    arms: Annotated[
        str | None,
        typer.Option("--arms", metavar="LIST", help="Of trl,trl-tuned,native,native-M,answers; default: all."),
    ] = None,
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="LIST", help="Lengths of rollouts that ignore the end token.")
    ] = "24,64,256",
    natural: Annotated[
        int, typer.Option("--natural", min=0, help="Limit of rollouts that end by themselves; 0: none of these.")
    ] = 64,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns of every arm that count.")] = 5,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of every memory in a turn.")] = 1,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of table, JSON and picture.")] = Path(
        "docs/results/speed"
    ),
) -> None:
    """Compare training and answering with TRL, transformers and the limits of this machine.

    Every arm is a process of its own, and they take turns. Needs `pip install 'elm-agent[trl]'` for TRL's arms.
    """
    settings, show = options.load(), options.output()
    from elm_agent.bench.speed import run_speed
    from elm_agent.bench.speed_about import about
    from elm_agent.bench.speed_plan import Findings, Plan, check
    from elm_agent.bench.speed_report import prepare, write

    plan = Plan(
        model=_model(settings),
        arms=None if arms is None else tuple(_words(arms)),
        tokens=tuple(_length(word) for word in _words(tokens)),
        natural=natural,
        repeats=repeats,
        steps=steps,
    )
    check(plan)
    prepare(out)
    fetch_embedded(show, settings)
    findings = Findings(plan=plan, about=about(shlex.join(["elm-agent", *sys.argv[1:]])))
    try:
        with stream_bar(show, total=None, done=0) as bar:
            run_speed(plan, findings, _Teller(show, bar))
    finally:  # stopped or not: what was measured is kept and told
        if any(series.turns for series in findings.series) or findings.answers:
            _tell(show, findings, write(out, findings))


@app.command()
@shared
def rollouts(
    options: Shared,
    question: Annotated[
        str, typer.Option("--question", help="What the memory is trained on.")
    ] = "What is 7 times 8?",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of every memory.")] = 5,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Most tokens of a rollout.")] = 64,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Memories of each way that count.")] = 5,
) -> None:
    """Compare exact rollouts with drafts and with rounded weights: milliseconds a token, and how far off they are.

    The ways take turns; stopped with Ctrl-C, it tells what was measured until then.
    """
    settings, show = options.load(), options.output()
    from elm_agent.bench.rollouts import COLUMNS, WAYS, Runs, findings, measure, rows
    from elm_agent.records import Recipe

    recipe = Recipe(steps=steps, max_new_tokens=tokens)
    fetch_embedded(show, settings)
    runs: Runs = {}
    model = _model(settings).native(ignore_end=False)
    try:
        with stream_bar(show, total=len(WAYS) * (repeats + 1), done=0) as bar:
            bar(0, "each way once, which does not count")
            measure(model, question, recipe, repeats, runs, partial(_tell_way, show, bar))
    finally:
        model.close()
        if found := findings(runs):
            if show.json:
                show.event("report", {"question": question, "recipe": asdict(recipe), "ways": found})
            else:
                show.table(COLUMNS, rows(found))


@app.command()
@shared
def report(
    options: Shared,
    run: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Folder that a run was stored in.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the report; default: report in RUN_FOLDER.")
    ] = None,
) -> None:
    """Compute every figure of a stored run again, without a model, and write Markdown, one HTML page and JSON."""
    show = options.output()
    from elm_agent.bench.evidence.folder import read_run
    from elm_agent.bench.evidence.report import build, document, write
    from elm_agent.bench.evidence.report_pages import summary

    with stream_bar(show, total=None, done=0) as bar:
        made = build(read_run(run), told=lambda name: bar(1, name))
        bar(0, "drawing")
        paths = write(run / "report" if out is None else out, made)
    if show.json:
        show.document({**document(made), "files": paths})
        return
    for title, table, notes in summary(made):
        show.say(title)
        show.table(table.columns, table.rows)
        for note in notes:
            show.say(f"- {note}")
        show.say("")
    show.say(f"written: {', '.join(map(str, paths))}")


class _Teller:
    """Tells each event: a line of JSON, or words for people and the bar."""

    def __init__(self, show: Output, bar: Advance) -> None:
        self._show = show
        self._bar = bar

    def __call__(self, name: str, detail: Mapping[str, Any]) -> None:
        if self._show.json:
            self._show.event(name, detail)
        if name == "plan":
            self._show.note(f"about {detail['seconds'] / 60:.0f} minutes for {detail['turns']} turns, by an estimate")
        elif name == "failure":
            self._show.note(f"{detail['arm']}, {detail['tokens']} tokens: {detail['reason']}")
        self._bar(name == "turn", f"{detail['arm']}, {detail['tokens']} tokens" if "arm" in detail else "")


def _tell_way(show: Output, bar: Advance, way: str) -> None:
    if show.json:
        show.event("turn", {"way": way})
    bar(1, way)


def _tell(show: Output, findings: Findings, paths: Sequence[Path]) -> None:
    from elm_agent.bench import speed_goals
    from elm_agent.bench.speed_report import COLUMNS, answer_rows, document, ended, rows

    if show.json:
        show.event("report", {**document(findings), "files": paths})
        return
    if findings.series:
        show.table(COLUMNS, rows(findings))
        show.say(speed_goals.told(findings))
    if findings.answers:
        show.table(("answers asked by", "tokens/s, median (best)", "times generate"), answer_rows(findings))
    if (both := findings.both_over_one()) is not None:
        show.say(f"both answers take {both.met:.2f} times as long as one; with a new memory {both.new:.2f}")
    show.say(f"\nwritten: {', '.join(map(str, paths))}{'' if ended(findings) else '; stopped before its end'}")


def _model(settings: Settings) -> ModelChoice:
    from elm_agent.bench.speed_machine import ModelChoice

    return ModelChoice(
        name=settings.model,
        gguf_file=settings.gguf_file,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        cache_dir=settings.cache_dir,
        offline=settings.offline,
        pack=settings.pack,
        graphs=settings.graphs,
        overlap=settings.overlap,
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _length(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise InputError(f"--tokens has {word!r}: expected whole numbers of at least 1, such as 24,64,256")
    return int(word)
