"""All baselines in one run on a tiny model: nothing fails, and a run that was cut off ends like one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from elm_agent.bench.evidence.contract import GenerationLine, Phase, Protocols
from elm_agent.bench.evidence.plan import Plan
from elm_agent.bench.evidence.run import run_evidence
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.settings import Settings
from elm_agent.testing.tiny import write_tiny_model

METHODS = (
    *("self_consistency:2", "verifier_at_2", "icl", "reasoning_bank"),
    *("lag", "lag_tts:3", "dynamic_cheatsheet", "exp_rag"),
)
LEARNING = set(METHODS) - {"self_consistency:2", "verifier_at_2"}
QUESTIONS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), context_length=4096)  # a byte is a token
    loaded = load_pretrained(str(folder), device="cpu", dtype="float64", offline=True)
    made = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)
    yield made
    made.close()


def run(model: LocalModel, out: Path, methods: tuple[str, ...] = METHODS) -> tuple[GenerationLine, ...]:
    @contextmanager
    def open_model() -> Iterator[LocalModel]:
        yield model

    plan = Plan(protocol=Protocols.ONLINE, tasks=("arithmetic:sums@test",), methods=methods, limit=QUESTIONS)
    settings = Settings(max_new_tokens=6, home=out / "home")
    return run_evidence(
        plan, settings, out=out, open_model=open_model, environment={}, observe=lambda _name, _values: None
    )


@pytest.fixture(scope="module")
def lines(model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[GenerationLine, ...]]:
    out = tmp_path_factory.mktemp("whole")
    return out, run(model, out)


def timeless(line: GenerationLine) -> GenerationLine:
    """Without what differs from one time to the next."""
    candidates = tuple(replace(one, seconds=None) for one in line.candidates)
    return replace(line, seconds=0.0, at="", candidates=candidates)


def test_no_baseline_fails(lines: tuple[Path, tuple[GenerationLine, ...]]) -> None:
    _, done = lines
    assert [(line.method, line.failure) for line in done if line.failure is not None] == []
    for method in METHODS:
        mine = [line for line in done if line.method == method]
        assert sum(line.phase is Phase.ANSWER for line in mine) == QUESTIONS
        assert sum(line.phase is Phase.LEARN for line in mine) == QUESTIONS * (method in LEARNING)
        assert all(line.tokens > 0 for line in mine if line.phase is Phase.ANSWER)


def test_only_earlier_questions_are_used(lines: tuple[Path, tuple[GenerationLine, ...]]) -> None:
    _, done = lines
    for method in LEARNING:
        learned: set[str] = set()
        used = []
        for line in (one for one in done if one.method == method):
            if line.phase is Phase.ANSWER:
                assert line.memory_id is None or line.memory_id in learned
                used.append(line.memory_id)
            elif line.memory_id is not None:
                learned.add(line.memory_id)
        assert used[0] is None
        assert any(used) == bool(learned)


@pytest.mark.parametrize("method", sorted(LEARNING))
def test_a_run_that_was_cut_off_ends_like_a_whole_one(
    model: LocalModel, lines: tuple[Path, tuple[GenerationLine, ...]], tmp_path: Path, method: str
) -> None:
    out, done = lines
    cut = tmp_path / "cut"
    shutil.copytree(out, cut)
    stored = (cut / "generations.jsonl").read_text("utf-8").splitlines(keepends=True)
    first = next(index for index, line in enumerate(done) if line.method == method)
    (cut / "generations.jsonl").write_text("".join(stored[: first + 4]), "utf-8")  # two answered and learned from
    again = run(model, cut)
    assert [timeless(line) for line in again] == [timeless(line) for line in done]
