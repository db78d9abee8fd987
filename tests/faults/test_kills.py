"""A process is killed at every named step, and at random moments: nothing that was acknowledged is lost.

ELM_KILLS=1040 runs that many: both databases, the exact index and embedded Chroma, moves between them.
"""

import os
import random
from contextlib import closing
from pathlib import Path

import pytest
from kill_campaign import (
    ANY_TIME,
    BACK_ENDS,
    MOVES,
    NAMED,
    RANDOM,
    Tallies,
    campaign,
    make_packs,
    new_world,
    spread,
    table,
)
from kill_judge import Tally, judge

from elm_agent.memory.maintain import MAINTAIN_STEPS
from elm_agent.protocols import LEARN_STEPS
from elm_agent.records import MemoryState
from elm_agent.storage.moving.move import MOVE_STEPS
from elm_agent.storage.uses import USE_STEPS

KILLS = int(os.environ.get("ELM_KILLS", "0"))
CHROMA = [("learn", "publish.committed"), ("purge", "purge.files"), ("use", RANDOM)]
MOVED = [("move", RANDOM), *MOVES, ("move", RANDOM), ("move", RANDOM)]
FEW = {
    "sqlite-exact": NAMED,
    "postgres-exact": ANY_TIME,
    "sqlite-chroma": CHROMA,
    "postgres-chroma": CHROMA,
    "move-exact": MOVED,
    "move-chroma": MOVED[:2],
}


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_packs(tmp_path_factory.mktemp("packs"), 24 if KILLS else 4)


def test_every_named_step_is_a_point() -> None:
    steps = {step for _, step in [*NAMED, *MOVES]}
    told = {step for step in MAINTAIN_STEPS if not step.endswith(".planned")}  # told before anything is changed
    assert {*LEARN_STEPS, *told, *USE_STEPS, *MOVE_STEPS} <= steps


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize(
    "name", [name if name.startswith("sqlite") else pytest.param(name, marks=pytest.mark.postgres) for name in FEW]
)
def test_kills(request: pytest.FixtureRequest, tmp_path: Path, packs: list[Path], name: str) -> None:
    points = spread(KILLS, name, random.Random(0)) if KILLS else FEW[name]
    server = None if name.startswith("sqlite") else request.getfixturevalue("postgres_server")
    tallies: Tallies = {}
    where = BACK_ENDS[name][0]
    campaign(tmp_path, points, where, server=server, packs=packs, dice=random.Random(1), tallies=tallies)
    print(table(tallies, steps=True))
    reached = {(work, step) for (_, work, step), tally in tallies.items() if tally.kills}
    assert {point for point in points if point[1] != RANDOM} <= reached, "a step that is never reached"
    assert [f"{point}: {tally.said}" for point, tally in tallies.items() if not tally.clean] == []


def test_the_judge_sees_what_is_lost(tmp_path: Path, packs: list[Path]) -> None:
    where = BACK_ENDS["sqlite-exact"][0]
    with (
        new_world(tmp_path / "home", where, server=None, encrypted=False, packs=packs) as world,
        closing(world.place.open()) as bank,
    ):
        one, two, three, *_ = world.active
        bank.transition("default", one, MemoryState.RETIRED, actor="nobody", reason=None)
        world.uses["use_never"] = two
        world.jobs["job_never"] = None
        bank.purge("default", [three], actor="user", reason=None)
        (world.place.home / "left").write_bytes(b"x" + world.secrets[three][0])
        tally = Tally()
        judge(world, bank, tally)
        assert (tally.lost, tally.jobs_lost, tally.traces) == (3, 1, 1), tally.said
        assert not tally.clean
