"""Pictures of a run, drawn without a screen. Knows rows of plain numbers; knows nothing of models or banks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

_PLAIN, _AGENT, _MEAN = "#8a8a8a", "#0b6e4f", "#b5541c"


def running_share(hits: Sequence[bool]) -> list[float]:
    """Share of hits among the first 1, 2, ... n."""
    return [total / count for count, total in enumerate(accumulate(map(int, hits)), start=1)]


def draw_stream(
    path: Path,
    *,
    zero_shot: Sequence[bool],
    agent: Sequence[bool],
    learned_after: Sequence[int],
    vote_shares: Mapping[str, Sequence[float]],
    title: str,
) -> None:
    """Write a PNG of two panels: accuracy so far over the stream, and the vote share of each memory over its steps.

    ``zero_shot`` and ``agent`` say for each question whether that answer was right; ``learned_after`` lists the
    questions (from 1) after which a memory was made; ``vote_shares`` maps a memory's id to its curve.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _accuracy(left, zero_shot, agent, learned_after)
    _curves(right, vote_shares)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_growth(
    path: Path, memories: Sequence[int], curves: Mapping[str, Sequence[float]], *, title: str, unit: str = "ms"
) -> None:
    """Write a PNG with one line for each operation over the size of the bank, both axes logarithmic.

    ``curves`` maps an operation to one value for each size; what grows with the bank rises, all else lies flat.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(curves.items()):
        axes.plot(memories, values, marker="o", ms=4, lw=1.5, ls=("-", "--", ":")[number // 10 % 3], label=name)
    axes.set(xscale="log", yscale="log", xlabel="memories in the bank", ylabel=unit, title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_speed(
    path: Path,
    seconds: Mapping[str, Mapping[str, float]],
    bounds: Mapping[str, Mapping[str, float]],
    units: Mapping[str, str],
    *,
    title: str,
) -> None:
    """Write a PNG with one panel for each length and one bar for each arm.

    ``seconds`` and ``bounds`` map a length to one value for each arm, ``units`` to what these are; a bound is drawn
    as a mark on its bar.
    """
    figure = Figure(figsize=(3.4 * len(seconds) + 1, 4.2), layout="constrained")
    for axes, (length, arms) in zip(figure.subplots(1, len(seconds), squeeze=False)[0], seconds.items(), strict=True):
        colours = [_AGENT if name.startswith("native") else _PLAIN for name in arms]
        axes.bar(list(arms), list(arms.values()), color=colours)
        limits = bounds.get(length, {})
        axes.plot(list(limits), list(limits.values()), "_", color=_MEAN, ms=22, mew=2.5, label="limit of machine")
        axes.set(title=f"{length} tokens", ylabel=units[length])
        axes.tick_params(axis="x", rotation=60)
        axes.grid(alpha=0.25, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
        if limits:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_answers(path: Path, tokens_per_s: Mapping[str, float], *, title: str) -> None:
    """Write a PNG with one bar for each who asks: tokens per second; plain ``generate`` comes first."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(list(tokens_per_s), list(tokens_per_s.values()), color=[_PLAIN] + [_AGENT] * (len(tokens_per_s) - 1))
    axes.set(title="Answers", ylabel="tokens per second")
    axes.tick_params(axis="x", rotation=60)
    axes.grid(alpha=0.25, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _accuracy(axes: Axes, zero_shot: Sequence[bool], agent: Sequence[bool], learned_after: Sequence[int]) -> None:
    questions = range(1, len(agent) + 1)
    axes.plot(questions, running_share(zero_shot), color=_PLAIN, lw=2, label="zero-shot")
    axes.plot(questions, running_share(agent), color=_AGENT, lw=2.5, label="agent with memories")
    axes.plot(learned_after, [0.02] * len(learned_after), "|", color=_MEAN, ms=9, label="a memory was made")
    axes.set(title="Right answers so far", xlabel="questions answered", ylim=(0, 1.02))
    _finish(axes)


def _curves(axes: Axes, vote_shares: Mapping[str, Sequence[float]]) -> None:
    for number, shares in enumerate(vote_shares.values()):
        label = "each memory" if number == 0 else None
        axes.plot(range(1, len(shares) + 1), shares, color=_AGENT, alpha=0.3, lw=1, label=label)
    if vote_shares:
        columns = list(zip(*vote_shares.values(), strict=False))
        means = [sum(column) / len(column) for column in columns]
        axes.plot(range(1, len(means) + 1), means, color=_MEAN, lw=2.5, label="mean")
    axes.set(title="Learning: share of rollouts that agree (= reward)", xlabel="optimizer step", ylim=(0, 1.02))
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
