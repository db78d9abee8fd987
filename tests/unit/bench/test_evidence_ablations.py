"""Ablations by a method's name: what the words stand for, and that each of them changes what the agent does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from evidence_scripts import answers, carry_out, plan_of

from elm_agent.bench.evidence.contract import CandidateLine, GenerationLine, Phase, Protocols
from elm_agent.bench.evidence.methods.variants import condensed_every, memory_settings, recipe_of, settings_of
from elm_agent.bench.evidence.plan import check
from elm_agent.errors import InputError, SettingsError, VerificationError
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.records import KeyKind
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.testing.tiny import write_tiny_model
from elm_agent.verification import MeanLogprob

TWO_ANSWERS = ("agreed", "memory", "zero_shot")
QUESTIONS = ("what is one", "name a colour", "say two words", "how are you")
SETTINGS = Settings(
    task="text",  # so that whatever a random model says is an answer
    max_new_tokens=4,
    learning={"steps": 2, "rollouts": 4, "max_new_tokens": 3, "virtual_tokens": 6, "temperature": 1.0},
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    loaded = load_pretrained(str(folder), device="cpu", dtype="float64", offline=True)
    model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)
    yield model
    model.close()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("sets") / "mine.jsonl", QUESTIONS)


def write(file: Path, questions: Sequence[str]) -> str:
    file.write_text("".join(json.dumps({"question": one, "answer": "yes"}) + "\n" for one in questions))
    return str(file)


def run(tiny: LocalModel, out: Path, words: str, *methods: str, **more: Any) -> dict[str, list[GenerationLine]]:
    plan = plan_of(*methods, **{"limit": None, "tasks": (words,)} | more)
    lines = carry_out(plan, out, model=tiny, settings=SETTINGS)
    assert not [line.failure for line in lines if line.failure]
    return {method: [line for line in lines if line.method == method] for method in methods}


def learned(lines: Sequence[GenerationLine]) -> list[GenerationLine]:
    return [line for line in lines if line.phase is Phase.LEARN]


def test_admission_and_its_probe_decide_which_memories_serve(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    strict = "elm:admission+admission.max_norm_ratio=1.0"  # any training moves it
    found = run(tiny, tmp_path / "run", words, "elm", strict, "elm:probe")
    assert {line.state for line in learned(found["elm"])} == {"active"}
    assert {line.state for line in learned(found[strict])} == {"quarantined"}
    assert all("max_norm_ratio 1" in str(line.reason) for line in learned(found[strict]))
    assert {line.route for line in answers(found[strict])} == {"no_memory"}
    assert {line.route for line in answers(found["elm"])} != {"no_memory"}
    plain, probed = learned(found["elm"]), learned(found["elm:probe"])
    assert [line.curve for line in plain] == [line.curve for line in probed], "they share what was trained"
    assert all(b.tokens > a.tokens and b.prompt_tokens > a.prompt_tokens for a, b in zip(plain, probed, strict=True))
    tried = [[one for one in line.candidates if one.role == "probe"] for line in probed]
    assert all(len(one) >= 2 for one in tried), "each with its memory and without it"
    assert [sum(one.tokens for one in texts) for texts in tried] == [
        b.tokens - a.tokens for a, b in zip(plain, probed, strict=True)
    ]
    assert len(list((tmp_path / "run/work/trained").glob("*.safetensors"))) == len(QUESTIONS)


def test_tiers_decide_what_an_answer_costs(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    cheap = "elm:cheap+budget.cheap_uses=1+budget.cheap_utility=-1+budget.compare=0"
    found = run(tiny, tmp_path / "run", words, "elm", "elm:thorough", cheap)
    tiers = {
        name: [line.detail["explanation"]["budget"]["tier"] for line in answers(lines)]
        for name, lines in found.items()
    }
    assert set(tiers["elm"]) == {"normal"}
    assert set(tiers["elm:thorough"]) == {"thorough"}
    assert sum(line.tokens for line in answers(found["elm:thorough"])) > sum(
        line.tokens for line in answers(found["elm"])
    )
    thorough = answers(found["elm:thorough"])
    assert {sum(one.role == "sample" for one in line.candidates) for line in thorough} == {4}
    assert all(line.tokens == sum(one.tokens for one in line.candidates) for line in thorough)
    alone = [line for line in answers(found[cheap]) if line.route == "memory_alone"]
    assert alone
    assert all([one.role for one in line.candidates] == ["memory"] for line in alone)
    assert tiers[cheap].count("cheap") == len(alone)


def test_abstention_is_fitted_on_the_way(tiny: LocalModel, tmp_path: Path) -> None:
    words = write(tmp_path / "mine.jsonl", [*QUESTIONS, "count to ten", "why is it so", "tell me more", "good night"])
    method = "elm:calibrated+abstention.min_uses=2+abstention.min_chance=0.99+abstention.explore=0"
    found = run(tiny, tmp_path / "run", words, "elm", method)
    [home] = [path.parent for path in (tmp_path / "run/work").rglob("elm.sqlite") if "calibrated" in str(path)]
    bank = open_bank(Settings(home=home, index="exact"))
    try:
        fitted = bank.calibrations.get("evidence", KeyKind.INPUT)
        told = [use for use in bank.uses("evidence") if use.route in ("memory", "zero_shot")]
    finally:
        bank.close()
    assert fitted is not None
    assert fitted.uses == len(told) == 2, "what abstains tells nothing more"
    abstained = [line for line in answers(found[method]) if "(calibrated on 2 uses)" in str(line.reason)]
    assert abstained
    assert {line.route for line in abstained} == {"no_memory"}
    assert all(line.detail["explanation"]["retrieval"]["abstention"]["uses"] == 2 for line in abstained)
    assert not [line for line in answers(found["elm"]) if line.route == "no_memory" and line.position > 0]


def opinions_of(line: GenerationLine) -> list[CandidateLine]:
    return [one for one in line.candidates if one.role == "opinion"]


def test_whoever_is_heard_is_stored_counted_and_noted(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    found = run(tiny, tmp_path / "run", words, "elm", "elm:opinions", "oracle:opinions")
    heard = [line for line in answers(found["elm:opinions"]) if opinions_of(line)]
    assert heard, "random answers differ"
    for line in heard:
        told = line.detail["explanation"]
        assert [one.memory_id for one in opinions_of(line)] == [one["memory_id"] for one in told["heard"]]
        assert line.memory_id not in {one.memory_id for one in opinions_of(line)}
        assert told["budget"]["opinions"]["voters"] == len(line.candidates) == 2 + len(opinions_of(line))
        assert all(one.text and one.correct is False for one in opinions_of(line)), "nobody says yes"
        assert line.tokens == sum(one.tokens for one in line.candidates)
        alone = next(one for one in answers(found["elm"]) if one.item_id == line.item_id)
        row = alone.prompt_tokens - SETTINGS.learning.virtual_tokens  # of two
        assert line.prompt_tokens == alone.prompt_tokens + len(opinions_of(line)) * (
            row // 2 + SETTINGS.learning.virtual_tokens
        ), "each of them reads the question and its own memory"
    [home] = [path.parent for path in (tmp_path / "run").glob("work/*/elm*opinions*/0/bank/elm.sqlite")]
    with closing(open_bank(Settings(home=home, index="exact"))) as bank:
        noted = {(use.question, use.memory_id): use.memory_answer for use in bank.uses("evidence")}
    served = [line for line in answers(found["elm:opinions"]) if line.memory_id]
    assert len(noted) == len(served) + sum(len(opinions_of(line)) for line in heard)
    said = {(one.memory_id, one.answer) for line in heard for one in opinions_of(line)}
    assert said <= {(memory, answer) for (_, memory), answer in noted.items()}
    assert not {line.route for line in answers(found["oracle:opinions"])} - {"no_memory", *TWO_ANSWERS}


def test_a_verifier_that_fails_costs_no_answer_and_stands_in_the_line(
    tiny: LocalModel, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: MeanLogprob, question: str, candidates: Any) -> Any:
        del self, question, candidates
        raise VerificationError("it is out of order")

    monkeypatch.setattr(MeanLogprob, "score", broken)
    lines = answers(run(tiny, tmp_path / "run", words, "elm")["elm"])
    failed = [line for line in lines if line.route == "failed_memory"]
    assert failed, "random answers differ"
    for line in failed:
        assert line.reason == "verifier 'mean_logprob' failed: VerificationError: it is out of order"
        assert [one.role for one in line.candidates] == ["zero_shot", "memory"]
        assert (line.text, line.correct, line.failure) == (line.candidates[0].text, False, None)


def test_the_samples_of_a_majority_are_stored(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    method = "elm:majority+verification.samples=3"
    lines = answers(run(tiny, tmp_path / "run", words, method)[method])
    drawn = {line.route: sum(one.role == "sample" for one in line.candidates) for line in lines}
    assert drawn.pop("no_memory") == 0
    assert {drawn[route] for route in drawn if route != "agreed"} == {3}, "where they differed"


def test_what_split_is_learned_again_with_more_rollouts(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    method = "elm:replay+replay_vote_share=1.0"
    found = run(tiny, tmp_path / "run", words, "elm", method, limit=2)
    assert {len(line.kept["memories"]) for line in learned(found["elm"])} == {1}
    assert 2 in {len(line.kept["memories"]) for line in learned(found[method])}, "random votes are split"


def test_a_bank_is_condensed_on_the_way(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    near = "maintenance.merge_similarity=0.001+maintenance.distil_similarity=0.001+maintenance.may_lose=9"
    small = f"elm:condensed=2+{near}+maintenance.distil_steps=2"
    found = run(tiny, tmp_path / "run", words, "elm", small)
    plain, condensed = learned(found["elm"]), learned(found[small])
    told = [line.kept.get("condensed") for line in condensed]
    assert [one is None for one in told] == [True, False, True, False]
    assert sum(one["retired"] for one in told if one) > 0
    assert told[-1]["active"] < 4
    assert [line.curve for line in plain] == [line.curve for line in condensed], "they share what was trained"
    costs = [b.tokens - a.tokens for a, b in zip(plain, condensed, strict=True)]
    assert [cost > 0 for cost in costs] == [False, True, False, True]
    assert len(answers(found[small])) == 4


def test_half_of_the_compute_is_half_of_the_rollouts(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    found = run(tiny, tmp_path / "run", words, "elm", "elm:half", limit=2)
    drawn = {
        name: [(len(line.candidates), len(line.curve)) for line in learned(lines)] for name, lines in found.items()
    }
    assert set(drawn["elm"]) == {(8, 2)}, "four rollouts in each of two steps"
    assert set(drawn["elm:half"]) == {(4, 2)}
    halved = sum(line.tokens for line in learned(found["elm:half"]))
    assert halved < sum(line.tokens for line in learned(found["elm"]))


def test_offline_a_memory_is_judged_by_the_same_rules(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    strict = "elm:admission+admission.max_norm_ratio=1.0"
    found = run(tiny, tmp_path / "run", words, "elm", strict, protocol=Protocols.OFFLINE, limit=2)
    assert {line.state for line in learned(found["elm"])} == {"active"}
    assert {line.state for line in learned(found[strict])} == {"quarantined"}
    assert len(answers(found[strict])) == 4, "the matrix holds every memory, admitted or not"


def test_words_stand_for_the_settings_of_an_ablation() -> None:
    def made(name: str, settings: Settings | None = None) -> Settings:
        return settings_of(name, settings or Settings(), seed=0)

    assert made("elm:probe").admission.probe
    bounds = made("elm:admission").admission
    assert (bounds.min_vote_rise, bounds.max_length_ratio, bounds.max_norm_ratio, bounds.probe) == (0, 2, 2, False)
    both = made("elm_kv:admission.max_norm_ratio=3+admission+probe").admission
    assert (both.max_norm_ratio, both.min_length_ratio, both.probe) == (3, 0.1, True), "what is named counts more"
    assert made("elm:cheap").budget.tier == "cheap"
    assert made("elm:auto+budget.row_price=0").budget.row_price == 0
    assert made("elm:replay").learning.replay_rollouts == 2 * Settings().learning.rollouts
    assert made("elm:ucb").utility.ranking == "ucb"
    calibrated = made("elm:calibrated+abstention.explore=0").abstention
    assert (calibrated.mode, calibrated.min_uses, calibrated.explore) == ("calibrated", 10, 0)
    assert made("elm:harm").utility.quarantine_harm == 0.9
    assert [condensed_every(f"elm:{words}") for words in ("half", "condensed+half", "condensed=4")] == [None, 20, 4]
    assert made("elm:condensed=4+half") == made("elm:half")
    assert made("elm:half").learning.rollouts == Settings().learning.rollouts // 2
    assert made("elm:half+rollouts=6").learning.rollouts == 3
    early = made("elm:half+early").learning
    assert (early.stop_when_settled, early.skip_equal_rewards, early.rollouts) == (2, True, 4)
    assert recipe_of("elm:half+full", Settings(), seed=0).rollouts == 4
    assert memory_settings("elm:admission", Settings(), seed=0).admission.max_norm_ratio == 2


def test_words_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="half of 3 rollouts is no vote"):
        settings_of("elm:half+rollouts=3", Settings(), seed=0)
    with pytest.raises(InputError, match=r"unknown word 'quick': expected NAME=VALUE or one of .* probe.* half"):
        settings_of("elm:quick", Settings(), seed=0)
    for word, named in {"probe": "a probe", "cheap": "budget", "calibrated": "abstention", "ucb": "utility"}.items():
        plan = plan_of(f"elm:{word}", protocol=Protocols.OFFLINE)
        with pytest.raises(InputError, match=f"'elm:{word}': {named} needs a bank"):
            check(plan, Settings())
        check(plan_of(f"elm:{word}"), Settings())
    with pytest.raises(InputError, match="'elm:condensed': condensing needs a bank"):
        check(plan_of("elm:condensed", protocol=Protocols.OFFLINE), Settings())
    with pytest.raises(InputError, match="'condensed=0' is no number of questions"):
        check(plan_of("elm:condensed=0"), Settings())
    with pytest.raises(SettingsError, match="sft_greedy"):
        check(plan_of("elm:admission+sft_greedy+early"), Settings())
