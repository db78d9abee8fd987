"""A run's folder: what was run, what was asked, and each line as it happens. Its layout is in ``contract``.

A process may be killed at any byte: the next one drops a torn last line and goes on. One writer at a time. A run that
is taken up again must be the same run; what differs is named. Knows nothing of models and methods.
"""

from __future__ import annotations

import json
import lzma
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar

from elm_agent.bench.evidence.contract import FORMAT, GenerationLine, Item, Phase, StoredRun, TaskSet
from elm_agent.bench.results import ResultsFile
from elm_agent.errors import InputError, StorageError
from elm_agent.records import digest_of
from elm_agent.settings import Settings

RUN, ITEMS, LINES, WORK = "run.json", "items.jsonl", "generations.jsonl", "work"
UNCOMPARED = frozenset({"environment", "methods", "seeds"})
"""Parts of run.json in which a run may differ from the one that it goes on with: more methods, more seeds."""

T = TypeVar("T")
Name = tuple[str, str, int, str, str | None, str, str | None]


class RunFolder:
    """``lines``: what happened so far, in order. A context manager; closing it lets others write.

    Lines may be added and found from any thread.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], sets: Iterable[TaskSet]) -> None:
        """Begin the run that ``head`` describes, or go on with it.

        Raises:
            InputError: the folder is of another run; the sentence says what differs. Or it holds something else.
            StoreBusy: another process is writing it.
            StorageError: it cannot be read or written.
        """
        self.path = path
        self._file = ResultsFile(path / LINES)
        try:
            self._begin(json.loads(json.dumps({"format": FORMAT, **head})), list(sets))
            lines = [GenerationLine.of_json(record) for record in self._file.records.values()]
        except BaseException:
            self._file.close()
            raise
        self.lines: list[GenerationLine] = []
        self._adding = threading.Lock()
        self._by_name: dict[Name, GenerationLine] = {}
        self._of_any_seed: dict[tuple[Any, ...], GenerationLine] = {}
        for line in lines:
            self._know(line)

    @property
    def mended(self) -> bool:
        """Whether a torn last line was dropped."""
        return self._file.mended

    def find(self, line: GenerationLine) -> GenerationLine | None:
        """The stored line of the same name."""
        return self._by_name.get(line.name)

    def of_any_seed(self, line: GenerationLine) -> GenerationLine | None:
        """The first stored answer to the same question in the same way, but for the seed; a failure is none."""
        return self._of_any_seed.get(_seedless(line))

    def add(self, line: GenerationLine, digest: str) -> GenerationLine:
        """Store a line, and return it as it will be read; it is on disk then. ``digest``: of its question."""
        with self._adding:
            record = _finite({"line": len(self.lines) + 1, "question_digest": digest, **line.to_json()})
            self._file.append(record)
            stored = GenerationLine.of_json(json.loads(json.dumps(record)))
            self._know(stored)
        return stored

    def _know(self, line: GenerationLine) -> None:
        self.lines.append(line)
        self._by_name[line.name] = line
        if line.phase is Phase.ANSWER and line.failure is None:
            self._of_any_seed.setdefault(_seedless(line), line)

    def work(self, *parts: str) -> Path:
        """A folder for a method under ``work``, made if need be. ``parts`` may hold any characters."""
        folder = self.path.joinpath(WORK, *map(_file_name, parts))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def bind(self, model: Mapping[str, Any]) -> None:
        """Note the model, or check that it is the one of this run. Raises ``InputError``."""
        noted = _read_json(self.path / RUN)
        there = noted.get("model")
        if there is None:
            _write(self.path / RUN, _pretty({**noted, "model": dict(model)}))
        elif there["id"] != model["id"]:
            raise InputError(
                f"{self.path} is a run with model {there['name']!r} ({there['id'][:19]}), this is {model['name']!r} "
                f"({model['id'][:19]}): name another folder with --out"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def _begin(self, head: dict[str, Any], sets: list[TaskSet]) -> None:
        file = self.path / RUN
        try:
            if file.exists():
                noted = _read_json(file)
                _refuse_other(self.path, noted, head)
                for name in ("methods", "seeds"):
                    head[name] = noted[name] + [one for one in head[name] if one not in noted[name]]
                made = _gone_on(noted.get("environment") or {}, head.get("environment") or {})
                _write(file, _pretty(noted | {name: head[name] for name in ("methods", "seeds")} | made))
            elif self._file.records:
                raise InputError(f"{self.path} has {LINES} and no {RUN}: name another folder with --out")
            else:
                rows = [{"task": one.name, **asdict(item)} for one in sets for item in one.items]
                _write(self.path / ITEMS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
                _write(file, _pretty(head))
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"run folder {self.path} cannot be written: {error.strerror}") from error


def read_run(folder: Path) -> StoredRun:
    """A run as it is on disk, also while it is being written; its lines may be packed, ``generations.jsonl.xz``.

    Raises:
        InputError: it is no run folder, or of a format that this library does not know.
    """
    run = _read_json(folder / RUN)
    if run.get("format") != FORMAT:
        raise InputError(f"{folder / RUN} has format {run.get('format')!r}: this library reads {FORMAT}")
    items = dict(_objects(folder / ITEMS, _item))
    lines = tuple(_objects(folder / LINES, GenerationLine.of_json))
    return StoredRun(folder=folder, run=run, items=items, lines=lines)


def told_of(made: TaskSet) -> dict[str, Any]:
    """What run.json says of a task set."""
    return {
        "name": made.name,
        "kind": made.kind,
        "questions": len(made.items),
        "digest": digest_of([[item.id, item.question, item.answer] for item in made.items]),
        "faults": [asdict(fault) for fault in made.faults],
        "duplicates": [list(ids) for ids in made.duplicates],
    }


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """What differs between two JSON values, each in a few words."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif there != here:
        yield f"{name} is {_short(there)} there and {_short(here)} here"


def _seedless(line: GenerationLine) -> tuple[Any, ...]:
    phase, method, _, *rest = line.name
    return phase, method, *rest


def _refuse_other(path: Path, noted: dict[str, Any], head: dict[str, Any]) -> None:
    compared = {name: value for name, value in head.items() if name not in UNCOMPARED}
    there = {name: noted.get(name) for name in compared}
    usual = Settings().model_dump(mode="json", include=set(compared["settings"]))
    found = list(differences(there | {"settings": _filled(there["settings"], usual)}, compared))
    if found:
        more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
        raise InputError(
            f"{path} is another run: {'; '.join(found[:5])}{more}; use the same settings, or name another folder "
            "with --out"
        )


def _filled(settings: Any, usual: Any) -> Any:
    """A setting that the library did not have when the run began was as it is by default."""
    if not (isinstance(settings, dict) and isinstance(usual, dict)):
        return settings
    return usual | {name: _filled(value, usual.get(name)) for name, value in settings.items()}


def _gone_on(noted: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The environment of the run's beginning, with each other command that it went on with."""
    commands, command = noted.get("went_on_with", []), now.get("command")
    if command in (None, noted.get("command"), *commands):
        return {}
    return {"environment": {**noted, "went_on_with": [*commands, command]}}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file} does not exist: expected the folder of a run") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise InputError(f"{file} is not the JSON object of a run")
    return value


def _item(row: dict[str, Any]) -> tuple[tuple[str, str], Item]:
    task = row.pop("task")
    return (task, row["id"]), Item(**row)


def _objects(file: Path, make: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """What ``make`` makes of each whole line; what stands after the last line end is being written, or torn."""
    packed = file.with_name(file.name + ".xz")
    try:
        told = lzma.decompress(packed.read_bytes()) if packed.exists() and not file.exists() else file.read_bytes()
    except (OSError, lzma.LZMAError) as error:
        raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    *whole, _ = told.split(b"\n")
    for number, line in enumerate(whole, 1):
        try:
            yield make(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = " ".join(str(error).split())[:100]
            raise InputError(f"line {number} of {file} is no line of a run ({why}): the folder is damaged") from None


def _pretty(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    unfinished = file.with_name(f".{file.name}.part")
    with unfinished.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)


def _finite(value: Any) -> Any:
    """Plain JSON: infinity and NaN become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _file_name(part: str) -> str:
    """A name that every file system bears, another one for another part."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in part)[:60].strip(".")
    return plain if plain == part else f"{plain}-{digest_of(part)[7:15]}"
