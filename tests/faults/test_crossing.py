"""Every public method with ids, digests, leases and job ids of another namespace, and with names that play tricks.

0 leaks. The methods are found by inspection: a new one without a probe fails here. ELM_PROBES=10000 makes that many
calls on each database and back end.
"""

from __future__ import annotations

import inspect
import os
import random
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crossing_probes import COMMON, KIND, MINE, NO_NAMESPACE, OTHER, PROBES, SECRET, Asked, public_methods, use
from dying_worker import make_worker
from kill_child import MODEL, RECIPE, Place
from typer.testing import CliRunner

from elm_agent.cli.app import app
from elm_agent.errors import ElmError
from elm_agent.protocols import IndexEntry, KeyIndex
from elm_agent.storage.bank import Bank, Lease
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.ledger import chain
from elm_agent.testing.doubles import FakeTrainer, key_of

COUNT = int(os.environ.get("ELM_PROBES", "400"))
TRICKS = [
    "Mine", "MINE", "mine ", " mine", "mine/", "./mine", "../mine", "mine/../other", "other/", "OTHER", "Other",
    "other\x00", "mine\x00other", "\u202eother", "other\u202c", "оther", "ｏther", "othe\u0301r", "%6fther",
    "other%00", "o%", "_____", "other;--", "' OR 1=1 --", '"other"', "*", "", ".", "..", "/", "\\other", "C:other",
    "~", "o" * 10_000,
    "other\n", "other\t", "\ud800", "null", "None", "other.", "other-", "+other", "con", "aux.txt",
]  # fmt: skip


@dataclass(frozen=True)
class World:
    """Two namespaces with memories, uses and jobs; ``lease`` is of a job of ``OTHER`` that runs."""

    bank: Bank
    index: KeyIndex
    lease: Lease
    folder: Path

    def state_of(self, name: str) -> list[Any]:
        """Everything of a namespace that a probe may neither change nor see."""
        bank = self.bank
        memories = bank.memories(name)
        return [
            memories,
            [bank.keys(name, one.id).input.tolist() for one in memories],
            [bank.prompt(name, one.id).virtual_tokens for one in memories],
            bank.uses(name),
            bank.jobs.list(name),
            sorted(bank.tensors.digests(name)),
            bank.events(name),
            bank.tombstones(name),
            self.index.ids(name, KIND),
        ]


@pytest.fixture(params=["exact", "chroma", "sealed"])
def world(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[World]:
    chroma = request.param == "chroma"
    place = Place(database_url, tmp_path, index="chroma" if chroma else "exact", encrypted=request.param == "sealed")
    index = ExactIndex(tmp_path / "own")  # Chroma may forget all when it is scrubbed; the bank feeds it again
    with closing(index), closing(place.open()) as bank:
        fill(bank)
        entries = [IndexEntry(one.id, bank.keys(OTHER, one.id).input) for one in bank.memories(OTHER)]
        index.apply(OTHER, KIND, entries, [])
        queue(bank, OTHER, f"What is {SECRET} at last?")
        lease = bank.jobs.claim("worker of the other", lease_seconds=36_000)
        assert lease is not None
        yield World(bank, index, lease, tmp_path)


def queue(bank: Bank, name: str, question: str, subject: str | None = None) -> None:
    bank.jobs.enqueue(name, question, task="math", model_id=MODEL.id, recipe=RECIPE, subject=subject)


def fill(bank: Bank) -> None:
    for name, word in ((MINE, "plain"), (OTHER, SECRET)):
        bank.bind(name, MODEL)
        for n in range(3):
            queue(bank, name, f"What is {word} {n}?", subject=word)
    queue(bank, OTHER, COMMON)
    while make_worker(bank).run_one():
        pass
    for name, word in ((MINE, "plain"), (OTHER, SECRET)):
        for memory in bank.memories(name):
            bank.record_use(use(name, memory.id, word))


def test_every_public_method_has_its_probe() -> None:
    methods = public_methods()
    probed = {what.split()[0] for what in PROBES}
    assert set(methods) - probed == set(NO_NAMESPACE), "write a probe for what is new, or say why it needs none"
    takes_one = [what for what in NO_NAMESPACE if "namespace" in inspect.signature(methods[what]).parameters]
    assert takes_one == [], "what takes a namespace is probed"


def test_nothing_crosses(world: World) -> None:
    bank, dice, before, done = world.bank, random.Random(0), world.state_of(OTHER), 0
    (common,) = [one for one in bank.memories(OTHER) if one.question == COMMON]
    memories = [one for one in bank.memories(OTHER) if one != common]
    jobs = [job for job in bank.jobs.list(OTHER) if job.id != world.lease.job.id]
    use_ids = [one.id for one in bank.uses(OTHER)]
    digests = [one.tensor_digest for one in memories]
    secrets = {SECRET, world.lease.job.id, *use_ids, *digests, *(one.id for one in [common, *memories, *jobs])}
    trained = FakeTrainer().train(
        "of a probe", recipe=RECIPE, seed=7, observe=lambda *_: None, cancelled=lambda: False
    )
    while done < COUNT:
        name = dice.choice([MINE, MINE, MINE, *TRICKS])
        asked = Asked(
            bank, world.index, name, dice.choice(memories), common, dice.choice(use_ids), dice.choice(jobs),
            world.lease, trained, world.folder,
        )  # fmt: skip
        for what, probe in PROBES.items():
            done += 1
            try:
                text = repr(probe(asked))
            except ElmError as error:
                text = re.sub(r"(mem|use|job)_\w+|sha256:\w+", "", str(error))  # what was asked may be said again
                assert "\n" not in text
                assert len(text) < 600, "a long name is not repeated"
            assert not [secret for secret in secrets if secret in text], f"{what} {name[:40]!r}: {text[:200]}"
    assert world.state_of(OTHER) == before
    bank.jobs.heartbeat(world.lease, lease_seconds=60)
    assert chain.verify(bank.database, OTHER, vault=bank.vault).broken is None
    assert examine(bank).clean


@pytest.mark.parametrize("index", ["exact", "chroma"])
def test_an_index_keeps_look_alike_names_apart(tmp_path: Path, index: str) -> None:
    made: Any = ExactIndex(tmp_path / "index") if index == "exact" else ChromaIndex(tmp_path / "chroma")
    names = [MINE, OTHER, "Other", "OTHER", "other.", "other-", "o", "_" * 5, "x" * 90]
    with closing(made):
        for n, name in enumerate(names):
            made.apply(name, KIND, [IndexEntry(f"mem_{n}", key_of(f"key {n}", KIND))], [])
        for n, name in enumerate(names):
            assert made.ids(name, KIND) == {f"mem_{n}"}
            (hit,) = made.search(name, KIND, key_of("key 0", KIND), 20)
            assert hit.memory_id == f"mem_{n}"
            made.apply(name, KIND, [], [f"mem_{(n + 1) % len(names)}"])
        assert [made.ids(name, KIND) for name in names] == [{f"mem_{n}"} for n in range(len(names))]


def seen(bank: Bank) -> list[Any]:
    return [bank.memories(OTHER), bank.uses(OTHER), bank.jobs.list(OTHER), bank.events(OTHER)]


def test_the_command_line_keeps_to_its_namespace(tmp_path: Path) -> None:
    with closing(Place(f"sqlite:///{tmp_path / 'elm.sqlite'}", tmp_path).open()) as bank:
        for name, word in ((MINE, "plain"), (OTHER, SECRET)):
            bank.bind(name, MODEL)
            bank.jobs.enqueue(name, f"What is {word}?", task="math", model_id=MODEL.id, recipe=RECIPE)
        while make_worker(bank).run_one():
            pass
        (memory,), (job,) = bank.memories(OTHER), bank.jobs.list(OTHER)
        before = seen(bank)
    about = ["--home", str(tmp_path), "--namespace", MINE]
    asked = [
        *(["memories", verb, memory.id] for verb in ("show", "evict", "restore", "pin", "unpin", "history")),
        *(["jobs", verb, job.id] for verb in ("show", "cancel", "retry")),
        ["memories", "list"], ["jobs", "list"], ["audit", "log"],
    ]  # fmt: skip
    runner = CliRunner()
    for words in asked:
        done = runner.invoke(app, [*words, *about])
        if done.exit_code == 2 and "No such command" in done.output:
            continue
        assert SECRET not in done.output, words
        if len(words) == 3:
            assert done.exit_code != 0, words
    with closing(Place(f"sqlite:///{tmp_path / 'elm.sqlite'}", tmp_path).open()) as bank:
        assert seen(bank) == before
