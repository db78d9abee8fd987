"""What ``bench speed`` found, as a Markdown table, as plain numbers and as a picture."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from elm_agent.bench.speed_answers import PLAIN
from elm_agent.bench.speed_arms import TRL, TUNED
from elm_agent.bench.speed_plan import Findings, Series
from elm_agent.errors import InputError

COLUMNS = (
    "arm",
    "tokens",
    "s per step, median (min)",
    "s per memory-step, median (min)",
    "times TRL default",
    "times TRL tuned",
    "decode tokens/s",
    "train tokens/s",
    "share of bound",
    "peak memory",
)
PACKAGES = ("elm-agent", "torch", "transformers", "trl", "peft", "onnxruntime", "numpy")


def about(command: str) -> dict[str, Any]:
    """The environment, as far as it is known before anything is opened."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


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
        "training": [_series(findings, series) for series in findings.series],
        "answers": {
            "tokens_per_s": findings.answers,
            "seconds_one_and_both": findings.both,
            "both_over_one": findings.both_over_one(),
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
    """speed.md, speed.json and speed.png in ``folder``; of a run that was stopped speed-stopped.*, beside others."""
    from elm_agent.bench.plots import draw_speed

    name = "speed" if ended(findings) else "speed-stopped"
    paths = [folder / f"{name}.{kind}" for kind in ("md", "json", "png")]
    paths[0].write_text(markdown(findings), "utf-8")
    paths[1].write_text(json.dumps(document(findings), indent=1) + "\n", "utf-8")
    bars: dict[str, dict[str, float]] = {}
    limits: dict[str, dict[str, float]] = {}
    for series in findings.series:
        if (found := series.figures(findings.plan.steps)) is not None:
            bars.setdefault(series.regime.name, {})[series.arm.name] = found.seconds_per_memory_step
            if found.bound_seconds is not None:
                limit = found.bound_seconds / series.arm.memories
                limits.setdefault(series.regime.name, {})[series.arm.name] = limit
    if not bars:
        return paths[:2]
    draw_speed(paths[2], bars, limits, title=f"{findings.plan.model.name}, {findings.about.get('device', '')}")
    return paths


def _page(findings: Findings) -> Iterator[str]:
    told, plan, machine = findings.about, findings.plan, findings.machine
    yield f"# Training and answering speed: {plan.model.name}\n"
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items() if version)
    threads, dtype = told.get("threads"), told.get("dtype")
    yield f"{told['date']}, {told['platform']}, {told.get('device')}, {threads} threads, {dtype},"
    yield f"Python {told['python']}, {versions}."
    yield f"Load average before {_load(told, 'load_before')}, after {_load(told, 'load_after')}.\n"
    yield f"    {told['command']}\n"
    if not ended(findings):
        yield "**Stopped before its end:** what had been measured by then.\n"
    yield (
        f"One question, {plan.rollouts} rollouts, {plan.virtual_tokens} virtual tokens, KL weight {plan.beta:g}. Arms"
        f" alternate, {plan.repeats} repeats of {plan.steps} step(s) after a first that does not count, each arm in a"
        " process of its own. TRL runs on the network as transformers opens it, in the same arithmetic; *tuned*:"
        " without activation checkpointing and with the best micro-batch of some. *native-M*: M memories at the"
        " same time; a step is one of each. A length is exact, the end token ignored, or *natural*. Update time is"
        " what trainers report; the rest of a step counts as decoding.\n"
    )
    if machine is not None:
        yield (
            f"Limits measured in this run: {machine.flops_per_s / 1e9:.0f} GFLOP/s, {machine.bytes_per_s / 1e9:.1f}"
            f" GB/s. Bound of a step: for every token drawn max(weight bytes / bandwidth, 2 P rows / FLOP/s), then"
            f" (2 + 2) P T for the policy{' and 2 P T for the reference' if plan.beta else ''} at FLOP/s,"
            f" P = {machine.parameters / 1e6:.1f} million, {machine.weight_bytes / 1e6:.0f} MB of weights, T tokens"
            " drawn. Share: bound / median. What rollouts begin with in common is computed once by native arms and"
            " counted for each by the bound.\n"
        )
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
        yield f"\n## Answers of {plan.answer_tokens} tokens\n"
        yield from _table(("asked by", "tokens/s, median (best)", "times plain `generate`"), answer_rows(findings))
    if (both := findings.both_over_one()) is not None:
        yield f"\nBoth answers, with and without a memory, take {both:.2f} times as long as one (median of pairs)."
    if findings.answers_failure:
        yield f"\nAnswers failed: {findings.answers_failure}"


def _table(columns: Sequence[str], content: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in content:
        yield f"| {' | '.join(row)} |"


def _row(findings: Findings, series: Series) -> tuple[str, ...]:
    found, name = series.figures(findings.plan.steps), series.arm.name
    if series.arm.micro_batch is not None:
        name += f" ({series.arm.micro_batch} rows)"
    if found is None:
        return (name, series.regime.name, "failed" if series.failure else "-", *["-"] * (len(COLUMNS) - 3))
    return (
        name,
        series.regime.name,
        f"{found.seconds_per_step:.3g} ({found.seconds_per_step_min:.3g})",
        f"{found.seconds_per_memory_step:.3g} ({found.seconds_per_memory_step_min:.3g})",
        *(f"{r:.2f}" if (r := _ratio(findings, series, other)) is not None else "-" for other in (TRL, TUNED)),
        f"{found.decode_tokens_per_s:.0f}",
        f"{found.train_tokens_per_s:.0f}",
        "-" if found.share_of_bound is None else f"{found.share_of_bound:.0%}",
        "-" if series.peak_bytes is None else f"{series.peak_bytes / 2**20:.0f} MiB",
    )


def _series(findings: Findings, series: Series) -> dict[str, Any]:
    found = series.figures(findings.plan.steps)
    return {
        "arm": series.arm.name,
        "memories": series.arm.memories,
        "micro_batch": series.arm.micro_batch,
        "tokens": series.regime.tokens,
        "ignore_end": series.regime.ignore_end,
        "turns": [asdict(turn) for turn in series.turns],
        **(asdict(found) if found else {}),
        "times_trl": _ratio(findings, series, TRL),
        "times_trl_tuned": _ratio(findings, series, TUNED),
        "tried_micro_batches": series.tried,
        "peak_bytes": series.peak_bytes,
        "peak_since": series.peak_since,
        "failure": series.failure,
    }


def _ratio(findings: Findings, series: Series, other: str) -> float | None:
    """How many times quicker a memory's step is than in that arm at the same length; by medians."""
    found = series.figures(findings.plan.steps)
    for candidate in findings.series:
        if candidate.arm.name == other and candidate.regime == series.regime and found is not None:
            slow = candidate.figures(findings.plan.steps)
            return None if slow is None else slow.seconds_per_memory_step / found.seconds_per_memory_step
    return None


def _times(rates: Sequence[float], plain: Sequence[float]) -> str:
    return f"{statistics.median(rates) / statistics.median(plain):.2f}" if plain else "-"


def _load(told: dict[str, Any], name: str) -> str:
    return "-" if name not in told else f"{told[name][0]:.2f}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
