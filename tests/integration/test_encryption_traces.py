"""Nothing readable of a memory is left in any file or dump of an encrypted bank."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import killed_rotation
import pytest
from sqlalchemy import make_url

from elm_agent.bench.filling import use_of
from elm_agent.errors import VaultLocked
from elm_agent.memory.worker import Worker
from elm_agent.records import MemoryState, Recipe
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.softprompt import to_bytes
from elm_agent.storage.bank import Bank
from elm_agent.storage.vault.rotation import rotate_data
from elm_agent.storage.vault.status import vault_status
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint

MARK = "Zanzibar"
MODEL = fake_fingerprint()
RECIPE = Recipe(virtual_tokens=3, rollouts=2, steps=2)
KEY = b"k" * 32


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", database_url=database_url, index="exact")


def opened(settings: Settings, *, key: bool) -> Bank:
    bank = open_bank(settings, encryption_key=(lambda: KEY) if key else None)
    try:
        bank.bind("default", MODEL)
    except VaultLocked:
        bank.close()
        raise
    return bank


@pytest.fixture
def bank(settings: Settings) -> Iterator[Bank]:
    bank = opened(settings, key=True)
    yield bank
    bank.close()


def live(bank: Bank, count: int = 3) -> None:
    """Questions, answers, rollouts, notes and subjects with the mark in each, by the bank's own ways."""
    for n in range(count):
        question = f"How far is {MARK} number {n}?"
        bank.jobs.enqueue(
            "default", question, task="math", model_id=MODEL.id, recipe=RECIPE, subject=f"{MARK} of Ada"
        )
    worker = Worker(bank=bank, trainer_for=lambda _task: FakeTrainer(), model=MODEL)
    worker.run(once=True)
    bank.jobs.enqueue("default", f"{MARK} later", task="math", model_id=MODEL.id, recipe=RECIPE)
    for memory in bank.memories("default"):
        bank.record_use(
            use_of(
                "default",
                memory.id,
                question=f"{MARK}?",
                reason=f"{MARK} won",
                answer=MARK,
                memory_answer=MARK,
                zero_shot_answer=MARK,
                subject=f"{MARK} of Ada",
            )
        )
        bank.review("default", memory.id, actor="me", verdict="good", note=f"{MARK} is right")
    first = bank.memories("default")[0]
    bank.transition("default", first.id, MemoryState.RETIRED, actor="me", reason=f"no {MARK} any more")


def tensors_of(bank: Bank) -> list[bytes]:
    return [to_bytes(bank.prompt("default", memory.id).prompt_VE) for memory in bank.memories("default")]


def hits(settings: Settings, needles: list[bytes]) -> list[str]:
    """Every file under the bank's folder, and a dump of the server's database."""
    home = settings.home.parent
    found = [
        f"{path}: {needle[:20]!r}"
        for path in home.rglob("*")
        if path.is_file()
        for needle in needles
        if needle in path.read_bytes()
    ]
    if (url := make_url(settings.resolved_database_url)).get_backend_name() == "postgresql":
        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        dump = subprocess.run([pg_dump(), "--inserts", plain], capture_output=True, check=True).stdout
        assert b"INSERT INTO public.memories" in dump
        found += [f"dump: {needle[:20]!r}" for needle in needles if needle in dump]
    return found


def pg_dump() -> str:
    beside = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))
    program = str(beside[-1]) if beside else shutil.which("pg_dump")
    if program is None:
        pytest.skip("pg_dump is not installed")
    return program


def needles(bank: Bank) -> list[bytes]:
    """The mark, and a piece of the numbers of every prompt."""
    return [MARK.encode(), *(data[-24:] for data in tensors_of(bank))]


def test_a_plain_bank_shows_what_is_looked_for(settings: Settings) -> None:
    """That the search itself works."""
    bank = opened(settings, key=False)
    live(bank)
    wanted = needles(bank)
    bank.close()
    found = hits(settings, wanted)
    assert any(MARK in hit for hit in found)
    assert sum(".safetensors" in hit for hit in found) == 3


def test_nothing_readable_is_left(settings: Settings, bank: Bank) -> None:
    live(bank)
    wanted = needles(bank)
    assert len(wanted) == 4
    assert hits(settings, wanted) == []
    rotate_data(bank, "default")
    bank.close()
    assert hits(settings, wanted) == []
    with closing(opened(settings, key=True)) as again:
        assert [status.readable for status in vault_status(again)] == [0]


def test_nothing_readable_is_left_once_it_is_switched_on(settings: Settings) -> None:
    plain = opened(settings, key=False)
    live(plain)
    wanted = needles(plain)
    plain.close()
    bank = opened(settings, key=True)
    assert rotate_data(bank, "default").finished
    assert {memory.question for memory in bank.memories("default")} == {
        f"How far is {MARK} number {n}?" for n in range(3)
    }
    bank.close()
    assert hits(settings, wanted) == []
    with pytest.raises(VaultLocked):
        opened(settings, key=False)


KILLS = int(os.environ.get("ELM_TEST_ROTATION_KILLS", "4"))
STEPS = ("rotate.tensor_durable", "rotate.before_commit", "rotate.committed", "rotate.deleted")


def test_a_rotation_that_is_killed_loses_nothing(settings: Settings, bank: Bank) -> None:
    """SIGKILL at the n-th coming of each step, again and again, on the same bank."""
    live(bank, 4)
    before = [(m.id, m.question) for m in bank.memories("default")], [t.hex() for t in tensors_of(bank)]
    for n in range(KILLS):
        step, nth = STEPS[n % len(STEPS)], 1 + n // len(STEPS) % 3
        code = killed_rotation.kill_at(settings.home, settings.resolved_database_url, KEY, step, nth)
        assert code in (-signal.SIGKILL, 0)
        fresh = opened(settings, key=True)
        assert (
            [(m.id, m.question) for m in fresh.memories("default")],
            [t.hex() for t in tensors_of(fresh)],
        ) == before
        fresh.close()
    assert rotate_data(bank, "default").finished
    assert [status.outdated for status in vault_status(bank)] == [0]
