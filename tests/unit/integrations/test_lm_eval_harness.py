"""The LM Evaluation Harness itself, on a small task of a local file, with the agent as its model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: run `pip install 'elm-agent[lm-eval]'`")

import lm_eval
import yaml
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from elm_agent.errors import InputError, NotFound, SettingsError
from elm_agent.integrations.langgraph import build_graph
from elm_agent.integrations.lm_eval import ElmAgentLM
from elm_agent.integrations.lm_eval.opening import temperature_of
from elm_agent.runtime import open_bank, open_runtime
from elm_agent.settings import Settings
from elm_agent.testing.tiny import write_tiny_model

pytestmark = pytest.mark.filterwarnings("default")  # the harness's libraries are not held to ours

ROWS = [
    {"question": "what is one", "answer": "yes", "choices": ["a", "b cd"], "gold": 0},
    {"question": "name a colour", "answer": "no", "choices": ["red", "e"], "gold": 1},
    {"question": "say two words", "answer": "yes", "choices": ["hm", "two words"], "gold": 0},
]
LEARNED = ("what is one", "how are you")
SETTINGS: dict[str, Any] = {
    "task": "text",
    "max_new_tokens": 6,
    "dtype": "float32",
    "device": "cpu",
    "offline": True,
    "index": "exact",
}
LEARNING = {"steps": 1, "rollouts": 2, "max_new_tokens": 3, "virtual_tokens": 8, "learning_rate": 0.5}

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), context_length=256)


@pytest.fixture(scope="module")
def home(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with two memories."""
    folder = tmp_path_factory.mktemp("bank")
    with open_runtime(
        Settings(home=folder, model=str(model), learning=LEARNING, worker={"mode": "inline"}, **SETTINGS)
    ) as runtime:
        graph = build_graph(runtime)
        for question in LEARNED:
            graph.invoke({"question": question})
    return folder


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> Evaluate:
    """Runs the harness on tasks of a folder of YAML; nothing of it touches the network."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    tasks: dict[str, dict[str, Any]] = {
        "tiny_texts": {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
        "tiny_choices": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "tiny_rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}} " * 30,  # several windows of the model's context
            "metric_list": [{"metric": "word_perplexity"}],
        },
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **shared, **task}))
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def evaluate(lm: Any, *names: str, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=lm, tasks=list(names or tasks), task_manager=manager, bootstrap_iters=0, **more
        )
        return found

    return evaluate


@pytest.fixture
def opened(model: Path, home: Path) -> Iterator[Callable[..., ElmAgentLM]]:
    made: list[ElmAgentLM] = []

    def open_(**arguments: Any) -> ElmAgentLM:
        given = {"model": str(model), "home": str(home)} | SETTINGS | arguments
        made.append(ElmAgentLM(**given))
        return made[-1]

    yield open_
    for lm in made:
        lm.close()


def replies(results: dict[str, Any], task: str) -> list[Any]:
    """What the model said of each document, in order."""
    samples = sorted(results["samples"][task], key=lambda sample: int(sample["doc_id"]))
    return [sample["resps"] for sample in samples]


def test_without_memories_it_is_the_harness_own_model(
    opened: Callable[..., ElmAgentLM], evaluate: Evaluate, model: Path
) -> None:
    from lm_eval.models.huggingface import HFLM

    hf = evaluate(HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=2, max_length=256))
    ours = evaluate(opened(route="zero_shot", home="nowhere"))
    assert replies(ours, "tiny_texts") == replies(hf, "tiny_texts")
    assert any(reply[0][0] for reply in replies(ours, "tiny_texts")), "the random model says something"
    for our, their in zip(replies(ours, "tiny_choices"), replies(hf, "tiny_choices"), strict=True):
        assert [float(one[0][0]) for one in our] == pytest.approx([float(one[0][0]) for one in their], abs=1e-3)
        assert [one[0][1] for one in our] == [one[0][1] for one in their], "what is greedy"
    for task, measured in hf["results"].items():
        numbers = {name: value for name, value in measured.items() if isinstance(value, float)}
        assert numbers
        assert {name: ours["results"][task][name] for name in numbers} == pytest.approx(numbers, rel=1e-4)
    info = ours["config"]["elm_agent"]
    assert (info["route"], info["routes"]) == ("zero_shot", {"no_memory": 3})


def test_a_bank_is_attached_and_only_read(opened: Callable[..., ElmAgentLM], evaluate: Evaluate, home: Path) -> None:
    def kept() -> tuple[Any, ...]:
        with closing(open_bank(Settings(home=home, index="exact"))) as bank:
            memories = [(one.id, one.state, one.uses) for one in bank.memories("default")]
            return memories, bank.uses("default"), bank.jobs.counts()

    before = kept()
    plain = evaluate(opened(route="zero_shot"))
    memory = evaluate(opened(route="memory", query="question"))
    both = evaluate(opened(route="both", query="question"), "tiny_texts")
    assert kept() == before, "nothing is learned, and no use is noted"
    info = memory["config"]["elm_agent"]
    assert (info["memories"], info["namespace"]) == (2, "default")
    assert info["routes"] == {"memory_alone": 3}
    assert replies(memory, "tiny_texts") != replies(plain, "tiny_texts")
    assert replies(memory, "tiny_choices") != replies(plain, "tiny_choices"), "scores are those with the memory"
    assert replies(memory, "tiny_rolling") == replies(plain, "tiny_rolling"), "a text alone is no question"
    taken = both["config"]["elm_agent"]["routes"]
    assert sum(taken.values()) == 3
    assert set(taken) <= {"agreed", "memory", "zero_shot"}
    for chosen, with_it, without in zip(
        *(replies(found, "tiny_texts") for found in (both, memory, plain)), strict=True
    ):
        assert chosen in (with_it, without)


def test_no_memory_serves_its_own_question(opened: Callable[..., ElmAgentLM], home: Path) -> None:
    with closing(open_bank(Settings(home=home, index="exact"))) as bank:
        of = {memory.question: memory.id for memory in bank.memories("default")}
    lm = opened(route="memory")
    for own, other in (LEARNED, LEARNED[::-1]):
        found = lm._answers.memory_of(own)
        assert found is not None
        assert found.memory_id == of[other]
    lm = opened(route="memory", retrieval__exclude_same_question=False)
    found = lm._answers.memory_of(LEARNED[0])
    assert found is not None
    assert found.memory_id == of[LEARNED[0]]


def test_a_chat_is_rendered_by_the_models_template_and_looked_up_by_what_the_user_said(
    opened: Callable[..., ElmAgentLM], evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = opened(route="memory")
    asked: list[str] = []
    find = lm._answers._find
    assert find is not None
    monkeypatch.setattr(lm._answers, "_find", lambda question: asked.append(question) or find(question))
    results = evaluate(
        lm, "tiny_texts", "tiny_choices", apply_chat_template=True, system_instruction="Be brief.", num_fewshot=0
    )
    assert asked == [row["question"] for row in ROWS], "each once, without the system's words"
    [first, *_] = sorted(results["samples"]["tiny_texts"], key=lambda sample: int(sample["doc_id"]))
    assert first["arguments"][0][0] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nwhat is one<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_ends_before_its_stop_sequence(opened: Callable[..., ElmAgentLM], evaluate: Evaluate) -> None:
    lm = opened(route="zero_shot")

    def texts(**more: Any) -> list[str]:
        results = evaluate(lm, "tiny_texts", gen_kwargs={"max_gen_toks": 40, **more})
        return [reply[0][0] for reply in replies(results, "tiny_texts")]

    whole = max(texts(), key=len)
    stop = next(letter for letter in whole if whole.index(letter) > 0)
    cut = texts(until=[stop])
    assert whole[: whole.index(stop)] in cut
    assert not any(stop in text for text in cut)


def request_of(text: str, arguments: dict[str, Any]) -> Instance:
    return Instance("generate_until", {"question": text}, (text, arguments), 0, ("tiny_texts", 0, 2))


def test_samples_differ_by_repetition_and_are_the_same_every_time(
    opened: Callable[..., ElmAgentLM], evaluate: Evaluate
) -> None:
    lm, sampling = opened(route="zero_shot"), {"do_sample": True, "temperature": 1.0}
    first, again = (replies(evaluate(lm, "tiny_texts", gen_kwargs=sampling), "tiny_texts") for _ in range(2))
    other = replies(evaluate(opened(route="zero_shot", seed=1), "tiny_texts", gen_kwargs=sampling), "tiny_texts")
    assert first == again != other
    request = request_of("say it", sampling | {"max_gen_toks": 30})
    one, two = lm.generate_until([request, request], disable_tqdm=True)
    assert one != two, "a task that asks twice wants two samples"


def test_long_prompts_lose_their_beginning_as_in_the_harness(opened: Callable[..., ElmAgentLM]) -> None:
    lm = opened(route="zero_shot")
    assert lm.tok_encode("abc") == lm._last(lm.tok_encode("xyz" * 200 + "abc"), 3)
    assert lm.get_model_info()["elm_agent"]["prompts_cut"] == 1


def test_arguments_that_make_no_sense_are_refused(opened: Callable[..., ElmAgentLM], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="route is 'best': expected both, memory, zero_shot"):
        opened(route="best")
    with pytest.raises(NotFound, match=r"no bank at home .*nowhere"):
        opened(home=str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists(), "and none is made"
    with pytest.raises(NotFound, match=r"namespace 'other' is not in the bank .* which has default"):
        opened(namespace="other")
    with pytest.raises(SettingsError, match=r"unknown setting 'retrieval\.depth'"):
        opened(retrieval__depth=3)
    with pytest.raises(InputError, match=r"generation argument top_p=0\.9 is not known here"):
        temperature_of({"do_sample": True, "top_p": 0.9})
    assert temperature_of({"do_sample": True, "top_p": 1.0, "temperature": 0.7, "until": []}) == 0.7
    assert temperature_of({"do_sample": True}) == 1.0
    assert temperature_of({"do_sample": False, "temperature": 0.0, "top_p": 0.9}) == 0.0


def test_a_document_without_the_field_is_refused(opened: Callable[..., ElmAgentLM], evaluate: Evaluate) -> None:
    with pytest.raises(InputError, match="query='title' names no text of a document: its fields are answer, choices"):
        evaluate(opened(query="title"), "tiny_texts")


def test_the_harness_finds_it_by_its_name(
    opened: Callable[..., ElmAgentLM], evaluate: Evaluate, model: Path, home: Path
) -> None:
    del opened
    arguments = f"model={model},home={home},route=memory,query=question,task=text,device=cpu,offline=True,index=exact"
    results = evaluate("elm_agent", "tiny_texts", model_args=arguments, batch_size="auto")
    assert results["config"]["elm_agent"]["routes"] == {"memory_alone": 3}
