"""Task sets by the words of a command line.

    arithmetic                          products+sums+differences, wordings and numbers of both splits
    arithmetic:products+ages@train      families by name; @train or @test: only those to learn from, or held out
    arithmetic:products>ages            a stream that changes: first the one, then as many of the other
    gym:NAME                            a data set of reasoning-gym (`pip install 'elm-agent[evidence]'`)
    math500 amc23 aime24 gsm8k svamp    from the hub (`pip install 'elm-agent[evidence]'`)
    amc23=FILE.jsonl                    the same from a file of one's own
    hub:OWNER/NAME:SPLIT:QUESTION:ANSWER    any data set of the hub, with the names of its fields; OWNER/NAME@CONFIG
                                        where it has several configurations
    FILE.jsonl:QUESTION:ANSWER          a file with named fields; by default "question" and "answer"

Knows nothing of models or methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elm_agent.bench.evidence.contract import Item, TaskSet
from elm_agent.bench.evidence.families import staged_items
from elm_agent.bench.evidence.rows import Fields, after_hashes, finished, number, set_of
from elm_agent.bench.streams import read_records
from elm_agent.errors import InputError
from elm_agent.tasks.numerals import read_number

DEFAULT_FAMILIES = "products+sums+differences"
GENERATED = 60
"""Questions of a generated set when no limit says otherwise."""

INSTALL = "pip install 'elm-agent[evidence]'"


@dataclass(frozen=True, slots=True)
class Known:
    """A data set that goes by a name."""

    hub: str
    config: str | None
    split: str
    fields: Fields


KNOWN = {
    "math500": Known(
        "HuggingFaceH4/MATH-500", None, "test", Fields(question=("problem", "question"), family="subject")
    ),
    "amc23": Known("math-ai/amc23", None, "test", Fields(question=("problem", "question"), read=number)),
    "aime24": Known("HuggingFaceH4/aime_2024", None, "train", Fields(question=("problem", "question"), read=number)),
    "gsm8k": Known("openai/gsm8k", "main", "test", Fields(read=after_hashes)),
    "svamp": Known(
        "ChilleD/SVAMP",
        None,
        "test",
        Fields(joined=("Body", "Question"), answer="Answer", family="Type", read=number),
    ),
}


def load_task_set(words: str, *, limit: int | None = None, seed: int = 0, kind: str = "math") -> TaskSet:
    """The set that ``words`` name, see above.

    Args:
        limit: most questions: the first ones; generated sets have 60 by default.
        seed: of sets that are generated.
        kind: of the questions in files and data sets whose name is not known.

    Raises:
        InputError: words, fields or families that are not known, a file that cannot be read, a missing package.
    """
    name, _, rest = words.partition(":")
    if name.partition("@")[0] == "arithmetic":
        return _arithmetic(words, limit=limit, seed=seed)
    if name == "gym":
        return _gym(words, rest, size=limit or GENERATED, seed=seed)
    if name == "hub":
        return _of_hub(words, rest, kind=kind, limit=limit)
    if words in KNOWN:
        known = KNOWN[words]
        rows = _hub_rows(known.hub, known.config, known.split)
        return _of_rows(words, "math", rows, known.fields, limit)
    known_name, equals, path = words.partition("=")
    if equals and known_name in KNOWN:
        return _of_rows(known_name, "math", read_records(path), KNOWN[known_name].fields, limit)
    path, found, fields = words.partition(".jsonl")
    if found:
        return _of_file(Path(path + found), fields, kind=kind, limit=limit)
    raise InputError(
        f"unknown tasks {words!r}: expected arithmetic, gym:NAME, hub:OWNER/NAME:SPLIT:QUESTION:ANSWER, FILE.jsonl, "
        f"or one of {', '.join(KNOWN)}"
    )


def _arithmetic(words: str, *, limit: int | None, seed: int) -> TaskSet:
    families, at, split = words.partition("@")
    stages = [stage.split("+") for stage in (families.partition(":")[2] or DEFAULT_FAMILIES).split(">")]
    items = staged_items(stages, count=limit or GENERATED, split=split if at else None, seed=seed)
    return finished(TaskSet(name=words, kind="math", items=tuple(items)))


def _gym(words: str, name: str, *, size: int, seed: int) -> TaskSet:
    try:
        import reasoning_gym
    except ImportError:
        raise InputError(f"tasks {words!r} need the package reasoning-gym: {INSTALL}") from None
    if name not in reasoning_gym.factory.DATASETS:
        some = ", ".join(sorted(reasoning_gym.factory.DATASETS))
        raise InputError(f"reasoning-gym has no data set {name!r}: it has {some}")
    data = reasoning_gym.create_dataset(name, size=size, seed=seed)
    entries = [data[position] for position in range(size)]
    items = tuple(
        Item(id=f"{position:05d}", question=str(entry["question"]), answer=str(entry["answer"]), family=name)
        for position, entry in enumerate(entries)
    )
    kind = "math" if all(read_number(item.answer) is not None for item in items) else "text"
    by_id = {item.id: entry for item, entry in zip(items, entries, strict=True)}

    def judge(item: Item, answer: str) -> bool:
        """The data set's own score; less than all of it is not right."""
        return float(data.score_answer(answer, by_id[item.id])) >= 1.0

    return finished(TaskSet(name=words, kind=kind, items=items, judge=judge))


def _of_hub(words: str, rest: str, *, kind: str, limit: int | None) -> TaskSet:
    parts = rest.split(":")
    if len(parts) != 4 or not all(parts):
        raise InputError(f"tasks {words!r}: expected hub:OWNER/NAME:SPLIT:QUESTION:ANSWER, or OWNER/NAME@CONFIG")
    hub, split, question, answer = parts
    fields, (name, _, config) = Fields(question=(question,), answer=answer), hub.partition("@")
    return _of_rows(hub, kind, _hub_rows(name, config or None, split), fields, limit)


def _hub_rows(hub: str, config: str | None, split: str) -> Iterator[tuple[int, object]]:
    try:
        import datasets
    except ImportError:
        raise InputError(f"data sets of the hub need the package datasets: {INSTALL}, or name a file") from None
    try:
        rows = datasets.load_dataset(hub, config, split=split)
    except Exception as error:  # whatever the hub, the network or the files refuse
        told = " ".join(str(error).split())[:300]
        raise InputError(f"data set {hub!r} cannot be had ({told}): name a file instead, NAME=FILE.jsonl") from error
    return ((position, row) for position, row in enumerate(rows, 1))


def _of_file(path: Path, fields: str, *, kind: str, limit: int | None) -> TaskSet:
    names = fields.removeprefix(":").split(":") if fields else []
    if len(names) > 2 or (fields and not fields.startswith(":")) or not all(names):
        raise InputError(f"tasks {str(path) + fields!r}: expected FILE.jsonl:QUESTION:ANSWER")
    question, answer = [*names, *("question", "answer")[len(names) :]]
    return _of_rows(path.stem, kind, read_records(path), Fields(question=(question,), answer=answer), limit)


def _of_rows(name: str, kind: str, rows: Iterator[tuple[int, object]], fields: Fields, limit: int | None) -> TaskSet:
    lines = (fields.line(position, row) for position, row in rows)
    return set_of(name, kind, lines, read=fields.read, limit=limit)
