"""Rows in flight: joining between tokens, streams, and rows that are given up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import torch

from elm_agent.models import serving
from elm_agent.models.decoding import Decoder, Row
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.models.network import Network
from elm_agent.models.serving import Start
from elm_agent.models.slots import Slots
from elm_agent.models.step import step, why_unknown
from elm_agent.models.streaming import pieces
from elm_agent.protocols import GenerationRequest
from elm_agent.softprompt import SoftPrompt
from elm_agent.testing.tiny import write_tiny_model

KNOWN = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"]
MODELS = [*KNOWN, "gpt2"]
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., LocalModel]]:
    made: list[LocalModel] = []

    def make(architecture: str = "llama") -> LocalModel:
        folder = write_tiny_model(tmp_path / architecture, architecture=architecture, context_length=256)
        loaded = load_pretrained(str(folder), device="cpu", dtype="float64", offline=True)
        model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint, join_window=0.05)
        model._serving._end_ids = ()  # rows are as long as they may be
        made.append(model)
        return model

    yield make
    for model in made:
        model.close()


def request(model: LocalModel, **options: object) -> GenerationRequest:
    return GenerationRequest(**{"prompt_ids": model.encode(CHAT), "max_new_tokens": 6, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", KNOWN)
@pytest.mark.parametrize("window", [None, 5])
def test_a_step_is_what_transformers_computes(architecture: str, window: int | None, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", architecture=architecture)
    model = load_pretrained(str(folder), device="cpu", dtype="float64", offline=True).model
    if window is not None and architecture in ("mistral", "gemma3_text"):
        model.config.sliding_window = window
        for layer in model.model.layers:
            if getattr(layer.self_attn, "sliding_window", None) is not None:
                layer.self_attn.sliding_window = window
    network, slots = Network(model), Slots()
    assert network.why_slow is None
    texts = [list(range(40, 60)), [70, 71], [65, 66, 67, 68, 69, 70, 71]]
    with torch.no_grad():
        prefix, _ = network.read([network.embed(text) for text in texts])
        slots.add(prefix.states(), prefix.mask_BL)
        for tokens in ([5, 6, 7], [8, 9, 10], [80, 81, 82]):
            texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
            logits_BV = step(model, slots, torch.tensor(tokens))
            for row, text in enumerate(texts):
                alone_V = model(torch.tensor([text])).logits[0, -1]
                torch.testing.assert_close(logits_BV[row], alone_V, rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", KNOWN)
def test_rows_that_join_in_mid_flight_are_what_they_would_be_alone(
    architecture: str, tiny_network: Callable[[str], Network]
) -> None:
    network = tiny_network(architecture)

    def begin(decoder: Decoder, ids: list[int], row: Row) -> Row:
        with torch.no_grad():
            prefix, logits_BV = network.read([network.embed(ids)])
        decoder.join(prefix, logits_BV, [row])
        return row

    def rows() -> list[Row]:
        return [
            Row(max_new_tokens=9),
            Row(max_new_tokens=4, temperature=1.0, seed=3),
            Row(max_new_tokens=90, temperature=0.8, seed=4),  # beyond the room that is made at first
        ]

    together, alone = rows(), rows()
    texts = [[65, 66, 67, 68], [70], list(range(40, 60))]
    decoder = Decoder(network, ())
    for row, ids in zip(together, texts, strict=True):
        begin(decoder, ids, row)
        decoder.step()
        decoder.step()
    while decoder.rows:
        decoder.step()
    for row, other, ids in zip(together, alone, texts, strict=True):
        decoder = Decoder(network, ())
        begin(decoder, ids, other)
        while decoder.rows:
            decoder.step()
        assert row.tokens == other.tokens
        assert row.logprobs == pytest.approx(other.logprobs, abs=1e-9)
        assert row.certainties == pytest.approx(other.certainties, abs=1e-9)


def test_what_is_not_known_is_named(tiny_network: Callable[[str], Network]) -> None:
    network = tiny_network("gpt2")
    assert "'gpt2' is not among" in str(network.why_slow)
    decoder = Decoder(network, ())
    assert decoder.open
    with torch.no_grad():
        decoder.join(*network.read([network.embed([65])]), [Row(max_new_tokens=2)])
    assert not decoder.open
    known = tiny_network("llama").model
    known.config.final_logit_softcapping = 30.0
    assert why_unknown(known) == "it caps its logits"
    del known.config.final_logit_softcapping


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_request_is_answered_while_a_longer_one_goes_on(make: Callable[..., LocalModel], architecture: str) -> None:
    model = make(architecture)
    long = model.stream(request(model, max_new_tokens=200))
    next(long)
    short = model.submit(request(model, temperature=1.0, seed=4))
    generation = short.result(timeout=300)
    assert long._reply.done() == (architecture == "gpt2")  # only known layers let a row join
    assert generation.token_ids == model.generate([request(model, temperature=1.0, seed=4)])[0].token_ids
    assert len(long.result().token_ids) == 200


def test_the_pieces_of_a_stream_are_the_text(make: Callable[..., LocalModel]) -> None:
    model = make()
    with model.stream(request(model, max_new_tokens=80, temperature=1.5, seed=2)) as stream:
        parts = list(stream)
    assert len(parts) > 3
    assert "".join(parts) == stream.result().text
    assert next(stream, None) is None


def test_a_stream_that_is_stopped_is_scored_so_far(make: Callable[..., LocalModel]) -> None:
    model = make()
    whole = model.generate([request(model, max_new_tokens=30)])[0]
    with model.stream(request(model, max_new_tokens=30)) as stream:
        assert stream.so_far() is None
        while stream.tokens < 10:
            next(stream)
        taken = stream.tokens
        cut = stream.so_far()
        list(stream)
        every = stream.so_far()
    assert cut is not None
    assert every is not None
    assert cut.token_ids == whole.token_ids[:taken]
    assert cut.finished
    assert every.token_ids == whole.token_ids
    assert (every.mean_logprob, every.self_certainty) == pytest.approx((whole.mean_logprob, whole.self_certainty))
    short = model.generate([request(model, max_new_tokens=taken)])[0]
    assert (cut.mean_logprob, cut.self_certainty) == pytest.approx((short.mean_logprob, short.self_certainty))
    assert cut.text == short.text


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_plain_row_whose_text_is_watched_is_read_first(
    make: Callable[..., LocalModel], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first piece does not wait for the memory's row. Where nobody can join later, both are read at once."""
    model = make(architecture)
    memory = SoftPrompt(torch.randn(3, model.network.width, generator=torch.Generator().manual_seed(0)), "mem_x")
    asked = [request(model, prefix=memory), request(model)]
    alone = [model.generate([one])[0].token_ids for one in asked]
    reader, read = model._serving._reader, []  # type: ignore[attr-defined]
    plainly = reader.read

    def noted(requests: list[GenerationRequest], *arguments: Any, **options: Any) -> object:
        read.append([one.prefix is None for one in requests])
        return plainly(requests, *arguments, **options)

    monkeypatch.setattr(reader, "read", noted)
    with model.training():  # until both wait
        streams = [model.stream(one) for one in asked]
    assert [stream.result().token_ids for stream in streams] == alone
    assert read == ([[True], [False]] if architecture == "llama" else [[False, True]])


def test_a_character_of_several_tokens_comes_whole() -> None:
    text = "a 日本 é!"
    parts = list(pieces(iter(text.encode()), lambda ids: bytes(ids).decode(errors="replace")))
    assert parts == ["a", " ", "日", "本", " ", "é", "!"]
    assert "".join(pieces(iter(text.encode()[:4]), lambda ids: bytes(ids).decode(errors="replace"))) == "a \ufffd"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_row_that_is_given_up_leaves_and_the_others_stay(
    make: Callable[..., LocalModel], architecture: str
) -> None:
    model = make(architecture)
    with model.stream(request(model, max_new_tokens=200)) as unwanted:
        beside = model.submit(request(model, max_new_tokens=20, temperature=1.0, seed=1))
        next(unwanted)
    with pytest.raises(CancelledError):
        unwanted.result()
    assert len(list(unwanted)) < 199
    assert beside.result(timeout=300).token_ids == model.generate([beside_request(model)])[0].token_ids
    assert not beside.cancel()


def beside_request(model: LocalModel) -> GenerationRequest:
    return request(model, max_new_tokens=20, temperature=1.0, seed=1)


def test_a_stream_says_why_its_row_failed(make: Callable[..., LocalModel]) -> None:
    model = make()
    inner = model._serving._finish
    model._serving._finish = lambda row, seconds: 1 / 0 if row.seed == 5 else inner(row, seconds)  # type: ignore[assignment,return-value]
    good, bad = model.submit(request(model)), model.stream(request(model, seed=5))
    with pytest.raises(ZeroDivisionError):
        list(bad)
    assert good.result(timeout=300).token_ids


@pytest.fixture
def start(make: Callable[..., LocalModel]) -> tuple[LocalModel, Start]:
    model = make()
    with torch.no_grad():
        prefix, logits_1V = model.network.read([model.network.embed([65, 66])])
    return model, Start(prefix, logits_1V)


def test_rollouts_for_which_memory_cannot_be_asked_learn_why_and_the_others_go_on(
    start: tuple[LocalModel, Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, group = start
    monkeypatch.setattr(serving, "spare_bytes", lambda _device: 1 // 0)
    with model.training():  # until all wait
        answer = model.submit(request(model))
        replies = model._serving.submit_group(group, [Row(max_new_tokens=3) for _ in range(2)])
    for reply in replies:
        with pytest.raises(ZeroDivisionError):
            reply.result(timeout=60)
    assert answer.result(timeout=60).token_ids
    monkeypatch.undo()
    again = model._serving.submit_group(group, [Row(max_new_tokens=3) for _ in range(2)])
    assert [len(reply.result(timeout=60).tokens) for reply in again] == [3, 3]


def test_the_engine_goes_on_after_a_pass_that_could_not_begin(
    make: Callable[..., LocalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    with monkeypatch.context() as patch:
        patch.setattr(serving, "Decoder", lambda *_: 1 // 0)
        with model.training():
            waiting = [model.submit(request(model)), model.stream(request(model))]
        with pytest.raises(ZeroDivisionError):
            waiting[0].result(timeout=60)  # type: ignore[call-arg]
        with pytest.raises(ZeroDivisionError):
            list(waiting[1])  # type: ignore[arg-type]
    assert model.submit(request(model)).result(timeout=60).token_ids
    assert model._lease._answers_waiting == 0


def test_a_thread_that_cannot_start_is_started_by_the_next_request(
    make: Callable[..., LocalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()

    def full(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", full)
        for wanted in (lambda: model.submit(request(model)), lambda: model.compute(int)):
            with pytest.raises(RuntimeError, match="start new thread"):
                wanted()
    assert model.submit(request(model)).result(timeout=60).token_ids
    assert model.compute(int) == 0


def test_a_row_that_runs_again_is_streamed_once(make: Callable[..., LocalModel]) -> None:
    model = make()
    failed = threading.Event()
    inner = model.network.read

    def failing(rows: list[torch.Tensor]) -> object:
        if len(rows) == 1 and stream_started and not failed.is_set():  # the second row's own reading
            failed.set()
            raise RuntimeError("out of memory")
        return inner(rows)

    stream_started: list[bool] = []
    stream = model.stream(request(model, max_new_tokens=60, temperature=1.0, seed=9))
    parts = [next(stream)]
    stream_started.append(True)
    model.network.read = failing  # type: ignore[method-assign,assignment]
    second = model.submit(request(model))
    parts += list(stream)
    assert failed.is_set()
    assert "".join(parts) == stream.result().text
    assert second.result(timeout=300).token_ids
