"""Distilling: the loss and its gradient against the slow reference, what teachers think, what a student learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from slow_reference import open_model

from elm_agent.adapters import Kept
from elm_agent.errors import InputError, JobCancelled, TrainingError
from elm_agent.models.engine import LocalModel
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Recipe
from elm_agent.softprompt import SoftPrompt
from elm_agent.tasks import get_task
from elm_agent.training import GrpoTrainer, distilling, numerics
from elm_agent.training.distilling import Distiller, Lesson
from elm_agent.training.parameterisations import LearningPrompt

QUESTIONS = ["What is 2 plus 3?", "Name a colour", "What is 9 times 9, in words?"]
RECIPE = Recipe(objective="distilled", virtual_tokens=5, steps=2, max_new_tokens=6, learning_rate=0.01)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    model = open_model(tmp_path_factory.mktemp("tiny"), dtype="float64")
    yield model
    model.close()


def memory_of(seed: int, model: LocalModel, rows: int = 5) -> SoftPrompt:
    noise = torch.Generator().manual_seed(seed)
    return SoftPrompt(0.3 * torch.randn(rows, model.network.width, generator=noise))


def lessons_of(model: LocalModel, count: int = 3) -> list[Lesson]:
    """Teachers of other lengths than the student."""
    return [Lesson(one, memory_of(n, model, rows=4 + n)) for n, one in enumerate(QUESTIONS[:count], 1)]


def slow_logits(model: LocalModel, prompt_VE: torch.Tensor, ids: list[int], tokens: list[int]) -> torch.Tensor:
    """(T, vocabulary): one full forward pass, no cache, no padding."""
    network = model.network.model
    text_TE = network.get_input_embeddings()(torch.tensor(ids + tokens))
    embeds = torch.cat([prompt_VE.to(text_TE), text_TE])[None]
    first = embeds.shape[1] - len(tokens)
    return network(inputs_embeds=embeds).logits[0, first - 1 : -1]


def slow_loss(model: LocalModel, prompt_VE: torch.Tensor, lessons: list[Lesson], limit: int) -> torch.Tensor:
    """Every lesson, every token, every word of the vocabulary, one after the other."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    task = get_task("text")
    for lesson in lessons:
        ids = list(model.encode(task.messages(lesson.question)))
        assert isinstance(lesson.memory, SoftPrompt)
        teacher_VE, written = lesson.memory.prompt_VE, []
        with torch.no_grad():
            while len(written) < limit and not (written and written[-1] in model.end_ids):
                written.append(int(slow_logits(model, teacher_VE, ids, [*written, 0])[-1].argmax()))
            teacher_TV = slow_logits(model, teacher_VE, ids, written).double().softmax(-1)
        student_TV = slow_logits(model, prompt_VE, ids, written).double().softmax(-1)
        for p_V, q_V in zip(teacher_TV, student_TV, strict=True):
            total = total + sum(p * (p.log() - q.log()) for p, q in zip(p_V, q_V, strict=True))
        tokens += len(written)
    return total / tokens


def test_the_loss_has_the_value_and_gradient_of_the_slow_reference(
    tiny: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons, initial = lessons_of(tiny), memory_of(9, tiny)
    found: list[torch.Tensor] = []

    def kept(parameters: list[torch.Tensor], *_: object) -> float:
        (prompt_VE,) = parameters
        assert prompt_VE.grad is not None
        found.append(prompt_VE.grad.clone())
        return float(prompt_VE.grad.norm())

    monkeypatch.setattr(distilling, "descend", kept)
    made = Distiller(tiny, get_task("text")).distil(lessons, initial=initial, recipe=replace(RECIPE, steps=1))
    prompt_VE = initial.prompt_VE.double().requires_grad_(True)
    expected = slow_loss(tiny, prompt_VE, lessons, RECIPE.max_new_tokens)
    expected.backward()
    assert prompt_VE.grad is not None
    assert expected.item() > 0.01, "the students would have nothing to learn"
    torch.testing.assert_close(made.curve[0].loss, expected.item(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found[0].double(), prompt_VE.grad, rtol=1e-4, atol=1e-7)


def test_the_divergence_is_the_textbook_one() -> None:
    teacher = torch.log(torch.tensor([[0.5, 0.25, 0.25], [1.0, 1.0, 2.0]]))
    student = torch.log(torch.tensor([[0.25, 0.25, 0.5], [3.0, 3.0, 6.0]]))
    expected = [0.5 * torch.log(torch.tensor(2.0)) + 0.25 * torch.log(torch.tensor(0.5)), torch.tensor(0.0)]
    torch.testing.assert_close(numerics.kl_divergence(teacher, student), torch.stack(expected))


@pytest.mark.parametrize("parameterisation", ["soft_prompt", "prefix", "lora"])
def test_a_teacher_of_any_kind_is_read_as_it_answers(tiny: LocalModel, parameterisation: str) -> None:
    task, limit = get_task("text"), 6
    recipe = Recipe(
        parameterisation=parameterisation, virtual_tokens=4, steps=2, rollouts=2, max_new_tokens=4, lora_rank=2
    )
    memory: Kept = GrpoTrainer(tiny, task).train(QUESTIONS[0], recipe=recipe, seed=1).prompt  # type: ignore[assignment]
    ids = tiny.encode(task.messages(QUESTIONS[1]))
    [written] = tiny.generate([GenerationRequest(prompt_ids=ids, prefix=memory, max_new_tokens=limit)])
    taught = Distiller(tiny, task)._taught(ids, Lesson(QUESTIONS[1], memory), written)
    logprobs_TV = distilling.logits_of(tiny.network, taught.prefix, taught).log_softmax(-1)
    assert logprobs_TV.argmax(-1).tolist() == list(written.token_ids), "it is greedy"
    mean = logprobs_TV.max(-1).values.mean().item()
    assert mean == pytest.approx(written.mean_logprob, abs=1e-6)
    again_TV = distilling.logits_of(tiny.network, taught.prefix, taught).log_softmax(-1)
    assert torch.equal(again_TV, logprobs_TV), "asking leaves what it has read alone"


def test_a_student_comes_to_write_what_its_teachers_write(tiny: LocalModel) -> None:
    lessons, initial, task = lessons_of(tiny, 2), memory_of(9, tiny), get_task("text")
    told: list[int] = []
    recipe = replace(RECIPE, steps=40, learning_rate=0.05)
    made = Distiller(tiny, task).distil(
        lessons, initial=initial, recipe=recipe, observe=lambda _name, detail: told.append(detail["step"])
    )
    assert told == list(range(40))
    first, last = made.curve[0], made.curve[-1]
    assert last.loss < first.loss / 5
    assert last.vote_share >= first.vote_share
    assert [one.text for one in made.rollouts] == [
        row.text
        for row in tiny.generate(
            [
                GenerationRequest(
                    prompt_ids=tiny.encode(task.messages(one.question)), prefix=one.memory, max_new_tokens=6
                )
                for one in lessons
            ]
        )
    ]
    assert isinstance(made.prompt, SoftPrompt)
    assert made.prompt.prompt_VE.shape == initial.prompt_VE.shape
    assert made.keys.kv is not None
    again = Distiller(tiny, task).distil(lessons, initial=initial, recipe=recipe)
    assert isinstance(again.prompt, SoftPrompt)
    assert torch.equal(again.prompt.prompt_VE, made.prompt.prompt_VE), "there is no chance in it"


def test_a_teacher_alone_has_nothing_to_teach_itself(tiny: LocalModel) -> None:
    own = memory_of(3, tiny)
    made = Distiller(tiny, get_task("text")).distil(
        [Lesson(QUESTIONS[0], own)], initial=own, recipe=replace(RECIPE, steps=1)
    )
    assert made.curve[0].loss == pytest.approx(0.0, abs=1e-9)
    assert made.curve[0].vote_share == 1.0


def test_what_it_refuses_and_that_it_stops(tiny: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lessons, initial = lessons_of(tiny), memory_of(9, tiny)
    distil = Distiller(tiny, get_task("text")).distil
    with pytest.raises(InputError, match="nothing to distil"):
        distil([], initial=initial, recipe=RECIPE)
    with pytest.raises(InputError, match="objective 'grpo_majority' of a 'soft_prompt'"):
        distil(lessons, initial=initial, recipe=Recipe(virtual_tokens=5))
    with pytest.raises(InputError, match="virtual_tokens is 7, the prompt to begin with has 5"):
        distil(lessons, initial=initial, recipe=replace(RECIPE, virtual_tokens=7))
    with pytest.raises(InputError, match="more than the model's context"):
        distil(lessons, initial=initial, recipe=replace(RECIPE, max_new_tokens=2000))
    asked = iter([False] * 5 + [True] * 9)
    with pytest.raises(JobCancelled, match="stopped after 1 of 2 steps"):
        distil(lessons, initial=initial, recipe=RECIPE, cancelled=lambda: next(asked))

    def broken(student: LearningPrompt, *_: object, **__: object) -> tuple[float, int]:
        with torch.no_grad():
            student.prompt_VE += float("nan")
        return float("nan"), 0

    monkeypatch.setattr(distilling, "pull", broken)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        distil(lessons, initial=initial, recipe=RECIPE)
