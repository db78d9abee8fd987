"""Memories that are trained at the same time: what they draw, what they become, and who waits for whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from elm_agent.errors import JobCancelled
from elm_agent.models import load
from elm_agent.models.decoding import Row
from elm_agent.models.engine import LocalModel
from elm_agent.models.lease import ModelLease
from elm_agent.models.loading import load_pretrained
from elm_agent.models.packed import PackedStep, why_unpacked
from elm_agent.protocols import GenerationRequest, Trained
from elm_agent.records import Recipe
from elm_agent.tasks import get_task
from elm_agent.testing.tiny import write_tiny_model
from elm_agent.training import GrpoTrainer, grpo
from elm_agent.training.parameterisations import Learning

QUESTIONS = ["What is 2 plus 3?", "What is 12 times 4?", "How many days has a week?", "7 - 5 = ?"]
RECIPE = Recipe(rollouts=4, steps=3, max_new_tokens=6, virtual_tokens=5, learning_rate=0.05, beta=0.01)


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalModel]:
    loaded = load_pretrained(
        str(write_tiny_model(tmp_path / "m", architecture=request.param)), device="cpu", dtype="float32", offline=True
    )
    model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint, max_batch_rows=12)
    yield model
    model.close()


def train(model: LocalModel, seed: int, recipe: Recipe = RECIPE) -> Trained:
    return GrpoTrainer(model, get_task("text")).train(QUESTIONS[seed], recipe=recipe, seed=seed)


def test_four_memories_become_the_same_alone_and_together(model: LocalModel) -> None:
    alone = [train(model, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: train(model, seed), range(4)))
    for one, other in zip(alone, together, strict=True):
        assert [rollout.text for rollout in one.rollouts] == [rollout.text for rollout in other.rollouts]
        torch.testing.assert_close(one.prompt.prompt_VE, other.prompt.prompt_VE, rtol=0, atol=1e-5)
        assert [record.vote_share for record in one.curve] == [record.vote_share for record in other.curve]
        assert [record.loss for record in other.curve] == pytest.approx([r.loss for r in one.curve], abs=1e-5)


@pytest.mark.parametrize("kind", ["soft_prompt", "prefix", "lora"])
def test_memories_become_the_same_while_others_and_answers_are_drawn_beside_their_updates(
    model: LocalModel, kind: str
) -> None:
    recipe = replace(RECIPE, parameterisation=kind, lora_rank=2)
    requests = [
        GenerationRequest(prompt_ids=model.encode([{"role": "user", "content": question}]), max_new_tokens=12)
        for question in QUESTIONS
    ]
    alone, answers = [train(model, seed, recipe) for seed in range(4)], model.generate(requests)
    model._lease.close()
    model._lease = model._serving._lease = ModelLease(overlap=True)  # type: ignore[attr-defined]
    with model._lease.learning():  # an answer does not wait for an update
        assert model.generate(requests[:1])[0].token_ids == answers[0].token_ids
    with ThreadPoolExecutor(4) as pool:
        learning = [pool.submit(train, model, seed, recipe) for seed in range(4)]
        while not all(future.done() for future in learning):
            assert [g.token_ids for g in model.generate(requests)] == [g.token_ids for g in answers]
    for one, future in zip(alone, learning, strict=True):
        other = future.result()
        assert [rollout.text for rollout in one.rollouts] == [rollout.text for rollout in other.rollouts]
        for name, tensor in one.prompt.tensors.items():
            torch.testing.assert_close(other.prompt.tensors[name], tensor, rtol=0, atol=1e-5)


@pytest.fixture
def packed(tmp_path: Path) -> Iterator[LocalModel]:
    """As it is made in production on a CPU: decoded with packed weights, updated with turned products."""
    folder = write_tiny_model(tmp_path / "packed", width=64)
    model = load(str(folder), device="cpu", offline=True, max_batch_rows=12)
    assert why_unpacked(model.network.model) is None
    yield model
    assert isinstance(vars(model.network)["quick_step"], PackedStep)  # it was asked for
    model.close()


def test_four_memories_draw_the_same_tokens_alone_together_and_in_another_order(
    packed: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, list[list[int]]] = {}
    sample = grpo.sample_group

    def noted(*arguments: Any, seed: int, **options: Any) -> list[Row]:
        rows = sample(*arguments, seed=seed, **options)
        drawn.setdefault(seed, []).extend(row.tokens for row in rows)
        return rows

    monkeypatch.setattr(grpo, "sample_group", noted)

    def trained(order: Sequence[int], threads: int) -> tuple[dict[int, Trained], dict[int, list[list[int]]]]:
        drawn.clear()
        with ThreadPoolExecutor(threads) as pool:
            with packed.training():  # until as many as there are threads wait
                found = [pool.submit(train, packed, seed) for seed in order]
            memories = dict(zip(order, [future.result(timeout=300) for future in found], strict=True))
        return memories, dict(drawn)

    alone, tokens = trained(range(4), 1)
    assert all(len(of_one) == RECIPE.rollouts * RECIPE.steps for of_one in tokens.values())
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        together, same = trained(order, 4)
        assert same == tokens
        for seed, one in alone.items():
            torch.testing.assert_close(together[seed].prompt.prompt_VE, one.prompt.prompt_VE, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("choice", "made"),
    [
        ({}, {"quick_step"}),
        ({"parameterisation": "lora"}, {"quick_step_beside"}),
        (
            {"parameterisation": "lora", "objective": "sft_greedy", "beta": 0.0},
            {"quick_step"},
        ),  # by the bare model, once
        ({"rollout_weights": "float16"}, set()),  # others draw
    ],
)
def test_weights_are_packed_before_a_question_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: dict[str, Any], made: set[str]
) -> None:
    read, found = grpo.read_question, []

    def watched(memory: Learning, prompt_ids: Sequence[int]) -> Any:
        found.append({"quick_step", "quick_step_beside"} & vars(memory.network).keys())
        return read(memory, prompt_ids)

    monkeypatch.setattr(grpo, "read_question", watched)
    model = load(str(write_tiny_model(tmp_path / "packed", width=64)), device="cpu", offline=True)
    train(model, 0, replace(RECIPE, lora_rank=2, steps=1, **choice))
    model.close()
    assert found == [made]


def test_rows_of_different_memories_are_drawn_together_up_to_the_limit(model: LocalModel) -> None:
    sizes: list[int] = []
    arrivals = model._serving._arrivals

    def watched(aboard: list[object]) -> list[object]:
        found = arrivals(aboard)  # type: ignore[arg-type]
        sizes.append(len(aboard) + len(found))
        return found  # type: ignore[return-value]

    model._serving._arrivals = watched  # type: ignore[method-assign,assignment]
    with model.training():  # until all four wait
        pool = ThreadPoolExecutor(4)
        futures = [pool.submit(train, model, seed) for seed in range(4)]
    for future in futures:
        future.result(timeout=120)
    pool.shutdown()
    assert 8 <= max(sizes) <= 12  # 16 rows wanted, three groups of four fit


def test_too_many_rows_for_the_memory_are_drawn_in_halves(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from elm_agent.models import decoding

    alone = train(model, 0)
    step, refused = decoding.Decoder.step, []

    def small(self: decoding.Decoder) -> list[decoding.Row]:
        if len(self.rows) > 2:
            refused.append(len(self.rows))
            raise torch.OutOfMemoryError("out of memory")
        return step(self)

    monkeypatch.setattr(decoding.Decoder, "step", small)
    halved = train(model, 0)
    assert 4 in refused
    assert [rollout.text for rollout in halved.rollouts] == [rollout.text for rollout in alone.rollouts]
    torch.testing.assert_close(halved.prompt.prompt_VE, alone.prompt.prompt_VE, rtol=0, atol=1e-5)


def test_rollouts_are_few_where_memory_is_short(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from elm_agent.models import serving

    sizes: list[int] = []
    board = model._serving._board

    def watched(decoder: object, waiting: list[object]) -> list[object]:
        sizes.append(len(waiting))
        return board(decoder, waiting)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(serving, "spare_bytes", lambda _device: 0)
    model._serving._board = watched  # type: ignore[method-assign,assignment]
    train(model, 1)
    assert set(sizes) == {1}


@pytest.mark.parametrize(("room", "together"), [(2, 1), (4, 2), (None, 4)])
def test_as_many_learn_at_a_time_as_memory_has_room_for(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch, room: int | None, together: int
) -> None:
    """``room``: how often what one memory keeps is spare; half of it may be taken."""
    inside: list[int] = []
    most, lock = [0], threading.Lock()
    step = GrpoTrainer._step

    def counted(self: GrpoTrainer, course: Any, *arguments: Any, **more: Any) -> None:
        with lock:
            inside.append(course.seed)
            most[0] = max(most[0], len(set(inside)))
        if room is None and not course.curve:
            until(lambda: most[0] == 4)
        step(self, course, *arguments, **more)
        with lock:
            inside.remove(course.seed)

    alone = [train(model, seed) for seed in range(4)]
    per_position, _ = model.network.gradient_bytes
    longest = max(len(model.encode(get_task("text").messages(question))) for question in QUESTIONS)
    needed = per_position * (RECIPE.virtual_tokens + longest)
    model._berths._spare = lambda: None if room is None else room * needed
    monkeypatch.setattr(GrpoTrainer, "_step", counted)
    with ThreadPoolExecutor(4) as pool:
        trained = list(pool.map(lambda seed: train(model, seed), range(4)))
    assert most[0] <= together
    assert room is not None or most[0] == 4
    for one, other in zip(alone, trained, strict=True):
        torch.testing.assert_close(one.prompt.prompt_VE, other.prompt.prompt_VE, rtol=0, atol=1e-5)


def test_who_waits_for_room_can_be_cancelled(model: LocalModel) -> None:
    model._berths._spare = lambda: 0
    with model.berth(10, lambda: False), pytest.raises(JobCancelled, match="waited for memory"):
        GrpoTrainer(model, get_task("text")).train(QUESTIONS[0], recipe=RECIPE, seed=0, cancelled=lambda: True)
    assert train(model, 0).curve  # nobody is inside any more


def test_an_answer_goes_before_rollouts_and_updates(model: LocalModel) -> None:
    order: list[str] = []
    request = GenerationRequest(prompt_ids=model.encode([{"role": "user", "content": "hi"}]), max_new_tokens=3)

    def update() -> None:
        with model.training():
            order.append("update")

    with model.training():
        waiting = threading.Thread(target=update)
        waiting.start()
        until(lambda: model._lease._updates_waiting == 1)
        answer = model.submit(request)
        answer.add_done_callback(lambda _: order.append("answer"))
    assert answer.result(timeout=300).token_ids
    waiting.join(60)
    assert order == ["answer", "update"]


def test_a_job_is_cancelled_among_its_rollouts(model: LocalModel) -> None:
    long = Recipe(rollouts=4, steps=3, max_new_tokens=900, virtual_tokens=5)
    model._serving._end_ids = ()
    asked = threading.Event()
    boarded = threading.Event()
    board = model._serving._board

    def watched(decoder: object, waiting: list[object]) -> list[object]:
        boarded.set()
        return board(decoder, waiting)  # type: ignore[arg-type,return-value]

    model._serving._board = watched  # type: ignore[method-assign,assignment]
    with ThreadPoolExecutor(1) as pool:
        trainer = GrpoTrainer(model, get_task("text"))
        job = pool.submit(trainer.train, QUESTIONS[0], recipe=long, seed=0, cancelled=asked.is_set)
        assert boarded.wait(60)
        asked.set()
        with pytest.raises(JobCancelled, match="among its rollouts"):
            job.result(timeout=300)
    assert model.generate(
        [GenerationRequest(prompt_ids=model.encode([{"role": "user", "content": "hi"}]), max_new_tokens=3)]
    )[0].token_ids


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
