"""What ``bench speed`` found, as a Markdown table, as plain numbers and as a picture."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elm_agent.bench import speed_goals
from elm_agent.bench.speed_answers import PLAIN, lengths_of
from elm_agent.bench.speed_arms import TRL, TUNED
from elm_agent.bench.speed_plan import Findings, Series
from elm_agent.errors import InputError

COLUMNS = (
    "arm",
    "tokens",
    "s per step, median (min)",
    "s per memory-step, median (min)",
    "tokens per memory-step",
    "ms per token",
    "times TRL default",
    "times TRL tuned",
    "decode tokens/s",
    "train tokens/s",
    "bound / median",
    "peak memory",
)


def rows(findings: Findings) -> list[tuple[str, ...]]:
    """A row of text for every arm at every length, in the order of ``COLUMNS``."""
    return [_row(findings, series) for series in findings.series]


def answer_rows(findings: Findings) -> list[tuple[str, str, str]]:
    """(who asked, tokens per second, times plain generate)."""
    plain = findings.answers.get(PLAIN, [])
    told = []
    for name, rates in findings.answers.items():
        what = "plain `generate`, one after the other" if name == PLAIN else name
        told.append((what, f"{statistics.median(rates):.1f} ({max(rates):.1f})", _times(rates, plain)))
    return told


def document(findings: Findings) -> dict[str, Any]:
    """Everything, every single measurement too, as JSON can carry it."""
    plan = {**asdict(findings.plan), "model": findings.plan.model.name}
    return {
        "about": findings.about,
        "plan": plan,
        "machine": asdict(findings.machine) if findings.machine else None,
        "goals": [asdict(goal) for goal in speed_goals.goals(findings)],
        "training": [_series(findings, series) for series in findings.series],
        "answers": {
            "tokens_per_s": findings.answers,
            "seconds_of_both": [asdict(turn) for turn in findings.both],
            "both_over_one": asdict(both) if (both := findings.both_over_one()) else None,
            "failure": findings.answers_failure,
        },
    }


def markdown(findings: Findings) -> str:
    return "\n".join(_page(findings)) + "\n"


def ended(findings: Findings) -> bool:
    """Whether all was measured; False when it was stopped."""
    return "load_after" in findings.about


def prepare(folder: Path) -> None:
    """Make the folder before anything is measured. Raises ``InputError`` when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be made ({error.strerror}): name another folder") from None
    if not writable:
        raise InputError(f"--out {folder} cannot be written to: name another folder")


def write(folder: Path, findings: Findings) -> list[Path]:
    """speed.md, speed.json and pictures in ``folder``; of a run that was stopped speed-stopped.*, beside others."""
    name = "speed" if ended(findings) else "speed-stopped"
    page, numbers = folder / f"{name}.md", folder / f"{name}.json"
    page.write_text(markdown(findings), "utf-8")
    numbers.write_text(json.dumps(document(findings), indent=1) + "\n", "utf-8")
    return [page, numbers, *_draw(folder, name, findings)]


def _draw(folder: Path, name: str, findings: Findings) -> Iterator[Path]:
    from elm_agent.bench.plots import draw_answers, draw_speed

    title = f"{findings.plan.model.name}, {findings.about.get('device', '')}"
    bars: dict[str, dict[str, float]] = {}
    limits: dict[str, dict[str, float]] = {}
    units: dict[str, str] = {}
    for series in findings.series:
        if (found := findings.figures(series)) is not None:
            length, arm, exact = series.regime.name, series.arm.name, series.regime.ignore_end
            units[length] = "seconds per memory and step" if exact else "seconds per token"
            scale = 1 / series.arm.memories if exact else found.seconds_per_token / found.seconds_per_step
            bars.setdefault(length, {})[arm] = found.seconds_per_step * scale
            if found.bound_seconds is not None:
                limits.setdefault(length, {})[arm] = found.bound_seconds * scale
    if bars:
        draw_speed(folder / f"{name}.png", bars, limits, units, title=title)
        yield folder / f"{name}.png"
    if findings.answers:
        rates = {who: statistics.median(found) for who, found in findings.answers.items()}
        draw_answers(folder / f"{name}-answers.png", rates, title=title)
        yield folder / f"{name}-answers.png"


def _page(findings: Findings) -> Iterator[str]:
    plan = findings.plan
    yield f"# Training and answering speed: {plan.model.name}\n"
    yield from _surroundings(findings.about)
    if not ended(findings):
        yield "**Stopped before its end:** what had been measured by then.\n"
    if findings.series:
        yield f"{speed_goals.told(findings)}\n"
    yield (
        f"One question, {plan.rollouts} rollouts, {plan.virtual_tokens} virtual tokens, KL weight {plan.beta:g}. Arms"
        f" alternate, {plan.repeats} repeats of {plan.steps} step(s) after a first that does not count, each arm in a"
        " process of its own, with the same settings of OpenMP, at the same steps with the same seeds. TRL runs on"
        " the network as transformers opens it, in the same arithmetic, on the thread that opened it; *tuned*:"
        " without activation checkpointing and with the best micro-batch of some, tried before in other processes."
        " *native-M*: M memories at the same time; a step is one of each. A length is exact, the end token ignored,"
        " or *natural*: then arms draw different texts, and *times* compares seconds per token drawn, elsewhere"
        " seconds per memory-step. *Train* counts updates alone: all that an arm computes between the votes and the"
        " next step, and TRL's loop around it. *Decode* counts the rest of a step: reading the question, drawing,"
        " judging.\n"
    )
    yield from _limits(findings)
    if findings.series:
        yield from _table(COLUMNS, rows(findings))
        since = sorted({series.peak_since for series in findings.series if series.peak_since})
        yield f"\nPeak memory: resident bytes of the arm's process (on a GPU: allocated), {' / '.join(since)}."
        for series in findings.series:
            if series.tried:
                tried = ", ".join(f"{size} rows {seconds:.2f} s" for size, seconds in series.tried.items())
                yield f"Tried for {series.arm.name}, {series.regime.name}: {tried}."
            if series.failure:
                yield f"{series.arm.name}, {series.regime.name} failed: {series.failure}"
    if findings.answers:
        short, middle, long = sorted(lengths_of(plan.answer_tokens))
        yield f"\n## Answers of {short}, {middle} and {long} tokens, every second one with a memory\n"
        yield from _table(("asked by", "tokens/s, median (best)", "times plain `generate`"), answer_rows(findings))
    if (both := findings.both_over_one()) is not None:
        yield (
            f"\nBoth answers, without and with a memory, take {both.met:.2f} times as long as one, and {both.new:.2f}"
            " times with a memory that is read for the first time (medians of pairs; no question is asked twice)."
        )
    if findings.answers_failure:
        yield f"\nAnswers failed: {findings.answers_failure}"


def _surroundings(told: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items() if version)
    threads, dtype = told.get("threads"), told.get("dtype")
    yield f"{told['date']}, {told['platform']}, {told.get('device')}, {threads} threads, {dtype},"
    yield f"Python {told['python']}, {versions}."
    openmp = ", ".join(f"{name}={value}" for name, value in told.get("openmp", {}).items())
    own = f"packed weights {_switch(told, 'pack')}, CUDA graphs {_switch(told, 'graphs')}"
    own += ", drawing beside updates" if told.get("overlap") else ""
    yield f"Commit {told.get('commit') or '-'}; native arms: {own}; all: {openmp or 'OpenMP as it is by default'}."
    yield f"Load average before {_load(told, 'load_before')}, after {_load(told, 'load_after')}.\n"
    yield f"    {told['command']}\n"


def _limits(findings: Findings) -> Iterator[str]:
    if (machine := findings.machine) is None:
        return
    yield (
        f"Limits, the best of this whole run: {machine.flops_per_s / 1e9:.0f} GFLOP/s,"
        f" {machine.bytes_per_s / 1e9:.1f} GB/s. Bound of a step: for every token drawn max(weight bytes / bandwidth,"
        f" 2 P rows / FLOP/s), then (2 + 2) P T for the policy"
        f"{' and 2 P T for the reference' if findings.plan.beta else ''} at FLOP/s,"
        f" P = {machine.parameters / 1e6:.1f} million, {machine.weight_bytes / 1e6:.0f} MB of weights, T tokens"
        " drawn. It is one yardstick for all arms and counts every token of every rollout. Native arms update on what"
        " rollouts begin with in common once, so their *bound / median* is more than the share of the machine that"
        " they use, and may pass 100%.\n"
    )


def _table(columns: Sequence[str], content: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in content:
        yield f"| {' | '.join(row)} |"


def _row(findings: Findings, series: Series) -> tuple[str, ...]:
    found, name = findings.figures(series), series.arm.name
    if series.arm.micro_batch is not None:
        name += f" ({series.arm.micro_batch} rows)"
    if found is None:
        return (name, series.regime.name, "failed" if series.failure else "-", *["-"] * (len(COLUMNS) - 3))
    return (
        name,
        series.regime.name,
        f"{found.seconds_per_step:.3g} ({found.seconds_per_step_min:.3g})",
        f"{found.seconds_per_memory_step:.3g} ({found.seconds_per_memory_step_min:.3g})",
        f"{found.tokens_per_memory_step:.0f}",
        f"{found.seconds_per_token * 1000:.3g}",
        *(f"{r:.2f}" if (r := findings.times(series, other)) is not None else "-" for other in (TRL, TUNED)),
        f"{found.decode_tokens_per_s:.0f}",
        f"{found.train_tokens_per_s:.0f}",
        "-" if found.share_of_bound is None else f"{found.share_of_bound:.0%}",
        "-" if series.peak_bytes is None else f"{series.peak_bytes / 2**20:.0f} MiB",
    )


def _series(findings: Findings, series: Series) -> dict[str, Any]:
    found = findings.figures(series)
    return {
        "arm": series.arm.name,
        "memories": series.arm.memories,
        "micro_batch": series.arm.micro_batch,
        "tokens": series.regime.tokens,
        "ignore_end": series.regime.ignore_end,
        "turns": [asdict(turn) for turn in series.turns],
        "lengths": series.lengths,
        **(asdict(found) if found else {}),
        "times_trl": findings.times(series, TRL),
        "times_trl_tuned": findings.times(series, TUNED),
        "tried_micro_batches": series.tried,
        "peak_bytes": series.peak_bytes,
        "peak_since": series.peak_since,
        "failure": series.failure,
    }


def _times(rates: Sequence[float], plain: Sequence[float]) -> str:
    return f"{statistics.median(rates) / statistics.median(plain):.2f}" if plain else "-"


def _switch(told: dict[str, Any], name: str) -> str:
    return {True: "on", False: "off"}.get(told.get(name), "-")  # type: ignore[arg-type]


def _load(told: dict[str, Any], name: str) -> str:
    return "-" if name not in told else f"{told[name][0]:.2f}"
