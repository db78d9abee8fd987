"""What every engine promises that draws tokens, ours and others alike. See ``engines``."""

from __future__ import annotations

import math
import queue
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch
from engines import CONTEXT, ENGINES, failing_at, open_engine

from elm_agent.errors import InputError, JobCancelled, ModelError
from elm_agent.models.decoding import Row
from elm_agent.models.engine import LocalModel
from elm_agent.models.outside import OutsideDrawing, scores
from elm_agent.models.serving import Drawn, Start
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Recipe
from elm_agent.softprompt import SoftPrompt
from elm_agent.tasks import get_task
from elm_agent.training.grpo import GrpoTrainer

CHAT = [{"role": "user", "content": "What is 2 + 3?"}]
PATIENCE = 300  # seconds; what is waited for takes a moment


@pytest.fixture(scope="module", params=ENGINES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    model = open_engine(request.param, tmp_path_factory.mktemp("drawing") / "model")
    yield model
    model.close()


def ask(model: LocalModel, **options: object) -> GenerationRequest:
    return GenerationRequest(**{"prompt_ids": model.encode(CHAT), "max_new_tokens": 8, **options})  # type: ignore[arg-type]


def soft_prompt(model: LocalModel, rows: int = 5) -> SoftPrompt:
    spread = float(model.network.embedding.weight.std())
    generator = torch.Generator().manual_seed(1)
    return SoftPrompt(torch.randn(rows, model.network.width, generator=generator) * spread)


def slow_greedy(model: LocalModel, request: GenerationRequest) -> tuple[list[int], list[float]]:
    """The most likely tokens and their log-probabilities, every position read anew for each of them."""
    network, ids, logprobs = model.network, list(request.prompt_ids), []
    with torch.no_grad():
        for _ in range(request.max_new_tokens):
            embeds_TE = network.embed(ids)
            if isinstance(request.prefix, SoftPrompt):
                embeds_TE = torch.cat([request.prefix.prompt_VE.to(embeds_TE), embeds_TE])
            known_V = network.model(inputs_embeds=embeds_TE[None]).logits[0, -1].log_softmax(dim=-1)
            ids.append(int(known_V.argmax()))
            logprobs.append(float(known_V.max()))
    return ids[len(request.prompt_ids) :], logprobs


@pytest.mark.parametrize("soft", [False, True])
def test_greedy_answers_are_the_most_likely_tokens(model: LocalModel, soft: bool) -> None:
    request = ask(model, prefix=soft_prompt(model) if soft else None)
    tokens, logprobs = slow_greedy(model, request)
    answer = model.generate([request])[0]
    assert list(answer.token_ids) == tokens
    assert answer.text == model.decode_text(tokens)
    assert answer.mean_logprob == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)
    assert answer.self_certainty > 0
    assert answer.seconds > 0
    assert not answer.finished


def test_rows_of_all_kinds_are_drawn_together(model: LocalModel) -> None:
    requests = [
        ask(model),
        ask(model, prefix=soft_prompt(model)),
        ask(model, max_new_tokens=1),
        ask(model, max_new_tokens=30, temperature=1.0, seed=2**63 - 1),
    ]
    answers = model.generate(requests)
    assert [len(answer.token_ids) for answer in answers] == [8, 8, 1, 30]
    for request, answer in zip(requests[:3], answers, strict=False):
        assert list(answer.token_ids) == slow_greedy(model, request)[0]


def test_a_seed_draws_the_same_tokens_again(model: LocalModel) -> None:
    def draw(seed: int) -> tuple[int, ...]:
        return model.generate([ask(model, temperature=1.0, seed=seed, max_new_tokens=12)])[0].token_ids

    assert draw(3) == draw(3)
    assert len({draw(seed) for seed in range(5)}) > 1


def test_an_end_token_ends_a_row_and_is_its_last(model: LocalModel) -> None:
    request = ask(model, max_new_tokens=20)
    tokens = slow_greedy(model, request)[0]
    model._serving._end_ids = (tokens[5],)
    try:
        answer = model.generate([request])[0]
    finally:
        model._serving._end_ids = ()
    assert answer.finished
    assert list(answer.token_ids) == tokens[: tokens.index(tokens[5]) + 1]


def test_a_row_ends_where_the_context_does(model: LocalModel) -> None:
    long = [{"role": "user", "content": "x" * (CONTEXT - 40 - len(model.encode([{"role": "user", "content": ""}])))}]
    prompt_ids = model.encode(long)
    assert len(prompt_ids) == CONTEXT - 40
    answer = model.generate([ask(model, prompt_ids=prompt_ids, max_new_tokens=90)])[0]
    assert len(answer.token_ids) == 40
    with pytest.raises(InputError, match=r"context of 256"):
        model.submit(ask(model, prompt_ids=prompt_ids, prefix=soft_prompt(model, rows=40)))


def test_a_stream_comes_in_pieces_and_may_be_given_up(model: LocalModel) -> None:
    with model.stream(ask(model, max_new_tokens=60, temperature=1.0, seed=5)) as stream:
        parts = list(stream)
    assert len(parts) > 3
    assert "".join(parts) == stream.result().text
    made = stream.so_far()
    if made is not None:  # an engine that scores as it draws
        assert made.mean_logprob == pytest.approx(stream.result().mean_logprob)
    with model.stream(ask(model, max_new_tokens=150)) as unwanted:
        beside = model.submit(ask(model))
        next(unwanted)
    with pytest.raises(CancelledError):
        unwanted.result()
    assert len(list(unwanted)) < 149
    assert list(beside.result(timeout=PATIENCE).token_ids) == slow_greedy(model, ask(model))[0]
    assert not beside.cancel()


def begin(model: LocalModel) -> Start:
    prompt_VE = soft_prompt(model).prompt_VE.to(model.network.device)
    embeds_TE = torch.cat([prompt_VE, model.network.embed(model.encode(CHAT))])
    with torch.no_grad():
        return Start(*model.network.read([embeds_TE]), embeds_TE)


def test_rollouts_say_how_likely_they_were_to_who_drew_them(model: LocalModel) -> None:
    start, temperature = begin(model), 0.7
    rows = model.sample(
        start, [Row(max_new_tokens=16, temperature=temperature, seed=seed) for seed in range(4)], lambda: False
    )
    assert start.embeds_TE is not None
    assert len({tuple(row.tokens) for row in rows}) > 1
    for seed, row in enumerate(rows):
        assert (row.seed, len(row.tokens), row.finished) == (seed, 16, False)
        if isinstance(model._serving, OutsideDrawing):
            after_TV = model.network.extend(
                start.prefix.shared(1), torch.tensor([row.tokens[:-1]], device=model.network.device)
            )[0]
            known_TV = (torch.cat([start.logits_1V, after_TV]) / temperature).log_softmax(dim=-1)
            known = [float(known_V[token]) for known_V, token in zip(known_TV, row.tokens, strict=True)]
            assert row.sampler_logprobs == pytest.approx(known, abs=1e-3)
        else:
            assert not row.sampler_logprobs


def test_rollouts_stop_when_nobody_wants_them(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elm_agent.models.engine._LOOK_SECONDS", 0.0)  # they may be drawn before it looks
    rows = [Row(max_new_tokens=150, temperature=1.0, seed=seed) for seed in range(4)]
    with pytest.raises(JobCancelled):
        model.sample(begin(model), rows, lambda: True)
    assert list(model.generate([ask(model)])[0].token_ids) == slow_greedy(model, ask(model))[0]


def test_a_memory_is_trained_and_its_ratios_are_kept(model: LocalModel) -> None:
    recipe = Recipe(virtual_tokens=4, rollouts=4, steps=2, max_new_tokens=6, temperature=1.0)
    trained = GrpoTrainer(model, get_task("text")).train("What is 2 + 3?", recipe=recipe, seed=1)
    assert len(trained.curve) == 2
    for record in trained.curve:
        if isinstance(model._serving, OutsideDrawing):
            assert record.ratio_mean is None or record.ratio_mean == pytest.approx(1, abs=0.01)
        else:
            assert record.ratio_mean is None
    answer = model.generate([ask(model, prefix=trained.prompt)])[0]
    assert list(answer.token_ids) == slow_greedy(model, ask(model, prefix=trained.prompt))[0]


def test_scores_do_not_depend_on_how_they_are_taken(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    embeds_TE, tokens = model.network.embed(model.encode(CHAT)), list(range(40, 70))
    once = scores(model.network, embeds_TE, tokens)
    monkeypatch.setattr("elm_agent.models.outside._SCORED_AT_ONCE", 7)
    in_parts = scores(model.network, embeds_TE, tokens)
    for whole, parts in zip(once, in_parts, strict=True):
        assert len(whole) == len(tokens)
        assert parts == pytest.approx(whole, abs=1e-4)
    ids_1T = torch.tensor([[*model.encode(CHAT), *tokens]], device=model.network.device)
    slow_TV = model.network.model(input_ids=ids_1T).logits[0].log_softmax(dim=-1)
    known = [float(known_V[token]) for known_V, token in zip(slow_TV[-31:-1], tokens, strict=True)]
    assert once[0] == pytest.approx(known, abs=1e-4)
    uniform = math.log(slow_TV.shape[1])
    assert once[1] == pytest.approx([float(-known_V.mean()) - uniform for known_V in slow_TV[-31:-1]], abs=1e-4)


@pytest.mark.parametrize("engine", ["native", "twin"])
def test_closing_finishes_what_is_queued(engine: str, tmp_path: Path) -> None:
    model = open_engine(engine, tmp_path / "model")
    queued = [model.submit(ask(model, max_new_tokens=30)) for _ in range(3)]
    model.close()
    assert [len(reply.result(timeout=PATIENCE).token_ids) for reply in queued] == [30, 30, 30]
    with pytest.raises(ModelError, match="closed"):
        model.submit(ask(model))
    with pytest.raises(ModelError, match="closed"):
        model.sample(begin(model), [Row(max_new_tokens=2)], lambda: False)
    model.close()


def test_an_engine_that_fails_fails_its_rows_alone(tmp_path: Path) -> None:
    model = open_engine("twin", tmp_path / "model", trouble=failing_at(seed=7, token=3))
    source = model._serving._source
    good, bad = model.submit(ask(model, seed=1)), model.stream(ask(model, seed=7))
    with pytest.raises(ModelError, match="the engine is gone"):
        list(bad)
    assert len(good.result(timeout=PATIENCE).token_ids) == 8
    with pytest.raises(ModelError, match="the engine is gone"):
        model.sample(begin(model), [Row(max_new_tokens=9, seed=7), Row(max_new_tokens=9, seed=8)], lambda: False)
    model.close()
    assert source.closed == 1
    assert source.left == 4  # no row is still being drawn


def test_what_is_no_prompt_is_refused(tmp_path: Path) -> None:
    model = open_engine("twin", tmp_path / "model")
    start = begin(model)
    start.embeds_TE = None  # as of a memory that is no soft prompt
    with pytest.raises(InputError, match="engine 'native'"):
        model.sample(start, [Row(max_new_tokens=2)], lambda: False)
    model.close()


def test_a_row_that_is_given_up_at_once_leaves_no_trace(tmp_path: Path) -> None:
    model = open_engine("twin", tmp_path / "model")
    for _ in range(20):
        tokens: queue.SimpleQueue[Drawn | None] = queue.SimpleQueue()
        reply = model._serving.submit(ask(model, max_new_tokens=100), tokens)
        assert reply.cancel()
        with pytest.raises(CancelledError):
            reply.result(timeout=PATIENCE)
        while tokens.get(timeout=PATIENCE) is not None:
            pass
    model.close()
