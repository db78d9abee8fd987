"""A method beside another one, where both have a judged answer. Pure functions of lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from elm_agent.bench.evidence.lines import Items, Key, Lines, Share, judged, key_of, question_of
from elm_agent.bench.evidence.paired import Interval, McNemar, mcnemar, mean_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A method beside a reference, on the questions and seeds that both have a judged answer to."""

    reference: str
    unpaired: int  # judged answers of the method without a counterpart
    seeds: int  # that the pairs are of
    fixed: int  # the reference wrong, the method right
    broken: int
    harm: Share  # broken, of all pairs
    difference: Interval  # mean of (method right) - (reference right)
    mcnemar: McNemar

    @property
    def pairs(self) -> int:
        return self.harm.whole


def compare(lines: Lines, reference: Mapping[Key, bool], name: str, items: Items) -> Comparison:
    """The judged answers of ``lines`` beside ``reference``. A question with all its seeds is one unit of drawing."""
    pairs: list[tuple[bool, bool]] = []
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    answers = judged(lines)
    both = [line for line in answers if key_of(line) in reference]
    for line in both:
        right, other = bool(line.correct), reference[key_of(line)]
        pairs.append((right, other))
        groups[question_of(line, items)].append(float(right) - float(other))
    fixed, broken = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return Comparison(
        reference=name,
        unpaired=len(answers) - len(pairs),
        seeds=len({line.seed for line in both}),
        fixed=fixed,
        broken=broken,
        harm=Share.of(broken, len(pairs)),
        difference=mean_interval(groups),
        mcnemar=mcnemar(pairs),
    )


def beside(lines: Lines, others: Mapping[str, Mapping[Key, bool]], items: Items) -> tuple[Comparison, ...]:
    """``compare`` with each of the others, which are given by name."""
    return tuple(compare(lines, other, name, items) for name, other in others.items())
