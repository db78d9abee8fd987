"""A process is killed at every named step, and at random moments: nothing that was acknowledged is lost.

ELM_KILLS=1000 runs that many, on both databases, with the exact index and with embedded Chroma.
"""

import os
import random
from contextlib import closing
from pathlib import Path

import pytest
from kill_campaign import ANY_TIME, NAMED, Tally, campaign, judge, make_packs, new_world, prepare, spread, table
from kill_child import NAMESPACE

from elm_agent.memory.maintain import MAINTAIN_STEPS
from elm_agent.protocols import LEARN_STEPS
from elm_agent.records import MemoryState

KILLS = int(os.environ.get("ELM_KILLS", "0"))


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_packs(tmp_path_factory.mktemp("packs"), 24 if KILLS else 4)


def test_every_named_step_is_a_point() -> None:
    steps = {step for _, step in NAMED}
    told = {step for step in MAINTAIN_STEPS if not step.endswith(".planned")}  # told before anything is changed
    assert {*LEARN_STEPS, *told} <= steps


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize(
    ("postgres", "index"),
    [
        (False, "exact"),
        pytest.param(True, "exact", marks=pytest.mark.postgres),
        (False, "chroma"),
        pytest.param(True, "chroma", marks=pytest.mark.postgres),
    ],
    ids=["sqlite-exact", "postgres-exact", "sqlite-chroma", "postgres-chroma"],
)
def test_kills(request: pytest.FixtureRequest, tmp_path: Path, packs: list[Path], postgres: bool, index: str) -> None:
    if KILLS:
        points = spread(KILLS, random.Random(0))[postgres, index]
    elif index == "chroma":
        points = [("learn", "publish.committed"), ("purge", "purge.files")]
    else:
        points = ANY_TIME if postgres else NAMED
    server = request.getfixturevalue("postgres_server") if postgres else None
    tallies: dict[tuple[str, str], Tally] = {}
    campaign(tmp_path, points, server=server, index=index, packs=packs, dice=random.Random(1), tallies=tallies)
    print(table(tallies))
    assert all(tallies[point].kills for point in points if point in NAMED), "a step that is never reached"
    assert [f"{point}: {tally.said}" for point, tally in tallies.items() if not tally.clean] == []


def test_the_judge_sees_what_is_lost(tmp_path: Path, packs: list[Path]) -> None:
    with (
        new_world(tmp_path / "home", server=None, index="exact", encrypted=False, packs=packs) as world,
        closing(world.place.open()) as bank,
    ):
        one, two, three, *_ = prepare(world, bank)
        bank.transition(NAMESPACE, one, MemoryState.RETIRED, actor="nobody", reason=None)
        world.uses["use_never"] = two
        world.jobs["job_never"] = None
        bank.purge(NAMESPACE, [three], actor="user", reason=None)
        (tmp_path / "home" / "left").write_bytes(b"x" + world.secrets[three][0])
        tally = Tally()
        judge(world, bank, tally)
        assert (tally.lost, tally.jobs_lost, tally.traces) == (3, 1, 1), tally.said
        assert not tally.clean
