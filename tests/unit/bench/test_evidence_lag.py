"""Stored states as a method: kept after answering, put before another question, taken up again from their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from elm_agent.bench.evidence.contract import Item, Method, Workplace
from elm_agent.bench.evidence.methods import open_method
from elm_agent.errors import ModelError, TensorCorrupt, TensorMissing
from elm_agent.memory.answering import candidate
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.models.logs import log_of
from elm_agent.protocols import GenerationRequest
from elm_agent.settings import Settings
from elm_agent.tasks import MathTask
from elm_agent.testing.tiny import write_tiny_model

ONE, TWO, OTHER = (
    Item(id=name, question=text, answer="", family="f")
    for name, text in (("one", "What is 3 + 4?"), ("two", "What is 3 + 5?"), ("other", "zzzz zzzz zzzz"))
)
TWIN = Item(id="twin", question=" What is 3 + 4? ", answer="", family="f")


class LengthTask(MathTask):
    """Whose answers are how long a text is, in threes: a random model has some of each."""

    def extract(self, text: str) -> str | None:
        return None if len(text) % 4 == 3 else str(len(text) % 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    made = open_model(tmp_path_factory.mktemp("llama"), "llama")
    yield made
    made.close()


def open_model(folder: Path, architecture: str) -> LocalModel:
    write_tiny_model(folder, architecture=architecture)
    loaded = load_pretrained(str(folder), device="cpu", dtype="float64", offline=True)
    return LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)


@pytest.fixture
def place(model: LocalModel, tmp_path: Path) -> Workplace:
    return Workplace(
        model=model,
        task=LengthTask(instruction=" Box it."),
        settings=Settings(max_new_tokens=12),
        seed=0,
        folder=tmp_path,
        shared=tmp_path,
        observe=lambda _name, _values: None,
    )


def after(method: Method, *items: Item) -> Method:
    for item in items:
        method.learn(item, method.answer(item))
    return method


def test_the_nearest_answer_is_put_before_the_question_as_states(place: Workplace, model: LocalModel) -> None:
    method = open_method("lag", place)
    first = method.answer(ONE)
    learned = method.learn(ONE, first)
    after(method, OTHER)
    asked = place.task.messages(ONE.question)
    log, read = log_of(model, asked, first.text, memory_id="lag/one", anchor=1)
    assert (learned.tokens, learned.prompt_tokens) == (0, read)
    assert learned.kept["positions"] == log.virtual_tokens < read

    outcome = method.answer(TWO)
    prompt_ids = model.encode(place.task.messages(TWO.question))
    request = GenerationRequest(prompt_ids=prompt_ids, prefix=log, max_new_tokens=12)
    expected = candidate(model.generate([request])[0], task=place.task, memory_id="lag/one")
    assert (outcome.text, outcome.answer) == (expected.text, expected.answer)
    assert outcome.candidates[0].mean_logprob == pytest.approx(expected.mean_logprob, abs=1e-9)
    assert (outcome.memory_id, outcome.memory_item) == ("lag/one", "one")
    assert (outcome.tokens, outcome.prompt_tokens) == (expected.tokens, len(prompt_ids))  # states are not read again
    bare = model.generate([GenerationRequest(prompt_ids=prompt_ids, max_new_tokens=12)])[0]
    assert bare.mean_logprob != pytest.approx(expected.mean_logprob, abs=1e-6)


@pytest.mark.parametrize("name", ["lag", "lag_tts:3"])
def test_a_question_never_sees_its_own_states(place: Workplace, name: str) -> None:
    method = after(open_method(name, place), ONE)
    assert [method.answer(item).route for item in (ONE, TWIN)] == ["no_memory"] * 2
    assert method.answer(TWO).memory_item == "one"


@pytest.mark.parametrize("name", ["lag", "lag_tts:3"])
def test_states_outlive_the_process(place: Workplace, name: str) -> None:
    method, later = open_method(name, place), open_method(name, place)
    for item in (ONE, OTHER):
        later.restore(item, method.learn(item, method.answer(item)))
    told, again = method.answer(TWO), later.answer(TWO)
    assert told.text == again.text
    assert told.memory_id == again.memory_id == f"{name}/one"


def test_states_that_are_lost_or_altered_are_told(place: Workplace, tmp_path: Path) -> None:
    method = after(open_method("lag", place), ONE)
    (file,) = tmp_path.rglob("*.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(TensorCorrupt):
        method.answer(TWO)
    file.unlink()
    with pytest.raises(TensorMissing):
        method.answer(TWO)


def test_an_empty_answer_leaves_nothing(place: Workplace) -> None:
    method = open_method("lag", place)
    outcome = method.answer(ONE)
    learned = method.learn(ONE, type(outcome)(answer=None, text=""))
    assert (learned.memory_id, learned.reason) == (None, "the answer is empty")
    method.restore(ONE, learned)
    assert method.answer(TWO).route == "no_memory"


def test_lag_tts_keeps_the_sample_that_won_the_vote(place: Workplace, model: LocalModel) -> None:
    method = open_method("lag_tts:9", place)
    outcome = method.answer(ONE)
    learned = method.learn(ONE, outcome)
    assert [one.role for one in learned.texts] == ["sample"] * 9
    answers = [one.answer for one in learned.texts]
    given = [answer for answer in answers if answer is not None]
    winner = max(given, key=lambda answer: (given.count(answer), -given.index(answer)))
    text = next(one.text for one in learned.texts if one.answer == winner)
    log, read = log_of(model, place.task.messages(ONE.question), text, memory_id="lag_tts:9/one", anchor=1)
    assert learned.kept["positions"] == log.virtual_tokens
    assert learned.reason == f"vote share {given.count(winner) / 9:.3f}"
    assert learned.tokens == sum(one.tokens for one in learned.texts)
    prompt = len(model.encode(place.task.messages(ONE.question)))
    assert learned.prompt_tokens == 9 * prompt + read
    prompt_ids = model.encode(place.task.messages(TWO.question))
    expected = model.generate([GenerationRequest(prompt_ids=prompt_ids, prefix=log, max_new_tokens=12)])[0]
    assert method.answer(TWO).text == expected.text
    assert [one.text for one in open_method("lag_tts:9", place).learn(ONE, None).texts] == [
        one.text for one in learned.texts
    ]


def test_without_an_answer_lag_tts_keeps_nothing(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LengthTask, "extract", lambda _self, _text: None)
    learned = open_method("lag_tts", place).learn(ONE, None)
    assert (learned.memory_id, learned.reason) == (None, "none of 8 samples has an answer")
    assert learned.tokens > 0


def test_a_model_without_movable_positions_is_refused(place: Workplace, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(ModelError, match="'gpt2' is not among"):
        open_method("lag", replace(place, model=open_model(tmp_path / "gpt2", "gpt2")))
