"""Ablations by a method's name: what the words stand for, and that each of them changes what the agent does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from evidence_scripts import answers, carry_out, plan_of

from elm_agent.bench.evidence.contract import GenerationLine, Phase, Protocols
from elm_agent.bench.evidence.methods.variants import memory_settings, recipe_of, settings_of
from elm_agent.bench.evidence.plan import check
from elm_agent.errors import InputError, SettingsError
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.records import KeyKind
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.testing.tiny import write_tiny_model

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
    file = tmp_path_factory.mktemp("sets") / "mine.jsonl"
    file.write_text("".join(json.dumps({"question": one, "answer": "yes"}) + "\n" for one in QUESTIONS))
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
    alone = [line for line in answers(found[cheap]) if line.route == "memory_alone"]
    assert all([one.role for one in line.candidates] == ["memory"] for line in alone)
    assert tiers[cheap].count("cheap") == len(alone)


def test_abstention_is_fitted_on_the_way(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    method = "elm:calibrated+abstention.min_uses=2"
    found = run(tiny, tmp_path / "run", words, "elm", method)
    [home] = [path.parent for path in (tmp_path / "run/work").rglob("elm.sqlite") if "calibrated" in str(path)]
    bank = open_bank(Settings(home=home, index="exact"))
    try:
        fitted = bank.calibrations.get("evidence", KeyKind.INPUT)
        told = [use for use in bank.uses("evidence") if use.route in ("memory", "zero_shot")]
    finally:
        bank.close()
    assert (fitted is not None) == (len(told) - (answers(found[method])[-1].route in ("memory", "zero_shot")) >= 2)
    explained = [line.detail["explanation"]["retrieval"] for line in answers(found[method])]
    assert all("abstention" in one for one in explained if one)


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
    assert made("elm:ucb").utility.ranking == "ucb"
    calibrated = made("elm:calibrated+abstention.explore=0").abstention
    assert (calibrated.mode, calibrated.min_uses, calibrated.explore) == ("calibrated", 10, 0)
    assert made("elm:harm").utility.quarantine_harm == 0.9
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
    with pytest.raises(SettingsError, match="sft_greedy"):
        check(plan_of("elm:admission+sft_greedy+early"), Settings())
