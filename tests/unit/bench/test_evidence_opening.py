"""The opening of a report: what came out, in figures that are those of the tables, and what the names mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence_runs import answer, whole_matrix, whole_stream, write_run

from elm_agent.bench.evidence.contract import GenerationLine
from elm_agent.bench.evidence.folder import read_run
from elm_agent.bench.evidence.methods import METHODS
from elm_agent.bench.evidence.methods.variants import BUNDLES, HALF, OFFLINE_WORDS, WORDS
from elm_agent.bench.evidence.report import build
from elm_agent.bench.evidence.report_names import in_words, settings_told
from elm_agent.bench.evidence.report_pages import markdown, parts_of


def opened(folder: Path, lines: list[GenerationLine], **head: str) -> tuple[str, ...]:
    first = next(parts_of(build(read_run(write_run(folder, lines, **head)))))
    assert first.title == "In short"
    return first.sections[0].notes


def stream(method: str, right: int, *, seeds: int = 2, questions: int = 6) -> list[GenerationLine]:
    return [answer(method, n, n < right, seed=seed) for seed in range(seeds) for n in range(questions)]


def test_the_best_form_and_the_best_baseline_stand_beside_zero_shot(tmp_path: Path) -> None:
    runs = {"zero_shot": 2, "icl": 4, "lag": 1, "elm_input": 3, "elm_kv:clear": 5, "oracle": 6}
    told = opened(tmp_path / "run", [line for method, right in runs.items() for line in stream(method, right)])
    assert told[0].startswith(
        "Zero-shot (the plain greedy answer; nothing is learned): 33.3 % (4/12) right; 10 tokens"
    )
    assert "best of 2 forms of the agent: elm_kv:clear (the agent, key kv, min vote share 0.75), 83.3 %" in told[1]
    assert "+50.0 [" in told[1]
    assert "harm 0.0 %" in told[1]
    assert "best of 2 baselines: icl (" in told[2]
    assert "+33.3 [" in told[2]
    assert told[3].startswith("That form less that baseline: +16.7 [")
    assert told[3].endswith("points on 12 pairs.")
    assert "an upper end" in told[4]
    assert len(told) == 5


def test_what_is_not_finished_is_not_the_best(tmp_path: Path) -> None:
    lines = stream("zero_shot", 2) + stream("elm_input", 3) + stream("elm_kv", 6, seeds=1)
    told = opened(tmp_path / "run", lines)
    assert "The only form of the agent: elm_input (" in told[1]
    assert told[-1] == "Not among them, as fewer of their seeds are finished: elm_kv."


def test_a_method_that_few_zero_shot_answers_stand_beside_is_not_compared(tmp_path: Path) -> None:
    reference = stream("zero_shot", 2, seeds=1)
    told = opened(tmp_path / "few", reference[:2] + stream("icl", 3, seeds=1) + stream("elm_input", 3, seeds=1))
    assert not any("over zero-shot" in line for line in told)
    told = opened(tmp_path / "most", reference[:4] + stream("icl", 3, seeds=1))
    assert any("The only baseline: icl" in line for line in told)


def test_tokens_of_answering_and_of_learning(tmp_path: Path) -> None:
    told = opened(tmp_path / "run", whole_stream())
    assert any("16 tokens a question for answering and 100 for learning" in line for line in told)


def test_offline_each_form_has_its_bank(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", whole_matrix(), protocol="offline"))
    report = build(run)
    [bank] = report.offline
    told = markdown(report, list(parts_of(report)))
    assert f"on all of sums: {bank.improving.part} of 16 are better than zero-shot" in told


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            "elm_input:steps=1+rollouts=2+learning_rate=1e-12",
            "the agent, key input, 1 step, 2 rollouts, learning rate 1e-12",
        ),
        ("elm_kv:half+early", "the agent, key kv, half of the rollouts, stop when settled 2, skip equal rewards"),
        ("elm:clear+opinions", "the agent, min vote share 0.75, 2 opinions"),
        ("elm:lora+ucb+probe", "the agent, parameterisation lora, utility ranking ucb, admission probe"),
        ("elm:half+condensed", "the agent, half of the rollouts, bank condensed after every 20 questions"),
        ("elm:condensed=5", "the agent, bank condensed after every 5 questions"),
        ("elm:full", "the agent, parameterisation full"),
        ("elm:learning.skip_equal_rewards=false", "the agent, no skip equal rewards"),
        ("self_consistency:21", "the majority of 21 samples"),
        ("self_consistency", "the majority of many samples"),
        ("somebody:else's", "somebody, else's"),
    ],
)
def test_a_name_in_words(method: str, words: str) -> None:
    assert in_words(method) == words


def test_every_method_and_every_word_is_explained() -> None:
    assert [name for name in METHODS if in_words(name) == name] == []
    for word in (*WORDS, *BUNDLES, *OFFLINE_WORDS):
        assert settings_told([f"elm:{word}"]), word
    assert in_words(f"elm:{HALF}") != f"the agent, {HALF}"
    assert settings_told(["elm_kv:rollouts=2+no_such=1"]).keys() == {"key", "rollouts"}
