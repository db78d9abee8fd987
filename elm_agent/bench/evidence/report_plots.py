"""The pictures of a report with the words that stand for them. Figures and lines in, sections out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from matplotlib.figure import Figure

from elm_agent.bench.evidence import report_pictures as pictures
from elm_agent.bench.evidence.contract import Phase
from elm_agent.bench.evidence.figures import TaskFigures
from elm_agent.bench.evidence.lines import ZERO_SHOT, Key, Lines, candidate_right, grouped, is_agent, key_of, verdicts
from elm_agent.bench.evidence.matrix import OfflineFigures
from elm_agent.bench.evidence.report_section import Picture, Section, counted, percent, plain, points, seeds
from elm_agent.bench.evidence.report_series import (
    Band,
    bank_map,
    rank_curves,
    reward_curves,
    stream_changes,
    stream_curves,
)

Draw = Callable[[Figure], None]

CROWD = 6
"""Most curves with bands that one picture bears."""


class Plots:
    """Draws with one colour for each method in the whole page, and gives every picture a name of its own."""

    def __init__(self, methods: Sequence[str]) -> None:
        self._colours = pictures.colours_of(methods)
        self._count = 0

    def stream(self, task: TaskFigures, answers: Lines) -> Section | None:
        """Accuracy over the stream; None when nothing was judged."""
        unfinished = {
            (method.method, one.seed) for method in task.methods for one in method.seeds if not one.finished
        }
        curves, changes = stream_curves(answers, unfinished), stream_changes(answers)
        if not curves:
            return None
        drawn = [
            self._picture(pictures.stream(part, self._colours, changes), f"{title}: {_ends(part)}.")
            for title, part in _crowds(curves)
        ]
        words = "Share of right answers so far, mean over seeds; the band is from the lowest to the highest seed."
        words += " Dotted: where the stream changes." if changes else ""
        notes = tuple(_left_out(task))
        return Section(title="Accuracy over the stream", words=(words,), pictures=tuple(drawn), notes=notes)

    def gain(self, task: TaskFigures) -> Section | None:
        """Cost against gain, and flips; None when nothing is beside zero-shot."""
        shown = [m for m in task.methods if m.versus is not None and m.versus.difference.estimate is not None]
        if not shown:
            return None
        gains = "; ".join(f"{m.label} {points(m.versus.difference.estimate)}" for m in shown if m.versus)
        flips = "; ".join(f"{m.label} +{m.versus.fixed} -{m.versus.broken}" for m in shown if m.versus)
        drawn = [
            self._picture(
                pictures.cost_and_gain(shown, self._colours),
                f"Points of gain over zero-shot: {gains}.",
                "Gain over zero-shot with its interval, against the tokens generated for a question.",
            ),
            self._picture(
                pictures.flips(shown),
                f"Answers fixed and broken: {flips}.",
                "Answers that were wrong without and right with the method, and the reverse.",
                height=0.9 + sum(0.14 + 0.14 * len(pictures.folded(m.label).splitlines()) for m in shown),
            ),
        ]
        if not any(m.tokens_per_question for m in shown):
            del drawn[0]
        return Section(title="Cost, gain and flips", pictures=tuple(drawn))

    def retrieval(self, task: TaskFigures) -> Section | None:
        """How retrievals concentrate on few memories; None without any."""
        found = {m.label: rank_curves(m.retrieval.uses) for m in task.methods if m.retrieval is not None}
        curves = {name: curve for name, curve in found.items() if curve}
        if not curves:
            return None
        told = "; ".join(f"{name} {percent(curve[0])} for the first" for name, curve in curves.items())
        picture = self._picture(pictures.ranks(curves, self._colours), f"Share of retrievals by rank: {told}.")
        words = (
            "Share of all retrievals that the most retrieved memories took, mean over seeds. A steep rise: few serve."
        )
        return Section(title="Retrieval concentration", words=(words,), pictures=(picture,))

    def rewards(self, learned: Lines) -> Section | None:
        """Vote shares over the steps of training; None without curves."""
        curves = reward_curves(learned)
        if not curves:
            return None
        told = "; ".join(
            f"{name} from {percent(band.middle[0])} to {percent(band.middle[-1])}" for name, band in curves.items()
        )
        picture = self._picture(pictures.rewards(curves, self._colours), f"Share of rollouts that agree: {told}.")
        words = (
            "Median over a method's memories, with quartiles; one that stopped early keeps its last value to the end."
            " Agreement is the reward; it needs no reference answer."
        )
        return Section(title="Reward curves", words=(words,), pictures=(picture,))

    def maps(self, answers: Lines, learned: Lines) -> Section | None:
        """The map of each bank; None when nothing was learned."""
        notes, drawn = [], []
        zero_shot = verdicts(line for line in answers if line.method == ZERO_SHOT)
        for method, part in grouped([line for line in learned if line.memory_id], lambda line: line.method).items():
            served = [line for line in answers if line.method == method]
            found = bank_map(part, served, {**_own(served), **zero_shot})
            if found.note is not None or found.explained is None:
                notes.append(f"{method}: {found.note}.")
                continue
            good = sum(point.utility > 0 for point in found.points)
            bad = sum(point.utility < 0 for point in found.points)
            alt = f"{method}: {len(found.points)} memories; {good} fixed more than they broke, {bad} broke more."
            caption = f"{method}: two components hold {percent(found.explained)} of the variance of the keys."
            drawn.append(self._picture(pictures.bank(found), alt, caption, height=3.8))
        if not notes and not drawn:
            return None
        words = (
            "Retrieval keys of all seeds on their two principal components. Colour: answers fixed less answers"
            " broken; size: how often a memory was retrieved. Memories that lie together are near the same questions."
        )
        return Section(title="Map of the bank", words=(words,), pictures=tuple(drawn), notes=tuple(notes))

    def offline(self, found: Sequence[OfflineFigures]) -> Section | None:
        """Threshold curves, and the matrix of every seed; None without a matrix."""
        drawn = []
        if shown := [one for one in found if one.curve]:
            told = "; ".join(f"{one.method} {counted(one.improving)} improve" for one in shown)
            alt = f"Share of memories by gain: {told}."
            drawn.append(self._picture(pictures.thresholds(shown, self._colours), alt))
        for one in found:
            for seed in one.seeds:
                order = [memory.learner for memory in one.memories if memory.seed == seed.seed]
                if not any(seed.matrix.values()):
                    continue
                title = f"{one.method} on {one.task}, seed {seed.seed}"
                fixed = sum(memory.fixed for memory in one.memories if memory.seed == seed.seed)
                broken = sum(memory.broken for memory in one.memories if memory.seed == seed.seed)
                alt = f"{title}: {len(order)} memories; {fixed} answers fixed, {broken} broken."
                drawn.append(self._picture(pictures.matrix(seed, order), alt, height=3.6))
        return Section(title="Gains, and the matrix of memory by question", pictures=tuple(drawn)) if drawn else None

    def _picture(self, draw: Draw, alt: str, caption: str | None = None, height: float = 3.0) -> Picture:
        self._count += 1
        alt = plain(alt)
        made = pictures.svg(draw, name=f"plot{self._count}", text=alt, height=height)
        return Picture(svg=made, alt=alt, caption=caption or alt)


def task_plots(plots: Plots, task: TaskFigures, lines: Lines, *, online: bool) -> Iterator[Section | None]:
    """The pictures of one task; ``online``: the order of questions means something."""
    answers = [one for one in lines if one.phase is Phase.ANSWER and one.learner is None and one.task == task.task]
    served = {(one.method, one.source) for one in answers}
    learned = [one for one in lines if one.phase is Phase.LEARN and (one.method, one.task) in served]
    yield plots.stream(task, answers) if online else None
    yield plots.gain(task)
    yield plots.retrieval(task)
    yield plots.maps(answers, learned)
    yield plots.rewards(learned)


def offline_plots(plots: Plots, found: Sequence[OfflineFigures], lines: Lines) -> Iterator[Section | None]:
    """The pictures of the memories that one task's matrix is of."""
    task = found[0].task
    measured = {(one.method, memory.seed, memory.learner) for one in found for memory in one.memories}
    learned = [
        one
        for one in lines
        if one.phase is Phase.LEARN and one.task == task and (one.method, one.seed, one.item_id) in measured
    ]
    yield plots.offline(found)
    yield plots.maps([one for one in lines if one.phase is Phase.ANSWER and one.task == task], learned)
    yield plots.rewards(learned)


def _crowds(curves: Mapping[str, Band]) -> Iterator[tuple[str, dict[str, Band]]]:
    """All in one picture, or ours and the others apart when they are many; zero-shot is in both."""
    if len(curves) <= CROWD:
        yield "Right answers so far", dict(curves)
        return
    for title, ours in (("Our methods, right answers so far", True), ("Baselines, right answers so far", False)):
        part = {name: band for name, band in curves.items() if name == ZERO_SHOT or is_agent(name) == ours}
        if part.keys() - {ZERO_SHOT}:
            yield title, part


def _ends(curves: Mapping[str, Band]) -> str:
    return "; ".join(
        f"{name} {percent(band.middle[-1])} after {band.x[-1]} questions, {seeds(band.members)}"
        for name, band in curves.items()
    )


def _left_out(task: TaskFigures) -> Iterator[str]:
    for method in task.methods:
        finished = any(one.finished for one in method.seeds)
        for one in method.seeds:
            if not one.finished:
                shown = "left out" if finished else "shown as far as it came"
                yield f"{method.label}, seed {one.seed}: {one.asked} of {one.questions} questions, {shown}."


def _own(answers: Lines) -> dict[Key, bool]:
    return {key_of(line): right for line in answers if (right := candidate_right(line, ZERO_SHOT)) is not None}
