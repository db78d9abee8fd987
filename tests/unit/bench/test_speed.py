"""The speed benchmark: its bounds against numbers worked by hand, turns that do the same work, and its pages."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from elm_agent import models
from elm_agent.bench import speed, speed_answers, speed_arms, speed_goals, speed_report
from elm_agent.bench.speed_about import about, commit_of
from elm_agent.bench.speed_answers import Both
from elm_agent.bench.speed_arms import Arm, Gate, Judging, Training, arm_of, micro_batches
from elm_agent.bench.speed_bounds import Machine, Turn, decode_bound, figures, step_bound, training_bound
from elm_agent.bench.speed_child import Child
from elm_agent.bench.speed_machine import ModelChoice, Probe, best, forget_peak, peak_bytes
from elm_agent.bench.speed_plan import Findings, Plan, Regime, Series, check, check_room, estimate
from elm_agent.errors import InputError, ModelError, ModelUnavailable, TaskError, TrainingError
from elm_agent.models.engine import LocalModel
from elm_agent.protocols import GenerationRequest
from elm_agent.testing.tiny import write_tiny_model

# 100 parameters in 400 bytes: reading them takes 4 s, a row through them 2 s, so two rows balance.
MACHINE = Machine(parameters=100, weight_bytes=400, flops_per_s=100.0, bytes_per_s=100.0)
QUICK = replace(MACHINE, flops_per_s=400.0, bytes_per_s=400.0)  # a token takes 1 s to draw, 1 s to train


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
    assert (found.tokens_per_memory_step, found.seconds_per_token) == (60 / 2 / 4, 8 / 60)
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
            gate.stepped(memory, tokens=3, seconds_update=0.5)

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
    engine = speed_answers.EngineAnswers(model=choice, tokens=4, virtual_tokens=4)
    plain = speed_answers.PlainAnswers(model=choice, tokens=4, virtual_tokens=4)
    submitted: list[tuple[bool, int]] = []
    asked: list[tuple[int, ...]] = []
    generated: list[tuple[bool, int]] = []
    submit, generate = LocalModel.submit, type(plain._network).generate

    def noting(model: LocalModel, request: GenerationRequest) -> Any:
        submitted.append((request.prefix is not None, request.max_new_tokens))
        asked.append(request.prompt_ids)
        return submit(model, request)

    def noting_too(network: Any, **given: Any) -> Any:
        generated.append(("inputs_embeds" in given, given["max_new_tokens"]))
        return generate(network, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalModel, "submit", noting)
        patch.setattr(type(plain._network), "generate", noting_too)
        assert engine.callers(4) > 0
        assert plain.one_by_one() > 0
        assert sorted(submitted) == sorted(generated)
        assert engine.callers(1) > 0
        assert len(set(asked)) == 2 * speed_answers.ASKS, "none is asked twice"
        assert {len(ids) for ids in asked} == {len(asked[0])}
        turn = engine.both()
    assert min(turn.one, turn.met, turn.new) > 0
    assert len(set(asked)) == 2 * speed_answers.ASKS + 3
    assert submitted[2 * speed_answers.ASKS :] == [(memory, 4) for memory in (False, False, True, False, True)]
    assert set(submitted) == {(memory, tokens) for memory in (False, True) for tokens in (2, 4, 8)}
    asks = plain._next()[:3]
    assert [plain._drawn(ask, plain._encode(plain._task.messages(ask.question))) for ask in asks] == [4, 8, 2]


def test_the_ratio_of_both_answers_is_the_median_of_pairs(findings: Findings) -> None:
    turns = ((2.0, 3.0, 2.0), (1.0, 1.0, 3.0), (1.0, 2.0, 1.5))
    findings.both = [Both(one=one, met=met, new=new) for one, met, new in turns]
    assert findings.both_over_one() == Both(one=1.0, met=1.5, new=1.5)
    findings.both = []
    assert findings.both_over_one() is None


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
    found = Findings(plan=plan, about=about("elm-agent bench speed"), machine=QUICK)
    regime = Regime(tokens=4, ignore_end=True)
    slow, quick = Turn(seconds=8.0, seconds_update=4.0, tokens=8), Turn(seconds=4.0, seconds_update=2.0, tokens=16)
    found.series = [
        Series(arm=arm_of("trl"), regime=regime, turns=[slow], peak_bytes=2**20),
        Series(arm=arm_of("native-2"), regime=regime, turns=[quick], lengths=[[1]]),
        Series(arm=arm_of("native-4"), regime=regime, failure="out of memory"),
    ]
    found.answers = {"generate": [10.0, 12.0, 8.0], "4 callers at once": [40.0, 20.0, 30.0]}
    found.both = [Both(one=1.0, met=1.1, new=1.2)]
    found.about["load_after"] = (0.5, 0.5, 0.5)
    return found


def test_the_report_compares_memory_steps(findings: Findings, tmp_path: Path) -> None:
    paths = speed_report.write(tmp_path, findings)
    assert [path.name for path in paths] == ["speed.md", "speed.json", "speed.png", "speed-answers.png"]
    page = paths[0].read_text()
    assert "| trl | 4 | 8 (8) | 8 (8) | 8 | 1e+03 | 1.00 | - | 2 | 2 | - | 1 MiB |" in page
    assert "| native-2 | 4 | 4 (4) | 2 (2) | 8 | 250 | 4.00 | - | 8 | 8 | 50% | - |" in page
    assert "native-4, 4 failed: out of memory" in page
    assert "| 4 callers at once | 30.0 (40.0) | 3.00 |" in page
    assert "1.10 times as long as one" in page
    told = speed_report.document(findings)
    assert [series["times_trl"] for series in told["training"]] == [1.0, 4.0, None]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[2:])
    assert "## Answers of 12, 24 and 48 tokens, every second one with a memory" in page


def test_the_page_says_what_it_was_measured_with(findings: Findings) -> None:
    findings.about |= {"commit": "abc", "pack": True, "graphs": False, "openmp": {"GOMP_SPINCOUNT": "3000"}}
    told = "Commit abc; native arms: packed weights on, CUDA graphs off; all: GOMP_SPINCOUNT=3000."
    assert told in speed_report.markdown(findings)


def test_shares_are_of_the_limits_that_the_page_tells(findings: Findings) -> None:
    """Later lengths may raise the limits: a bound of 2 s is one of 1 s on a machine twice as quick."""
    assert [findings.figures(series) is None for series in findings.series] == [False, False, True]
    findings.machine = replace(QUICK, flops_per_s=800.0, bytes_per_s=800.0)
    assert "| 8 | 8 | 25% | - |" in speed_report.markdown(findings)


def test_arms_that_draw_different_texts_are_compared_by_token(findings: Findings) -> None:
    natural = Regime(tokens=4, ignore_end=False)
    slow, quick = Turn(seconds=8.0, seconds_update=4.0, tokens=8), Turn(seconds=2.0, seconds_update=1.0, tokens=4)
    findings.series = [
        Series(arm=arm_of("trl"), regime=natural, turns=[slow]),
        Series(arm=arm_of("native"), regime=natural, turns=[quick]),
    ]
    page = speed_report.markdown(findings)
    assert "| native | natural, at most 4 | 2 (2) | 2 (2) | 4 | 500 | 2.00 |" in page


def test_goals_are_told_as_met_missed_or_not_measured(findings: Findings) -> None:
    findings.plan = replace(findings.plan, tokens=(24,))
    regime = Regime(tokens=24, ignore_end=True)
    seconds = {"trl": 10.0, "trl-tuned": 5.0, "native": 2.0, "native-4": 4.0}
    findings.series = [
        Series(
            arm=arm_of(name),
            regime=regime,
            turns=[Turn(seconds=each, seconds_update=1.0, tokens=8)],
            peak_bytes=300 if name == "native-4" else 200,
        )
        for name, each in seconds.items()
    ]
    assert speed_goals.told(findings) == (
        "Goals. Met: 5 times TRL at 24 tokens (5.00), 1.3 times one memory by 4 at once at 24 tokens (2.00),"
        " peak memory of native at most TRL's at 24 tokens (1.00 of it)."
        " Not met: 3 times TRL tuned at 24 tokens (2.50),"
        " peak memory of native-4 at most TRL's at 24 tokens (1.50 of it)."
        " Not measured: 5 times TRL at 64 tokens, 3 times TRL tuned at 64 tokens,"
        " 1.3 times one memory by 4 at once at 64 tokens."
    )
    assert speed_goals.told(findings) in speed_report.markdown(findings)


def test_code_of_a_checkout_tells_its_commit(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def git(*words: str) -> str:
        own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    ours, theirs = tmp_path / "ours.py", tmp_path / "theirs.py"
    ours.write_text("1")
    theirs.write_text("1")
    git("init", "--quiet")
    git("add", "ours.py")
    git("commit", "--quiet", "-m", "one")
    commit = git("rev-parse", "--short=12", "HEAD").strip()
    assert (commit_of(ours), commit_of(theirs)) == (commit, None)
    ours.write_text("2")
    assert commit_of(ours) == f"{commit}-dirty"


def test_the_estimate_follows_the_bounds(findings: Findings) -> None:
    """Two arms of two turns: 6.5 x (4 tokens x 4 s + 4 x 8) and 2.3 x (4 x 8 + 4 x 16), and three starts."""
    findings.machine = MACHINE
    arms = [arm_of("trl"), arm_of("native-2")]
    assert estimate(findings, arms, False) == pytest.approx(3 * 12 + 2 * 6.5 * 48 + 2 * 2.3 * 96)
    tries, measured = 2 * (12 + 3 * 4.5 * 48), 12 + 2 * 4.5 * 48  # tries two rows and one, three turns each
    assert estimate(findings, [arm_of("trl-tuned")], False) == pytest.approx(12 + tries + measured)


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
    assert measured.lengths == [[3, 3]]
    assert findings.about["openmp"]["GOMP_SPINCOUNT"] == os.environ["GOMP_SPINCOUNT"]


class Steps:
    """In place of a process that trains: takes steps, of which every one has its own length."""

    made: ClassVar[list[Steps]] = []

    def __init__(self, _make: object, *, arm: Arm, turns: int, steps: int, **_: object) -> None:
        self.arm, self.turns, self.steps, self.taken, self.closed = arm, turns, steps, 0, False
        self.made.append(self)

    def ask(self, method: str) -> Any:
        if method == "peak":
            return 1, ""
        if method == "lengths":
            assert self.taken == self.turns
            return [[step] for step in range(self.turns * self.steps)]
        self.taken += 1
        if self.arm.micro_batch == 2 and self.taken == 2:
            raise ModelError("no room")
        return Turn(seconds=1.0 + (self.arm.micro_batch == 8), seconds_update=0.5, tokens=1)

    def close(self) -> None:
        self.closed = True


def test_all_arms_are_measured_at_the_same_steps(choice: ModelChoice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "made", [])
    monkeypatch.setattr(speed, "Child", Steps)
    plan = Plan(model=choice, repeats=3, steps=2)
    findings, regime = Findings(plan=plan, machine=MACHINE), Regime(tokens=4, ignore_end=False)
    arms = [arm_of("trl"), arm_of("trl-tuned"), arm_of("native")]
    speed._measure(plan, regime, arms, findings, lambda _name, _detail: None)
    assert [series.lengths for series in findings.series] == [[[2], [3], [4], [5], [6], [7]]] * 3
    assert [series.arm.micro_batch for series in findings.series] == [None, 4, None]
    assert findings.series[1].tried == {8: 2.0, 4: 1.0}
    assert all(child.closed for child in Steps.made)


@pytest.mark.parametrize(("name", "updating"), [("trl", 3.0), ("native", 5.0)])
def test_a_memory_trains_on_the_thread_that_opened_the_model(
    name: str, updating: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one would have a second pool of OpenMP threads, and TRL computes on the thread that calls it.

    Judging takes 2 s here, and counts as updating nowhere; of the 5 s that TRL tells it is a part.
    """
    threads = []

    def opened(*_given: object, **_named: object) -> Any:
        threads.append(threading.get_ident())
        return SimpleNamespace(network=SimpleNamespace(device=torch.device("cpu")))

    def trainer(_arm: Arm, _local: object, task: Judging) -> Any:
        def train(_question: str, *, observe: Any, **_: object) -> Any:
            threads.append(threading.get_ident())
            task._seconds += 2.0
            observe("train.step", {"step": 0, "tokens": 3, "seconds_update": 5.0})
            return SimpleNamespace(rollouts=[])

        return SimpleNamespace(train=train)

    monkeypatch.setattr(speed_arms, "_open", opened)
    monkeypatch.setattr(speed_arms, "_trainer", trainer)
    choice, recipe = ModelChoice(name="any"), {"rollouts": 2}
    training = Training(
        model=choice, arm=arm_of(name), question="?", recipe=recipe, turns=1, steps=1, ignore_end=True
    )
    assert training.turn().seconds_update == updating
    assert len(threads) == 2
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


def test_a_model_that_cannot_be_opened_is_told(choice: ModelChoice) -> None:
    nowhere = replace(choice, name="./none")
    with pytest.raises(ModelUnavailable):
        Training(model=nowhere, arm=arm_of("native-2"), question="?", recipe={}, turns=1, steps=1, ignore_end=True)


def test_judging_is_timed_also_where_it_fails() -> None:
    def fail(*_answers: str) -> None:
        time.sleep(0.02)
        raise TaskError("no")

    judging = Judging(SimpleNamespace(name="slow", extract=fail, equivalent=fail))
    for call in (lambda: judging.extract("a"), lambda: judging.equivalent("a", "b")):
        with pytest.raises(TaskError):
            call()
        assert judging.taken() >= 0.02
    assert judging.taken() == 0.0


def test_the_peak_is_that_of_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU may measure a model on its processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(device) or 7)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    assert "model was loaded" in forget_peak(torch.device("cpu")) or Path("/proc/self/clear_refs").exists() is False
    assert peak_bytes(torch.device("cpu")) > 10_000_000
    assert asked == []
    forget_peak(torch.device("cuda", 1))
    assert (peak_bytes(torch.device("cuda", 1)), asked) == (7, [torch.device("cuda", 1)] * 2)


def test_the_model_is_opened_as_settings_say(choice: ModelChoice) -> None:
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", lambda _name, **options: given.update(options))
        replace(choice, pack=False, graphs=True).native(ignore_end=True)
    assert (given["pack"], given["graphs"]) == (False, True)
