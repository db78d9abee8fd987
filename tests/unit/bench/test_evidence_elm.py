"""The agent as a method, on a tiny random model: its bank, its shared trainings, and runs that are taken up again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evidence_scripts import Killed, Told, answers, carry_out, plan_of, timeless

from elm_agent.bench.evidence.contract import CandidateLine, GenerationLine, Outcome, Phase, Protocols
from elm_agent.bench.evidence.folder import RunFolder
from elm_agent.bench.evidence.methods.elm import best_of
from elm_agent.bench.evidence.methods.variants import recipe_and_epochs, recipe_of, settings_of
from elm_agent.errors import InputError, SettingsError, StorageError
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.records import KeyKind, Recipe, Route
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.testing.tiny import write_tiny_model

QUESTIONS = ("what is one", "name a colour", "what is one", "say two words", "how are you")
SETTINGS = Settings(
    task="text",  # so that whatever a random model says is an answer
    max_new_tokens=4,
    learning={"steps": 1, "rollouts": 2, "max_new_tokens": 3, "virtual_tokens": 12, "temperature": 1.0},
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    loaded = load_pretrained(str(folder), device="cpu", dtype="float64", offline=True)
    model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)
    yield model
    model.close()


@pytest.fixture
def words(tmp_path: Path) -> str:
    return write(tmp_path / "mine.jsonl", QUESTIONS)


def write(file: Path, questions: Sequence[str]) -> str:
    file.write_text("".join(json.dumps({"question": one, "answer": "yes"}) + "\n" for one in questions))
    return str(file)


def run(
    tiny: LocalModel,
    out: Path,
    *methods: str,
    observe: Told | None = None,
    settings: Settings = SETTINGS,
    together: int = 1,
    **more: Any,
) -> list[GenerationLine]:
    plan = plan_of(*methods, **{"limit": None} | more)
    return list(carry_out(plan, out, model=tiny, settings=settings, observe=observe, together=together))


def rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def comparable(lines: Sequence[GenerationLine]) -> list[GenerationLine]:
    """Ids, times and the last digits left out; ``memory_item`` says which memory it was."""
    return [
        replace(
            line,
            similarity=rounded(line.similarity),
            key=line.key and tuple(map(rounded, line.key)),
            memory_id=None if line.memory_id is None else "m",
            kept={},
            detail={},
            curve=tuple(
                {name: rounded(value) for name, value in step.items() if not name.startswith("seconds")}
                for step in line.curve
            ),
            candidates=tuple(
                replace(
                    one,
                    memory_id=one.memory_id and "m",
                    mean_logprob=rounded(one.mean_logprob),
                    self_certainty=rounded(one.self_certainty),
                    score=rounded(one.score),
                )
                for one in line.candidates
            ),
        )
        for line in timeless(lines)
    ]


def test_a_memory_serves_later_questions_and_never_its_own(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    lines = run(tiny, tmp_path / "run", "elm_input", "elm_kv", "oracle", tasks=(words,))
    digest = {f"{number:05d}": question for number, question in enumerate(QUESTIONS, 1)}
    for method in ("elm_input", "elm_kv", "oracle"):
        mine = [line for line in lines if line.method == method]
        assert not any(line.failure for line in mine)
        asked: list[str] = []
        for line in answers(mine):
            earlier = [one for one in asked if digest[one] != digest[line.item_id]]
            asked.append(line.item_id)
            if not earlier:
                assert (line.route, line.memory_item) == ("no_memory", None)
                continue
            assert line.memory_item in earlier, "it came from a question before, and not from an equal one"
            assert line.similarity is not None
            assert [one.role for one in line.candidates] == ["zero_shot", "memory"]
            assert line.detail["explanation"]["route"] == line.route or method == "oracle"
        learned = [line for line in mine if line.phase is Phase.LEARN]
        assert [line.state for line in learned] == ["active"] * 5
        [again] = [line for line in learned if line.reason]
        assert (again.reason, again.tokens, again.curve) == ("an equal question was learned before", 0, ())
        assert all(len(line.curve) == 1 and line.key and line.seconds for line in learned if line is not again)
    learned_once = [line for line in lines if line.phase is Phase.LEARN and line.candidates]
    assert {line.method for line in learned_once} == {"elm_input"}, "rollouts are told where they were drawn"
    assert {len(line.candidates) for line in learned_once} == {2}
    assert len(list((tmp_path / "run/work/trained").glob("*.safetensors"))) == 4, "each question was trained once"


def test_a_gate_decides_what_serves_and_trains_nothing_anew(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    lines = run(tiny, tmp_path / "run", "elm", "elm:min_vote_share=1", tasks=(words,))
    gated = [line for line in lines if line.method == "elm:min_vote_share=1" and line.phase is Phase.LEARN]
    assert "candidate" in {line.state for line in gated}, "random votes are split"
    assert not any(line.candidates for line in gated), "the rollouts are those of the other method"
    assert len(list((tmp_path / "run/work/trained").glob("*.safetensors"))) == 4


def test_a_killed_run_ends_like_one_that_is_not(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    whole = comparable(run(tiny, tmp_path / "whole", "elm", tasks=(words,)))
    for after in (2, 5):
        out = tmp_path / str(after)
        with pytest.raises(Killed):
            run(tiny, out, "elm", tasks=(words,), observe=Told(kill_after=after))
        assert comparable(run(tiny, out, "elm", tasks=(words,))) == whole, f"killed after {after} lines"


def uses_of(out: Path) -> list[tuple[Any, ...]]:
    """What the bank of the one method in ``out`` has noted, oldest first."""
    [home] = out.glob("work/*/*/0/bank")
    with closing(open_bank(Settings(home=home, index="exact"))) as bank:
        uses = bank.uses("evidence")
        return [(use.question, use.route, use.memory_answer, use.zero_shot_answer, use.tier) for use in uses[::-1]]


@pytest.mark.parametrize("where", ["before the line", "after the line"])
def test_a_use_is_noted_once_wherever_the_process_dies(
    tiny: LocalModel, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    method = "elm:utility.ranking=mean"  # what is noted decides what serves next
    whole = run(tiny, tmp_path / "whole", method, tasks=(words,))
    noted = uses_of(tmp_path / "whole")
    assert len(noted) == sum(line.memory_id is not None for line in answers(whole)) > 2
    add = RunFolder.add

    def dying(self: RunFolder, line: GenerationLine, digest: str) -> GenerationLine:
        last = line.phase is Phase.ANSWER and line.position == 3
        if last and where == "before the line":
            raise Killed
        stored = add(self, line, digest)
        if last:
            raise Killed
        return stored

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "add", dying)
        with pytest.raises(Killed):
            run(tiny, tmp_path / "run", method, tasks=(words,))
    assert uses_of(tmp_path / "run") == noted[: sum(line.memory_id is not None for line in answers(whole)[:3])]
    lines = run(tiny, tmp_path / "run", method, tasks=(words,))
    assert uses_of(tmp_path / "run") == noted
    assert comparable(lines) == comparable(whole)


def test_seeds_side_by_side_learn_what_they_learn_alone(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    def by_seed(lines: Sequence[GenerationLine]) -> dict[int, list[GenerationLine]]:
        return {seed: [line for line in comparable(lines) if line.seed == seed] for seed in (0, 1, 2)}

    given: dict[str, Any] = {"tasks": (words,), "seeds": (0, 1, 2)}
    together = run(tiny, tmp_path / "together", "elm", together=3, **given)
    assert not [line.failure for line in together if line.failure]
    assert by_seed(together) == by_seed(run(tiny, tmp_path / "alone", "elm", **given))


def test_a_run_that_is_stopped_while_it_trains_goes_on(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    class Stopped(Told):
        def __call__(self, name: str, detail: dict[str, Any]) -> None:
            super().__call__(name, detail)
            if name == "train.step" and sum(one == "train.step" for one, _ in self.events) == 2:
                raise KeyboardInterrupt

    whole = comparable(run(tiny, tmp_path / "whole", "elm", tasks=(words,)))
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "run", "elm", tasks=(words,), observe=Stopped())
    assert comparable(run(tiny, tmp_path / "run", "elm", tasks=(words,))) == whole


def test_training_in_cohorts_changes_nothing_but_the_time(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    alone = SETTINGS.changed(worker={"concurrency": 1})
    told = Told()
    together = run(tiny, tmp_path / "together", "elm", tasks=(words,), observe=told)
    assert [detail for name, detail in told.events if name == "prepare"][-1] == {"done": 4, "total": 4}
    assert comparable(run(tiny, tmp_path / "alone", "elm", tasks=(words,), settings=alone)) == comparable(together)


def test_what_cannot_be_trained_is_a_failure(tiny: LocalModel, tmp_path: Path) -> None:
    words = write(tmp_path / "long.jsonl", ["what is one", "so " * 335, "say two words"])
    lines = run(tiny, tmp_path / "run", "elm", tasks=(words,))
    failed = {(line.phase, line.item_id): line.failure for line in lines if line.failure}
    assert set(failed) == {(Phase.ANSWER, "00002"), (Phase.LEARN, "00002")}
    assert not any(line.correct is False for line in lines if line.failure)
    assert "nothing was learned: InputError" in str(failed[Phase.LEARN, "00002"])


def test_a_run_without_its_banks_is_refused(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tiny, tmp_path / "run", "elm", tasks=(words,), observe=Told(kill_after=4))
    (tmp_path / "run/work").rename(tmp_path / "away")
    with pytest.raises(StorageError, match="put the folder `work` back"):
        run(tiny, tmp_path / "run", "elm", tasks=(words,))


def test_memories_of_one_task_answer_another(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", ["what is three", "name a colour"])
    plan: dict[str, Any] = {"protocol": Protocols.TRANSFER, "sources": (words,), "tasks": (other,)}
    lines = run(tiny, tmp_path / "run", "elm", **plan)
    asked = [line for line in answers(lines) if line.task == "other"]
    learned = {line.item_id for line in lines if line.phase is Phase.LEARN}
    assert learned == {f"{number:05d}" for number in range(1, 6)}
    assert [line.source for line in asked] == ["mine"] * 2
    assert all(line.memory_item in learned for line in asked)
    assert asked[1].memory_item != "00002", "the same question stands in both tasks"


def test_each_memory_alone_answers_all(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    methods = ("zero_shot", "elm", "elm:prefix", "elm:lora+lora_rank=2", "elm:full", "elm:grpo_ground_truth")
    plan: dict[str, Any] = {"protocol": Protocols.OFFLINE, "tasks": (words,), "limit": 2}
    lines = run(tiny, tmp_path / "run", *methods, **plan)
    assert not [line.failure for line in lines if line.failure]
    for method in methods[1:]:
        cells = [line for line in answers(lines) if line.method == method]
        assert {(line.learner, line.item_id) for line in cells} == {
            (row, column) for row in ("00001", "00002") for column in ("00001", "00002")
        }
        assert all(line.memory_item == line.learner and line.candidates[0].role == "memory" for line in cells)
    recipes = {line.method: line.curve for line in lines if line.phase is Phase.LEARN}
    assert recipes["elm:grpo_ground_truth"][0]["reward_mean"] == 0, "no rollout says yes"
    assert recipes["elm"][0]["reward_mean"] > 0


def test_the_whole_set_is_learned_before_it_is_answered(tiny: LocalModel, words: str, tmp_path: Path) -> None:
    methods = ("ttrl:epochs=2", "grpo:lora+lora_rank=2+epochs=1", "ttrl:full+epochs=1")
    plan: dict[str, Any] = {"protocol": Protocols.OFFLINE, "tasks": (words,), "limit": 3}
    whole = comparable(run(tiny, tmp_path / "whole", *methods, **plan))
    assert not [line.failure for line in whole if line.failure]
    for method, epochs in zip(methods, (2, 1, 1), strict=True):
        mine = [line for line in whole if line.method == method]
        assert [line.phase for line in mine] == [Phase.LEARN] * 3 + [Phase.ANSWER] * 3
        assert [len(line.curve) for line in mine[:3]] == [epochs] * 3, "each question has a step in every epoch"
        steps = {step["step"] for line in mine[:3] for step in line.curve}
        assert steps == set(range(3 * epochs))
        assert all(line.source == "mine" and line.candidates[0].role == "memory" for line in mine[3:])
    for after in (2, 5):
        with pytest.raises(Killed):
            run(tiny, tmp_path / str(after), *methods, observe=Told(kill_after=after), **plan)
        assert comparable(run(tiny, tmp_path / str(after), *methods, **plan)) == whole


def test_an_oracle_takes_the_right_one_of_two() -> None:
    plain = CandidateLine(role="zero_shot", text="It is 4.", answer="4")
    memory = CandidateLine(role="memory", text="It is 5.", answer="5")
    outcome = Outcome(answer="4", text="It is 4.", candidates=(plain, memory), route="zero_shot")
    best = best_of(outcome, lambda answer: answer == "5")
    assert (best.answer, best.text, best.route) == ("5", "It is 5.", Route.MEMORY)
    heard = CandidateLine(role="opinion", text="It is 6.", answer="6")
    outcome = replace(outcome, candidates=(plain, memory, heard))
    assert best_of(outcome, lambda answer: answer == "6") == outcome, "what was heard is no candidate"
    assert best_of(outcome, lambda answer: answer == "4") == outcome


def test_words_after_the_colon_are_settings() -> None:
    made = settings_of("elm_kv:lora+steps=2+retrieval.top_k=3+majority", Settings(), seed=7)
    assert (made.learning.parameterisation, made.learning.steps, made.learning.seed) == ("lora", 2, 7)
    assert (made.retrieval.key, made.retrieval.top_k, made.verification.verifier) == (KeyKind.KV, 3, "majority")
    assert settings_of("elm_input", Settings(retrieval={"key": "kv"}), seed=0).retrieval.key is KeyKind.INPUT
    assert settings_of("elm", Settings(retrieval={"key": "kv"}), seed=0).retrieval.key is KeyKind.KV
    assert recipe_of("elm:full+steps=2", Settings(), seed=0) == Recipe(parameterisation="full", steps=2)
    assert recipe_and_epochs("grpo:lora+epochs=3", Settings(), seed=0) == (
        Recipe(parameterisation="lora", objective="grpo_ground_truth"),
        3,
    )
    with pytest.raises(InputError, match="epochs are a whole number"):
        recipe_and_epochs("ttrl:epochs=none", Settings(), seed=0)
    with pytest.raises(InputError, match="unknown word 'quick': expected NAME=VALUE or one of soft_prompt"):
        settings_of("elm:quick", Settings(), seed=0)
    with pytest.raises(SettingsError, match=r"method 'elm:rollouts=1': setting 'learning\.rollouts'"):
        settings_of("elm:rollouts=1", Settings(), seed=0)
