"""The engine: joining rows, isolating a bad one, limits, keys, closing."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from elm_agent.errors import InputError, ModelError, ModelMismatch
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.models.network import Prefix
from elm_agent.protocols import GenerationRequest
from elm_agent.records import KeyKind
from elm_agent.softprompt import SoftPrompt
from elm_agent.testing.tiny import write_tiny_model

CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("engine"), context_length=128)


@pytest.fixture
def model(folder: Path) -> Iterator[LocalModel]:
    loaded = load_pretrained(str(folder), device="cpu", dtype="float64", offline=True)
    model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint, join_window=0.2)
    yield model
    model.close()


def request(model: LocalModel, **options: object) -> GenerationRequest:
    return GenerationRequest(**{"prompt_ids": model.encode(CHAT), "max_new_tokens": 6, **options})  # type: ignore[arg-type]


def soft(rows: int = 3, width: int = 32, seed: int = 0) -> SoftPrompt:
    return SoftPrompt(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), "mem_x")


def count_batches(model: LocalModel) -> list[int]:
    """How many rows were read together, each time."""
    sizes: list[int] = []
    inner = model.network.read

    def counting(rows: Sequence[torch.Tensor]) -> tuple[Prefix, torch.Tensor]:
        sizes.append(len(rows))
        return inner(rows)

    model.network.read = counting  # type: ignore[method-assign]
    return sizes


def test_rows_from_several_threads_run_as_one_batch(model: LocalModel) -> None:
    sizes, results = count_batches(model), {}

    def ask(name: int) -> None:
        results[name] = model.generate([request(model, temperature=1.0, seed=name)])[0]

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [4]
    for name, generation in results.items():
        assert generation.token_ids == model.generate([request(model, temperature=1.0, seed=name)])[0].token_ids


def test_a_soft_prompt_changes_its_own_row_only(model: LocalModel) -> None:
    plain = model.generate([request(model)])[0]
    with_prompt, beside = model.generate([request(model, prefix=soft()), request(model)])
    assert beside.token_ids == plain.token_ids
    assert with_prompt.mean_logprob != pytest.approx(plain.mean_logprob)


def test_a_row_that_fails_does_not_cost_the_others(model: LocalModel) -> None:
    inner = model._serving._embed

    def failing(item: GenerationRequest) -> torch.Tensor:
        if item.seed == 13:
            raise RuntimeError("out of memory")
        return inner(item)

    model._serving._embed = failing
    good, bad = model.submit(request(model)), model.submit(request(model, seed=13))
    assert len(good.result(timeout=300).token_ids) > 0
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(timeout=300)


def test_a_batch_that_fails_gives_its_memory_back_before_its_rows_run_alone(model: LocalModel) -> None:
    inner, held = model.network.read, []

    def reading(rows: Sequence[torch.Tensor]) -> tuple[Prefix, torch.Tensor]:
        cache = torch.zeros(4)
        alive = [reference() is not None for reference in held]
        held.append(weakref.ref(cache))
        if len(rows) > 1 or len(rows[0]) > len(prompt):
            raise RuntimeError("out of memory")
        assert not any(alive)
        return inner(rows)

    prompt = model.encode(CHAT)
    model.network.read = reading  # type: ignore[method-assign]
    memory, plain = model.submit(request(model, prefix=soft())), model.submit(request(model))
    assert plain.result(timeout=300).token_ids
    with pytest.raises(RuntimeError, match="out of memory"):
        memory.result(timeout=300)
    assert len(held) == 3


def test_logits_that_are_not_finite_cost_the_row_and_nobody_else(model: LocalModel) -> None:
    alone = model.generate([request(model)])[0]
    sizes, inner = count_batches(model), model._serving._embed
    model._serving._embed = lambda item: inner(item) * (float("nan") if item.seed == 13 else 1.0)
    bad, good = model.submit(request(model, seed=13)), model.submit(request(model))
    assert good.result(timeout=300).token_ids == alone.token_ids
    with pytest.raises(ModelError, match="not finite"):
        bad.result(timeout=300)
    assert sizes == [2], "nothing is drawn twice"


def test_nothing_that_a_row_raises_ends_the_engine(model: LocalModel) -> None:
    inner = model._serving._embed

    def failing(item: GenerationRequest) -> torch.Tensor:
        if item.seed == 13:
            raise SystemExit("a library gave up")
        return inner(item)

    model._serving._embed = failing
    bad = model.submit(request(model, seed=13))
    with pytest.raises(SystemExit):
        bad.result(timeout=300)
    assert model.submit(request(model)).result(timeout=300).token_ids


def test_impossible_requests_are_refused_before_they_run(model: LocalModel) -> None:
    with pytest.raises(ModelMismatch, match="width 8"):
        model.submit(request(model, prefix=soft(width=8)))
    with pytest.raises(InputError, match="context of 128"):
        model.submit(request(model, prefix=soft(rows=200)))
    with pytest.raises(InputError, match="at least one"):
        model.submit(request(model, max_new_tokens=0))
    with pytest.raises(InputError, match="context of 128"):
        model.encode([{"role": "user", "content": "x" * 500}])
    with pytest.raises(InputError, match="empty"):
        model.text_embeddings("")
    with pytest.raises(InputError, match="context of 128"):
        model.query("x" * 500, KeyKind.INPUT)


def test_an_answer_stops_at_the_end_of_the_context(model: LocalModel) -> None:
    generation = model.generate([request(model, max_new_tokens=1000)])[0]
    assert len(generation.token_ids) + len(model.encode(CHAT)) <= 128


def test_keys_and_queries_have_unit_length_and_meet(model: LocalModel) -> None:
    prompt = SoftPrompt(model.text_embeddings("What is 2 plus 3?").float())
    keys = model.keys(prompt)
    assert keys.kv is not None
    for kind, key, width in ((KeyKind.INPUT, keys.input, 32), (KeyKind.KV, keys.kv, 2 * 8)):
        query = model.query("What is 2 plus 3?", kind)
        assert query.shape == key.shape == (width,)
        assert query.dtype == np.float32
        assert np.linalg.norm(query) == pytest.approx(1.0, abs=1e-5)
        assert np.linalg.norm(key) == pytest.approx(1.0, abs=1e-5)
    assert model.query("What is 2 plus 3?", KeyKind.INPUT) @ keys.input == pytest.approx(1.0, abs=1e-5)


def test_a_closed_engine_says_so_and_closing_twice_is_harmless(folder: Path) -> None:
    loaded = load_pretrained(str(folder), device="cpu", dtype="float32", offline=True)
    model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)
    future = model.submit(request(model))
    model.close()
    model.close()
    assert future.result(timeout=300).token_ids
    with pytest.raises(ModelError, match="closed"):
        model.submit(request(model))


def test_what_comes_while_closing_is_refused_or_answered(folder: Path) -> None:
    loaded = load_pretrained(str(folder), device="cpu", dtype="float32", offline=True)
    model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)
    model.submit(request(model)).result(timeout=300)
    closer = threading.Thread(target=model.close)
    answered = refused = 0
    closer.start()
    for _ in range(50):
        try:
            assert model.submit(request(model)).result(timeout=300).token_ids
            answered += 1
        except ModelError:
            refused += 1
    closer.join(60)
    assert answered + refused == 50
    assert refused > 0


def test_a_cancelled_request_is_skipped(model: LocalModel) -> None:
    with model.training():  # the engine waits, so that the request is still queued
        first, second = model.submit(request(model)), model.submit(request(model, seed=1))
        second.cancel()
    assert first.result(timeout=300).token_ids
    assert second.cancelled() or second.done()


def test_half_a_character_is_refused_in_a_sentence(model: LocalModel) -> None:
    for ask in (
        lambda: model.encode([{"role": "user", "content": "5 \ud800"}]),
        lambda: model.query("5 \udfff", KeyKind.INPUT),
    ):
        with pytest.raises(InputError, match="half a character"):
            ask()
