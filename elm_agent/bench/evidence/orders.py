"""The three protocols: which question comes when, and what has been learned by then. Their rules are in ``contract``.

A method is opened only where something is left to do, and closed whatever happens.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import closing

from elm_agent.bench.evidence.beside import Stop, side_by_side
from elm_agent.bench.evidence.contract import Item, Maker, Method, Phase
from elm_agent.bench.evidence.walk import Walk

BATCH = 16
"""Questions that one memory answers together, and that are lost at most when the process is killed."""


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """The order of a seed: parts one after the other as they first come, each shuffled."""
    rng, parts = random.Random(f"order/{seed}"), defaultdict(list)
    for item in items:
        parts[item.part].append(item)
    return [item for part in parts.values() for item in rng.sample(part, len(part))]


def online(walk: Walk, open_method: Callable[[], Method], items: Sequence[Item]) -> None:
    """Answer each item with what was learned from those before it, and only then learn from it."""
    if _answered(walk, items) and _learned(walk, items):
        return
    with closing(open_method()) as method:
        _study(walk, method, items)


def in_any_order(
    walk: Walk, open_method: Callable[[], Method], items: Sequence[Item], *, together: int, stop: Stop
) -> None:
    """Answer each item with a method that learns nothing, ``together`` of them at a time."""
    left = deque((n, item) for n, item in enumerate(items) if walk.stored(Phase.ANSWER, n, item) is None)

    def work() -> None:
        with closing(open_method()) as method:
            while (numbered := _next(left)) is not None:
                walk.answer(method, *numbered)

    side_by_side([work] * min(together, len(left)), together=together, stop=stop)


def transfer(
    source: Walk,
    studied: Sequence[Item],
    open_method: Callable[[], Method],
    targets: Sequence[tuple[Walk, Sequence[Item]]],
) -> None:
    """Go through ``studied`` online, then answer the items of each target, and learn nothing from them."""
    left = [(walk, items) for walk, items in targets if not _answered(walk, items)]
    if left or not _learned(source, studied):
        with closing(open_method()) as method:
            _study(source, method, studied)
            for walk, items in left:
                for position, item in enumerate(items):
                    walk.answer(method, position, item)


def offline(walk: Walk, open_maker: Callable[[], Maker], items: Sequence[Item]) -> None:
    """Make a memory of each item alone, and answer every item with it. A memory that failed answers nothing."""
    with closing(open_maker()) as maker:
        walk.prepare(maker, [item for n, item in enumerate(items) if walk.stored(Phase.LEARN, n, item) is None])
        for position, learner in enumerate(items):
            if walk.make(maker, position, learner).failure is None:
                numbered = list(enumerate(items))
                for start in range(0, len(items), BATCH):
                    walk.answer_with(maker, learner, numbered[start : start + BATCH])


def whole(walk: Walk, open_method: Callable[[], Method], items: Sequence[Item]) -> None:
    """Learn from the whole set at once, then answer it: the offline references."""
    if _answered(walk, items) and _learned(walk, items):
        return
    with closing(open_method()) as method:
        walk.prepare(method, items)
        for position, item in enumerate(items):
            walk.learn(method, position, item)
        for position, item in enumerate(items):
            walk.answer(method, position, item)


def _study(walk: Walk, method: Method, items: Sequence[Item]) -> None:
    known = 0
    if method.learns:
        known = next((n for n, item in enumerate(items) if not walk.restore(method, n, item)), len(items))
        walk.prepare(method, items[known:])
    for position, item in enumerate(items):
        line = walk.answer(method, position, item)
        if method.learns and position >= known:
            walk.learn(method, position, item, line)


def _next(left: deque[tuple[int, Item]]) -> tuple[int, Item] | None:
    try:
        return left.popleft()
    except IndexError:  # another one may have been quicker
        return None


def _learned(walk: Walk, items: Sequence[Item]) -> bool:
    return all(walk.stored(Phase.LEARN, n, item) is not None for n, item in enumerate(items))


def _answered(walk: Walk, items: Sequence[Item]) -> bool:
    return all(walk.stored(Phase.ANSWER, n, item) is not None for n, item in enumerate(items))
