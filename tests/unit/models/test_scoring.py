"""Scores of given tokens: those of a plain pass of the network, with any memory and in any company."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from elm_agent.errors import InputError, ModelMismatch
from elm_agent.models import scoring
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.models.logs import log_of
from elm_agent.models.scoring import score
from elm_agent.softprompt import SoftPrompt
from elm_agent.testing.tiny import write_tiny_model

CONTEXT = [10, 11, 12, 13, 14]
CONTINUATIONS = [[20], [21, 22, 23], [24, 25], [26, 27, 28, 29, 30, 31, 32]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LocalModel]:
    made: dict[str, LocalModel] = {}

    def make(architecture: str) -> LocalModel:
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            write_tiny_model(folder, architecture=architecture, context_length=64)
            loaded = load_pretrained(str(folder), device="cpu", dtype="float64", offline=True)
            made[architecture] = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)
        return made[architecture]

    return make


def slowly(model: LocalModel, embeds_TE: torch.Tensor, context: list[int], after: list[int]) -> tuple[float, bool]:
    """One row, one pass, all logits: embeddings first, if there are any."""
    network = model.network
    with torch.no_grad():
        rows_TE = torch.cat([embeds_TE, network.embed([*context, *after])])
        logits_TV = network.model(inputs_embeds=rows_TE[None]).logits[0, -len(after) - 1 : -1]
    chosen = logits_TV.log_softmax(dim=-1)[torch.arange(len(after)), torch.tensor(after)]
    return float(chosen.sum()), logits_TV.argmax(dim=-1).tolist() == after


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_scores_are_those_of_one_plain_pass(make: Callable[[str], LocalModel], architecture: str) -> None:
    model = make(architecture)
    nothing = model.network.embed([0])[:0]
    for got, after in zip(score(model, CONTEXT, CONTINUATIONS), CONTINUATIONS, strict=True):
        logprob, greedy = slowly(model, nothing, CONTEXT, after)
        assert got.logprob == pytest.approx(logprob, abs=1e-9)
        assert got.greedy is greedy


def test_neither_company_nor_pieces_change_a_score(
    make: Callable[[str], LocalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("llama")
    together = score(model, CONTEXT, CONTINUATIONS)
    alone = [score(model, CONTEXT, [one])[0] for one in CONTINUATIONS]
    pairs = score(model, CONTEXT, CONTINUATIONS, rows=2)
    monkeypatch.setattr(scoring, "_LOGITS", 1)  # a position at a time
    pieces = score(model, CONTEXT, CONTINUATIONS)
    for other in (alone, pairs, pieces):
        assert [one.logprob for one in other] == pytest.approx([one.logprob for one in together], abs=1e-9)
        assert [one.greedy for one in other] == [one.greedy for one in together]


def test_what_the_model_would_say_is_greedy(make: Callable[[str], LocalModel]) -> None:
    model = make("llama")
    said: list[int] = []
    for _ in range(4):
        with torch.no_grad():
            said.append(int(model.network.read([model.network.embed([*CONTEXT, *said])])[1].argmax()))
    other = [*said[:-1], (said[-1] + 1) % 259]
    assert [one.greedy for one in score(model, CONTEXT, [said, other, said[:1]])] == [True, False, True]


def test_a_memory_is_read_before_the_context(make: Callable[[str], LocalModel]) -> None:
    model = make("llama")
    prompt = SoftPrompt(prompt_VE=torch.randn(3, 32, generator=torch.Generator().manual_seed(1)), memory_id="soft")
    with_it = score(model, CONTEXT, CONTINUATIONS, memory=prompt)
    for got, after in zip(with_it, CONTINUATIONS, strict=True):
        assert got.logprob == pytest.approx(slowly(model, prompt.prompt_VE.double(), CONTEXT, after)[0], abs=1e-6)
    states, _ = log_of(model, [{"role": "user", "content": "six?"}], "It is 6.", memory_id="log")
    without = score(model, CONTEXT, CONTINUATIONS)
    log = score(model, CONTEXT, CONTINUATIONS, memory=states)
    assert all(abs(a.logprob - b.logprob) > 1e-6 for a, b in zip(log, without, strict=True))
    assert [one.logprob for one in log] == pytest.approx(
        [score(model, CONTEXT, [one], memory=states)[0].logprob for one in CONTINUATIONS], abs=1e-9
    )


def test_the_last_position_of_the_context_can_be_scored(make: Callable[[str], LocalModel]) -> None:
    for architecture in ("llama", "gpt2"):
        model = make(architecture)
        nothing = model.network.embed([0])[:0]
        context, after = list(range(40, 90)), list(range(100, 114))  # 63 positions are read
        [got] = score(model, context, [after])
        assert got.logprob == pytest.approx(slowly(model, nothing, context, after)[0], abs=1e-9)
        score(model, context, [[*after, 5]])
        with pytest.raises(InputError, match="65 positions are to be read, more than the model's context of 64"):
            score(model, context, [[*after, 5, 6]])


def test_what_cannot_be_scored_is_refused(make: Callable[[str], LocalModel]) -> None:
    model = make("llama")
    with pytest.raises(InputError, match="at least one token before"):
        score(model, [], [[1]])
    with pytest.raises(InputError, match="at least one to score"):
        score(model, CONTEXT, [[1], []])
    wide = SoftPrompt(prompt_VE=torch.zeros(2, 16), memory_id="other")
    with pytest.raises(ModelMismatch, match="use the model it was made with"):
        score(model, CONTEXT, [[1]], memory=wide)
