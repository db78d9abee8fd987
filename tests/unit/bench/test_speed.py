"""The speed benchmark: its bounds against numbers worked by hand, turns that do the same work, and its pages."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from elm_agent.bench import speed, speed_answers, speed_report
from elm_agent.bench.speed_arms import Arm, Gate, Training, arm_of, micro_batches
from elm_agent.bench.speed_bounds import Machine, Turn, decode_bound, figures, step_bound, training_bound
from elm_agent.bench.speed_child import Child
from elm_agent.bench.speed_machine import ModelChoice, Probe, best
from elm_agent.bench.speed_plan import Findings, Plan, Regime, Series, check, check_room, estimate
from elm_agent.errors import InputError, ModelError, TrainingError
from elm_agent.testing.tiny import write_tiny_model

# 100 parameters in 400 bytes: reading them takes 4 s, a row through them 2 s, so two rows balance.
MACHINE = Machine(parameters=100, weight_bytes=400, flops_per_s=100.0, bytes_per_s=100.0)


def test_drawing_is_bound_by_reading_weights_or_by_arithmetic() -> None:
    assert decode_bound([3], MACHINE) == 3 * 4  # one row: bandwidth
    assert decode_bound([3, 3], MACHINE) == 3 * 4  # two rows: both
    assert decode_bound([3] * 5, MACHINE) == 3 * 5 * 2  # five rows: arithmetic
    assert decode_bound([1, 1, 1, 3], MACHINE) == 4 * 2 + 4 + 4  # four rows once, then one row twice
    assert decode_bound([], MACHINE) == 0


def test_an_update_is_forward_and_backward_and_the_reference_forward_only() -> None:
    assert training_bound(10, MACHINE, kl=False) == 4 * 100 * 10 / 100
    assert training_bound(10, MACHINE, kl=True) == 6 * 100 * 10 / 100
    assert step_bound([2] * 5, MACHINE, kl=True) == 2 * 5 * 2 + 60


def test_figures_are_medians_minima_and_shares() -> None:
    turns = [Turn(seconds=seconds, seconds_update=seconds / 4, tokens=60) for seconds in (8.0, 4.0, 16.0)]
    found = figures(turns, memories=4, steps=2, bounds=[1.0, 1.0, 3.0])
    assert (found.seconds_per_step, found.seconds_per_step_min) == (4.0, 2.0)
    assert (found.seconds_per_memory_step, found.seconds_per_memory_step_min) == (1.0, 0.5)
    assert (found.decode_tokens_per_s, found.train_tokens_per_s) == (10.0, 30.0)
    assert (found.bound_seconds, found.share_of_bound) == (1.0, 0.25)
    assert figures(turns, memories=1, steps=1).share_of_bound is None


def test_names_of_arms() -> None:
    assert arm_of("trl") == Arm(name="trl", trainer="trl")
    assert arm_of("native-16") == Arm(name="native-16", memories=16)
    for wrong in ("fast", "native-0", "native-1", "native-x", "native-", "native-04", ""):
        with pytest.raises(InputError, match=r"arm .* expected trl, trl-tuned, native"):
            arm_of(wrong)
    assert [micro_batches(rollouts) for rollouts in (8, 6, 3, 1)] == [[8, 4, 2], [6, 3], [3], [1]]


def test_a_turn_lasts_until_the_last_memory_is_through() -> None:
    gate, taken = Gate(2), [0, 0]

    def train(memory: int) -> None:
        for _ in range(4):
            gate.hold(memory)
            time.sleep(0.05 * memory)
            taken[memory] += 1
            gate.stepped(memory, {"tokens": 3, "seconds_update": 0.5})

    threads = [threading.Thread(target=train, args=(memory,)) for memory in range(2)]
    for thread in threads:
        thread.start()
    turn = gate.turn(3)
    assert (taken, turn.tokens, turn.seconds_update) == ([3, 3], 18, 3.0)
    assert turn.seconds >= 0.15
    assert gate.turn(1).tokens == 6  # counts anew
    for thread in threads:
        thread.join()


def test_a_training_that_fails_ends_its_turn() -> None:
    gate = Gate(2)
    threading.Timer(0.05, lambda: gate.fail(TrainingError("no"))).start()
    with pytest.raises(TrainingError, match="no"):
        gate.turn(1)


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> ModelChoice:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return ModelChoice(name=str(folder), device="cpu", dtype="float32", offline=True)


@pytest.mark.parametrize("name", ["native", "native-3", "trl", "trl-tuned"])
def test_every_arm_does_the_same_work_when_the_end_token_is_ignored(name: str, choice: ModelChoice) -> None:
    if name.startswith("trl"):
        pytest.importorskip("trl", reason="TRL is not installed: pip install 'elm-agent[trl]'")
    arm, recipe = arm_of(name), {"rollouts": 4, "virtual_tokens": 4, "beta": 0.04, "max_new_tokens": 30}
    training = Training(model=choice, arm=arm, question="2 + 3 = ?", recipe=recipe, turns=2, steps=1, ignore_end=True)
    turns = [training.turn() for _ in range(2)]
    assert [turn.tokens for turn in turns] == [30 * 4 * arm.memories] * 2
    assert all(0 < turn.seconds_update < turn.seconds for turn in turns)
    assert training.lengths() == [[30] * 4 * arm.memories] * 2
    assert training.peak()[0] > 10_000_000


def test_left_alone_rollouts_end_by_themselves(choice: ModelChoice) -> None:
    recipe = {"rollouts": 8, "virtual_tokens": 4, "max_new_tokens": 200, "temperature": 3.0}
    training = Training(
        model=choice, arm=arm_of("native"), question="2 + 3 = ?", recipe=recipe, turns=1, steps=1, ignore_end=False
    )
    assert training.turn().tokens == sum(training.lengths()[0]) < 8 * 200


def test_the_limits_count_the_weights_that_every_token_meets(choice: ModelChoice) -> None:
    machine = Probe(model=choice, question="2 + 3 = ?").measure(16)
    attention, mlp, head = 2 * 32 * 32 + 2 * 16 * 32, 3 * 32 * 64, 259 * 32
    assert machine.parameters == 2 * (attention + mlp) + head
    assert machine.weight_bytes == 4 * machine.parameters
    assert machine.flops_per_s > 0 < machine.bytes_per_s
    assert best(lambda: time.sleep(0.01)) >= 0.01


def test_answers_by_callers_and_by_transformers(choice: ModelChoice) -> None:
    engine = speed_answers.EngineAnswers(model=choice, tokens=3, virtual_tokens=4)
    assert engine.callers(4) > 0 < engine.seconds(True)
    assert speed_answers.PlainAnswers(model=choice, tokens=3).one_by_one() > 0
    assert speed_answers.ratio([(2.0, 3.0), (1.0, 1.0), (1.0, 2.0)]) == 1.5
    assert speed_answers.ratio([(2.0, 3.0), (1.0, 1.0)]) == 1.25


def test_plans_that_cannot_be_are_refused(choice: ModelChoice) -> None:
    def plan(**more: Any) -> Plan:
        return Plan(model=choice, **more)

    for wrong in (plan(tokens=(0,)), plan(natural=-1), plan(arms=()), plan(arms=("native",), tokens=(), natural=0)):
        with pytest.raises(InputError):
            check(wrong)
    assert check(plan(arms=("native", "answers", "native"))) == ([arm_of("native")], True)
    with pytest.raises(InputError, match="rollouts of 256 tokens take 286 positions"):
        check_room(plan(), {"prompt_tokens": 10, "context_length": 200})


@pytest.fixture
def findings(choice: ModelChoice) -> Findings:
    plan = Plan(model=choice, arms=("trl", "native-2"), tokens=(4,), natural=0, repeats=1, beta=0.0, rollouts=2)
    found = Findings(plan=plan, about=speed_report.about("elm-agent bench speed"), machine=MACHINE)
    regime = Regime(tokens=4, ignore_end=True)
    slow, quick = Turn(seconds=8.0, seconds_update=4.0, tokens=8), Turn(seconds=4.0, seconds_update=2.0, tokens=16)
    found.series = [
        Series(arm=arm_of("trl"), regime=regime, turns=[slow], peak_bytes=2**20),
        Series(arm=arm_of("native-2"), regime=regime, turns=[quick], bounds=[2.0]),
        Series(arm=arm_of("native-4"), regime=regime, failure="out of memory"),
    ]
    found.answers = {"generate": [10.0, 12.0, 8.0], "4 callers at once": [40.0, 20.0, 30.0]}
    found.both = [(1.0, 1.1)]
    found.about["load_after"] = (0.5, 0.5, 0.5)
    return found


def test_the_report_compares_memory_steps(findings: Findings, tmp_path: Path) -> None:
    paths = speed_report.write(tmp_path, findings)
    assert [path.name for path in paths] == ["speed.md", "speed.json", "speed.png"]
    page = paths[0].read_text()
    assert "| trl | 4 | 8 (8) | 8 (8) | 1.00 | - | 2 | 2 | - | 1 MiB |" in page
    assert "| native-2 | 4 | 4 (4) | 2 (2) | 4.00 | - | 8 | 8 | 50% | - |" in page
    assert "native-4, 4 failed: out of memory" in page
    assert "| 4 callers at once | 30.0 (40.0) | 3.00 |" in page
    assert "1.10 times as long as one" in page
    told = speed_report.document(findings)
    assert [series["times_trl"] for series in told["training"]] == [1.0, 4.0, None]
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_the_estimate_follows_the_bounds(findings: Findings) -> None:
    """Two arms of two turns: 6.5 x (4 tokens x 4 s + 4 x 8) and 2.3 x (4 x 8 + 4 x 16), and three starts."""
    arms = [arm_of("trl"), arm_of("native-2")]
    assert estimate(findings, arms, False) == pytest.approx(3 * 12 + 2 * 6.5 * 48 + 2 * 2.3 * 96)


def test_a_failing_arm_leaves_the_others_alone(choice: ModelChoice) -> None:
    """In processes, as it runs: an arm that cannot start is told, the other one is measured."""
    plan = Plan(model=choice, arms=("native-2", "native"), tokens=(3,), natural=0, repeats=1, rollouts=2)
    findings, told = Findings(plan=plan), []
    real = speed.Child

    def child(make: Any, **arguments: Any) -> Child:
        if make is Training and arguments["arm"].memories == 2:
            raise ModelError("no room")
        return real(make, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "Child", child)
        speed.run_speed(plan, findings, lambda name, detail: told.append((name, detail.get("arm"))))
    assert told == [("plan", None), ("failure", "native-2"), ("turn", "native")]
    failed, measured = findings.series
    assert (failed.failure, failed.turns) == ("no room", [])
    assert [turn.tokens for turn in measured.turns] == [2 * 3]
    assert len(measured.bounds) == 1
