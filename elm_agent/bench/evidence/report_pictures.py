"""Plots of a report as SVG that stands inside a page: no outside names, text that follows the page's colour.

Knows plain numbers and the dataclasses of figures; knows nothing of runs or pages.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from elm_agent.bench.evidence.figures import MethodFigures
from elm_agent.bench.evidence.lines import ZERO_SHOT
from elm_agent.bench.evidence.matrix import OfflineFigures, OfflineSeed
from elm_agent.bench.evidence.report_series import Band, BankMap
from elm_agent.records import UseOutcome

INK = "#010203"
"""Stands for the page's own colour until the SVG is written."""

GREY, GOOD, BAD = "#8a8a8a", "#3b8fd9", "#e0702a"
COLOURS = ("#3b8fd9", "#e08a1e", "#2aa876", "#cc6fa8", "#8f79d6", "#d9534f", "#2bb3c0", "#a9745b", "#a5a32b")
"""Middle tones, to be seen on white and on black."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "elm-agent",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
WIDTH = 5.0
"""Inches of every plot: as wide as a phone, so that its words stay readable there."""
_LETTERS, _LINE = 90, 8  # that a legend has room for, and what the line before a name takes of it
_BESIDE = 30  # letters of a name beside its bar


def svg(draw: Callable[[Figure], None], *, name: str, text: str, height: float = 3.0) -> str:
    """The SVG that ``draw`` makes of a figure. ``name``: unique in the page; ``text``: what a blind reader gets."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue().decode("utf-8"), name, text)


def stream(
    curves: Mapping[str, Band], colours: Mapping[str, str], changes: Sequence[int] = ()
) -> Callable[[Figure], None]:
    """Right answers so far, one line for each method, with the range over seeds. ``changes``: how many questions came
    before the stream changed, each time."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _bands(axes, curves, colours)
        for before in changes:
            axes.axvline(before + 0.5, color=GREY, linestyle=":")
        axes.set(xlabel="questions answered", ylabel="right so far", ylim=(-0.02, 1.02))
        _below(figure, axes)

    return draw


def rewards(curves: Mapping[str, Band], colours: Mapping[str, str]) -> Callable[[Figure], None]:
    """Vote shares over the training steps: median and quartiles of each method's memories."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _bands(axes, curves, colours)
        axes.set(xlabel="training step", ylabel="rollouts that agree", ylim=(-0.02, 1.02))
        _below(figure, axes)

    return draw


def cost_and_gain(methods: Sequence[MethodFigures], colours: Mapping[str, str]) -> Callable[[Figure], None]:
    """Gain over zero-shot in points against the tokens of a question, those of learning included."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for method in methods:
            if method.versus is None or method.versus.difference.estimate is None or not method.tokens_per_question:
                continue
            found, colour = method.versus.difference, colours[method.label]
            x, y = method.tokens_per_question, 100 * method.versus.difference.estimate
            if found.low is not None and found.high is not None:
                axes.plot([x, x], [100 * found.low, 100 * found.high], color=colour, lw=1.5, alpha=0.7)
            marker = "os^D"[_round(colours, method.label) % 4]
            axes.plot([x], [y], marker, color=colour, ms=6, label=method.label)
        axes.axhline(0, color=GREY, lw=1)
        axes.set(xscale="log", xlabel="tokens generated for a question, learning included", ylabel="points of gain")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # by default labels of a short axis overlap
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        _below(figure, axes)

    return draw


def flips(methods: Sequence[MethodFigures]) -> Callable[[Figure], None]:
    """Answers that each method fixed and broke."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown = [method for method in methods if method.versus is not None][::-1]
        names = [folded(method.label) for method in shown]
        fixed = [method.versus.fixed for method in shown if method.versus]
        broken = [-method.versus.broken for method in shown if method.versus]
        axes.barh(names, fixed, color=GOOD, label="fixed")
        axes.barh(names, broken, color=BAD, label="broken")
        axes.axvline(0, color=INK, lw=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
        axes.set(xlabel="answers, all seeds")
        _below(figure, axes)

    return draw


def bank(found: BankMap) -> Callable[[Figure], None]:
    """Keys of memories on two axes; colour: fixed less broken; size: how often it was used."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        reach = max(1, *(abs(point.utility) for point in found.points))
        most = max(1, *(point.uses for point in found.points))
        dots = axes.scatter(
            [point.x for point in found.points],
            [point.y for point in found.points],
            c=[point.utility for point in found.points],
            s=[15 + 90 * point.uses / most for point in found.points],
            cmap=LinearSegmentedColormap.from_list("utility", [BAD, GREY, GOOD]),
            norm=TwoSlopeNorm(0, -reach, reach),
            edgecolors=INK,
            linewidths=0.4,
            alpha=0.85,
        )
        scale = figure.colorbar(dots, ax=axes, label="fixed less broken", ticks=MaxNLocator(integer=True, nbins=5))
        scale.outline.set_visible(False)
        axes.set(xlabel="first component", ylabel="second component")

    return draw


def ranks(curves: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> Callable[[Figure], None]:
    """Share of retrievals that the k most retrieved memories took."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, shares in curves.items():
            axes.plot(range(1, len(shares) + 1), shares, color=colours[name], lw=1.8, marker=".", label=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set(xlabel="the k most retrieved memories", ylabel="share of retrievals", ylim=(0, 1.02))
        _below(figure, axes)

    return draw


def thresholds(found: Sequence[OfflineFigures], colours: Mapping[str, str]) -> Callable[[Figure], None]:
    """Share of memories that gain more than so many points."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for one in found:
            label = f"{one.method}, {one.improving.whole} memories"
            axes.plot(list(one.curve), list(one.curve.values()), color=colours[one.method], marker=".", label=label)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set(xlabel="more than so many points over zero-shot", ylabel="share of memories", ylim=(-0.02, 1.02))
        _below(figure, axes)

    return draw


def matrix(found: OfflineSeed, order: Sequence[str]) -> Callable[[Figure], None]:
    """Memory by question; ``order``: the memories from best to worst."""
    kinds = (None, UseOutcome.BOTH_WRONG, UseOutcome.BOTH_RIGHT, UseOutcome.BROKEN, UseOutcome.FIXED)
    questions = list(dict.fromkeys(item for cells in found.matrix.values() for item in cells))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        rows = [[kinds.index(found.matrix[one].get(item)) for item in questions] for one in order]
        colours = ["#00000000", "#8a8a8a55", "#8a8a8ab0", BAD, GOOD]
        axes.imshow(rows, cmap=ListedColormap(colours), vmin=0, vmax=4, aspect="auto", interpolation="none")
        for name, colour in zip(("both wrong", "both right", "broken", "fixed"), colours[1:], strict=True):
            axes.plot([], [], "s", color=colour, label=name)
        axes.grid(visible=False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="question", ylabel="memory, the best above")
        _below(figure, axes)

    return draw


def colours_of(methods: Sequence[str]) -> dict[str, str]:
    """One colour for each method in the whole page; zero-shot is grey."""
    others = [name for name in dict.fromkeys(methods) if name != ZERO_SHOT]
    return {ZERO_SHOT: GREY} | {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(others)}


# --- parts ------------------------------------------------------------------------------------------------------


def _bands(axes: Axes, curves: Mapping[str, Band], colours: Mapping[str, str]) -> None:
    for name, band in curves.items():
        dashes = ("-", "--", ":")[_round(colours, name) % 3]
        axes.plot(band.x, band.middle, color=colours[name], lw=1.8, ls=dashes, label=name)
        if band.members > 1:
            axes.fill_between(band.x, band.low, band.high, color=colours[name], alpha=0.15, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _round(colours: Mapping[str, str], name: str) -> int:
    """How often the colours were all given before this method got one of them again."""
    return max(0, list(colours).index(name) - 1) // len(COLOURS)


def folded(name: str) -> str:
    """A method's name in lines that leave room beside them; it may be cut after a plus."""
    lines = wrap(name.replace("+", "+ "), _BESIDE, break_long_words=False, break_on_hyphens=False)
    return "\n".join(line.replace("+ ", "+") for line in lines)


def _below(figure: Figure, axes: Axes) -> None:
    """The legend, for which the figure grows: as many columns as the width has room for, or no plot would be left."""
    if names := axes.get_legend_handles_labels()[1]:
        columns = max(1, min(3, _LETTERS // (max(map(len, names)) + _LINE)))
        figure.legend(loc="outside lower center", ncols=columns)
        figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(names) // columns))


def _inline(document: str, name: str, text: str) -> str:
    """Without prolog, name spaces, metadata and fixed size; ids made unique; ink becomes the colour of the page."""
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', document))
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _value(_local(key), value, name) for key, value in element.attrib.items()}
        if (identity := element.get("id")) is not None:
            if identity in used:
                element.set("id", f"{name}-{identity}")
            else:
                del element.attrib["id"]
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", text)
    root.set("style", "stroke-linejoin:round;stroke-linecap:butt")
    title = ElementTree.Element("title")
    title.text = text
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _value(key: str, value: str, name: str) -> str:
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return value.replace(INK, "currentColor").replace("url(#", f"url(#{name}-")
