"""Random histories of a bank on every back end, beside plain dictionaries.

ELM_STEPS=10000 runs that many steps on each; a few hundred otherwise.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from model_bank import NAMES, ModelBank, Steps
from postgres import fresh_database

from elm_agent.storage.bank import Bank
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.vault.opening import open_vault

STEPS = int(os.environ.get("ELM_STEPS", "150"))
LENGTH = 50  # steps of one history
MEMORY = Path("/dev/shm")

Opener = Callable[[], Bank]


def exact(url: str, home: Path) -> Bank:
    exact = ExactIndex(home / "index", keep_above=3)
    return Bank(Database.open(url), LocalTensors(home / "tensors"), index="exact", exact=exact, shared=NAMES)


def chroma(url: str, home: Path) -> Bank:
    durable = ChromaIndex(home / "chroma")
    return Bank(Database.open(url), LocalTensors(home / "tensors"), index="durable", durable=durable, shared=NAMES)


def sealed(url: str, home: Path) -> Bank:
    database = Database.open(url)
    vault = open_vault(database, function=lambda: b"k" * 32)
    return Bank(database, LocalTensors(home / "tensors"), index="exact", vault=vault, shared=NAMES)


BACK_ENDS = {"exact": exact, "chroma": chroma, "sealed": sealed}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def new_place(request: pytest.FixtureRequest) -> Iterator[Callable[[], tuple[str, Path, Callable[[], None]]]]:
    """A new empty place for each history: database URL, folder, and what takes both away again."""
    server = request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    with ExitStack() as all_of_them:

        def make() -> tuple[str, Path, Callable[[], None]]:
            one = all_of_them.enter_context(ExitStack())
            home = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
            one.callback(shutil.rmtree, home)
            url = one.enter_context(fresh_database(server)) if server else f"sqlite:///{home / 'bank.sqlite'}"
            return url, home, one.close

        yield make


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("index", BACK_ENDS)
def test_a_bank_is_its_model(new_place: Callable[[], tuple[str, Path, Callable[[], None]]], index: str) -> None:
    counted, wanted = Steps(), STEPS if index != "chroma" or STEPS > 1000 else 50

    def machine() -> ModelBank:
        url, home, close = new_place()
        return ModelBank(lambda: BACK_ENDS[index](url, home), counted, close)

    phases = (Phase.generate,) if STEPS > 1000 else (Phase.generate, Phase.shrink)
    while counted.done < wanted:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=max(1, (wanted - counted.done) // LENGTH),
                stateful_step_count=LENGTH,
                deadline=None,
                database=None,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(f"{index}: {counted.done} steps")
