"""Arithmetic in graded families, with wordings and numbers to learn from and others that are held out.

The easy families are those of ``bench.streams``; the harder ones need two steps, or a text to be read. Level 1 has
room on a model of 135M parameters; level 4 needs a larger one. What is held out does not depend on the seed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from elm_agent.bench.evidence.contract import Item
from elm_agent.bench.streams import family_named, square
from elm_agent.errors import InputError

SPLITS = ("train", "test")
"""Both wordings and numbers of "test" are held out: no question of "train" has either."""

_LARGEST = 3000  # combinations of numbers of a family; of larger ones a sample


@dataclass(frozen=True, slots=True)
class Graded:
    """``train`` and ``test``: wordings with {0}, {1}, ... ; ``numbers``: every allowed combination."""

    level: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    numbers: Callable[[], Sequence[tuple[int, ...]]]
    solve: Callable[..., int]


def _plain(name: str, level: int, *test: str) -> Graded:
    """A family of ``bench.streams`` with further wordings."""
    family = family_named(name)
    train = tuple(wording.replace("{a}", "{0}").replace("{b}", "{1}") for wording in family.templates)
    return Graded(level, train, test, family.operands, family.solve)


def _boxes(*ranges: range) -> Callable[[], list[tuple[int, ...]]]:
    return lambda: list(itertools.product(*ranges))


GRADED: dict[str, Graded] = {
    "products": _plain("products", 1, "{0} multiplied by {1} is what number?", "How much is {0} times {1}?"),
    "sums": _plain("sums", 1, "What do you get when you add {1} to {0}?", "How much is {0} plus {1}?"),
    "differences": _plain("differences", 1, "What is left when {1} is taken from {0}?", "How much is {0} minus {1}?"),
    "two_digit_sums": _plain("two_digit_sums", 2, "Add {0} and {1}.", "How much is {0} plus {1}?"),
    "two_digit_differences": Graded(
        2,
        ("What is {0} minus {1}?", "Compute {0} - {1}."),
        ("How much is {0} minus {1}?", "Subtract {1} from {0}."),
        lambda: [(a, b) for a, b in square(10, 99) if a > b],
        lambda a, b: a - b,
    ),
    "long_products": Graded(
        2,
        ("What is {0} times {1}?", "Compute {0} * {1}."),
        ("How much is {0} times {1}?", "{0} multiplied by {1} is what number?"),
        _boxes(range(11, 100), range(3, 10)),
        lambda a, b: a * b,
    ),
    "remainders": Graded(
        3,
        ("What is the remainder when {0} is divided by {1}?", "Compute {0} mod {1}."),
        ("Divide {0} by {1}. What remains?", "What is {0} modulo {1}?"),
        _boxes(range(20, 100), range(3, 10)),
        lambda a, b: a % b,
    ),
    "sequences": Graded(
        3,
        ("Continue the sequence {0}, {2}, {3}. What is the next number?", "What comes after {0}, {2}, {3}?"),
        ("Which number follows {0}, {2}, {3}?", "{0}, {2}, {3}, ... What is the fourth number?"),
        lambda: [(a, d, a + d, a + 2 * d) for a, d in itertools.product(range(1, 40), range(2, 13))],
        lambda a, d, *_: a + 3 * d,
    ),
    "two_steps": Graded(
        3,
        ("What is ({0} + {1}) * {2}?", "Add {0} and {1}, then multiply by {2}. What is the result?"),
        ("{0} plus {1} is multiplied by {2}. What is the product?", "Compute {2} * ({0} + {1})."),
        _boxes(range(2, 13), range(2, 13), range(2, 10)),
        lambda a, b, c: (a + b) * c,
    ),
    "shopping": Graded(
        4,
        (
            "A pen costs {0} dollars. Ann buys {1} pens and pays {2} dollars. How many dollars does she get back?",
            "Tickets cost {0} dollars each. Tom has {2} dollars and buys {1}. How many dollars are left?",
        ),
        (
            "Mia has {2} coins and spends {0} coins on each of {1} toys. How many coins does she keep?",
            "From {2} liters of water {1} buckets of {0} liters are filled. How many liters remain?",
        ),
        lambda: [
            (price, count, paid)
            for price, count, paid in itertools.product(range(2, 10), range(2, 8), (50, 80, 100))
            if price * count < paid
        ],
        lambda price, count, paid: paid - price * count,
    ),
    "ages": Graded(
        4,
        (
            "Ben is {0} years old. His sister is {1} years older. In {2} years, how old will they be together?",
            "A dog is {0} and a cat is {1} years older. What will their ages add up to in {2} years?",
        ),
        (
            "Lea is {0}, and Max is {1} years older than Lea. What is the sum of their ages {2} years from now?",
            "One tree is {0} years old, another is {1} years older. How old are both together in {2} years?",
        ),
        _boxes(range(3, 20), range(2, 9), range(2, 10)),
        lambda a, b, c: 2 * a + b + 2 * c,
    ),
}


def staged_items(stages: Sequence[Sequence[str]], *, count: int, split: str | None, seed: int) -> list[Item]:
    """A stream that changes on its way: ``count`` questions in as many equal parts as there are ``stages``.

    Of each stage the families come in turn; one that comes again goes on with questions that were not yet asked. The
    first parts have one question more where ``count`` does not divide. A single stage is ``graded_items``.

    Raises ``InputError`` as that does.
    """
    if len(stages) == 1:
        return graded_items(stages[0], count=count, split=split, seed=seed)
    splits = SPLITS if split is None else (split,)
    sources: dict[tuple[str, str], Iterator[Item]] = {}
    items: list[Item] = []
    for number, names in enumerate(stages):
        _check(names, split)
        both = [(name, one) for name in names for one in splits]
        turn = _in_turn([sources.setdefault(one, _items(*one, seed)) for one in both])
        size = count // len(stages) + (number < count % len(stages))
        part = list(itertools.islice(turn, size))
        _check_count(names, len(part), size)
        items += [replace(item, part=f"{number + 1}: {'+'.join(names)}") for item in part]
    return items


def graded_items(names: Sequence[str], *, count: int | None, split: str | None, seed: int) -> list[Item]:
    """``count`` questions, families in turn; a smaller count gives the beginning of a larger one. None: all of them.

    ``split``: one of ``SPLITS``, or None for train and test in turn.

    Raises:
        InputError: an unknown or repeated family or split, or fewer questions than asked for.
    """
    _check(names, split)
    splits = SPLITS if split is None else (split,)
    items = list(_in_turn([_items(name, one, seed) for name in names for one in splits]))
    _check_count(names, len(items), count)
    return items[:count]


def _in_turn(sources: Sequence[Iterator[Item]]) -> Iterator[Item]:
    """One of each, until all have ended; nothing is taken that is not given."""
    left = list(sources)
    while left:
        for source in list(left):
            if (item := next(source, None)) is None:
                left.remove(source)
            else:
                yield item


def _items(name: str, split: str, seed: int) -> Iterator[Item]:
    """Each combination of numbers once, in one of the wordings."""
    family = GRADED[name]
    wordings = family.train if split == "train" else family.test
    rng = random.Random(f"{seed}/{name}/{split}")
    numbers = _numbers(name, split)
    rng.shuffle(numbers)
    for values in numbers:
        which = rng.randrange(len(wordings))
        mark = "-".join(map(str, values))
        yield Item(
            id=f"{name}/{split}/{mark}",
            question=wordings[which].format(*values),
            answer=str(family.solve(*values)),
            family=name,
            split=split,
        )


def _numbers(name: str, split: str) -> list[tuple[int, ...]]:
    """A third of the combinations, drawn once for all, is held out. Where order does not matter both orders are."""
    combinations = sorted(GRADED[name].numbers())
    groups = sorted({tuple(sorted(values)) for values in combinations})
    rng = random.Random(f"held out/{name}")
    held = set(rng.sample(groups, len(groups) // 3))
    chosen = [values for values in combinations if (tuple(sorted(values)) in held) == (split == "test")]
    return chosen if len(chosen) <= _LARGEST else rng.sample(chosen, _LARGEST)


def _check_count(names: Sequence[str], there: int, count: int | None) -> None:
    if count is not None and there < count:
        raise InputError(f"{', '.join(names)} have {there} questions; got a limit of {count}: ask for fewer")


def _check(names: Sequence[str], split: str | None) -> None:
    known = ", ".join(GRADED)
    if not names or len(set(names)) < len(names):
        raise InputError(f"families {', '.join(names) or '(none)'}: expected different names of {known}")
    for name in names:
        if name not in GRADED:
            raise InputError(f"unknown family {name!r}: expected some of {known}")
    if split is not None and split not in SPLITS:
        raise InputError(f"unknown split {split!r}: expected {' or '.join(SPLITS)}")
