"""The reference back end on a tiny model: its records, what it refuses, and the base model it gives back."""

from __future__ import annotations

import importlib.util
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed: pip install 'elm-agent[trl]'")

import peft

from elm_agent.errors import InputError, JobCancelled, ModelError, SettingsError, TaskError, TrainingError
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Recipe
from elm_agent.runtime import open_runtime
from elm_agent.settings import Settings
from elm_agent.tasks import get_task
from elm_agent.testing.tiny import write_tiny_model
from elm_agent.training import GrpoTrainer, RecipeTrainer, numerics, trl_run, trl_trainer
from elm_agent.training.trl_trainer import TrlTrainer

QUESTION = "What is 2 plus 3?"
RECIPE = Recipe(trainer="trl", rollouts=4, steps=2, max_new_tokens=5, virtual_tokens=4, learning_rate=0.05, beta=0.01)


def open_model(folder: Path, **options: Any) -> LocalModel:
    loaded = load_pretrained(str(write_tiny_model(folder, **options)), device="cpu", dtype="float32", offline=True)
    return LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    model = open_model(tmp_path_factory.mktemp("tiny"))
    yield model
    model.close()


def describe(model: LocalModel) -> dict[str, Any]:
    """Everything about the network but the numbers in its weights, and a digest of those."""
    network = model.network.model
    parts = [*network.named_modules(), ("config", network.config), ("generation_config", network.generation_config)]
    told: dict[str, Any] = {
        f"{name}.{key}": sorted(map(str, value)) if isinstance(value, dict) else repr(value)
        for name, part in parts
        for key, value in vars(part).items()
    }
    told["weights"] = [float(value.double().sum()) for value in network.state_dict().values()]
    told["gradients"] = [(p.requires_grad, p.grad) for p in network.parameters()]
    told["forward"] = type(network).forward is network.forward.__func__
    return told


def answer(model: LocalModel) -> tuple[int, ...]:
    ids = model.encode(get_task("text").messages("Say something."))
    return model.generate([GenerationRequest(prompt_ids=ids, max_new_tokens=8)])[0].token_ids


def test_the_record_is_that_of_the_native_trainer(model: LocalModel) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    trained = TrlTrainer(model, get_task("text")).train(
        QUESTION, recipe=RECIPE, seed=7, observe=lambda name, detail: seen.append((name, detail))
    )
    native = GrpoTrainer(model, get_task("text")).train(QUESTION, recipe=replace(RECIPE, trainer="native"), seed=7)
    assert trained.prompt.prompt_VE.dtype == torch.float32
    assert trained.prompt.prompt_VE.shape == native.prompt.prompt_VE.shape
    assert not trained.prompt.prompt_VE.requires_grad
    assert trained.keys.input.shape == native.keys.input.shape
    assert trained.keys.kv is not None
    assert trained.seed == 7
    assert [name for name, _ in seen] == ["train.step"] * 2
    assert [detail["loss"] for _, detail in seen] == [record.loss for record in trained.curve]
    assert [(r.step, r.index) for r in trained.rollouts] == [(r.step, r.index) for r in native.rollouts]
    for record in trained.curve:
        group = [rollout for rollout in trained.rollouts if rollout.step == record.step]
        assert record.tokens == sum(rollout.tokens for rollout in group)
        assert record.reward_mean == pytest.approx(record.vote_share)
        assert record.kl > 0
        assert record.grad_norm > 0
        assert record.seconds_rollout > 0
        assert record.seconds_update > 0
    assert not torch.equal(
        trained.prompt.prompt_VE, numerics.initial_prompt(model.text_embeddings(QUESTION), RECIPE.virtual_tokens)
    )


def test_the_same_seed_gives_the_same_memory_and_the_application_keeps_its_random_numbers(model: LocalModel) -> None:
    trainer = TrlTrainer(model, get_task("text"))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    one, same, other = (trainer.train(QUESTION, recipe=RECIPE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.prompt.prompt_VE, same.prompt.prompt_VE)
    assert [r.text for r in one.rollouts] == [r.text for r in same.rollouts]
    assert [r.text for r in one.rollouts] != [r.text for r in other.rollouts]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


class Breaking:
    """A task that fails, or does something else, at one of its calls."""

    name = "breaking"

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.act, self.calls = at, act, 0

    def messages(self, question: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}]

    def extract(self, text: str) -> str | None:
        self.calls += 1
        if self.calls == self.at:
            self.act()
        return text[:1]

    def equivalent(self, left: str, right: str) -> bool:
        return left == right


def fail(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize("ending", ["done", "cancelled", "cancelled within", "error", "interrupt", "while sampling"])
def test_the_base_model_comes_back_as_it_was(model: LocalModel, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, said = describe(model), answer(model)
    steps: list[str] = []
    asked = iter([False, True])  # before the first step and within it

    def cancelled() -> bool:
        return next(asked) if ending == "cancelled within" else ending == "cancelled" and len(steps) == 1

    def train(task: Any = None) -> None:
        TrlTrainer(model, task or get_task("text")).train(
            QUESTION,
            recipe=RECIPE,
            seed=0,
            observe=lambda name, _: steps.append(name),
            cancelled=cancelled,
        )

    match ending:
        case "done":
            train()
        case "cancelled":
            with pytest.raises(JobCancelled, match="stopped before step 2 of 2, as asked"):
                train()
        case "cancelled within":
            with pytest.raises(JobCancelled, match="stopped within step 1 of 2, as asked"):
                train()
            assert not steps
        case "error":
            with pytest.raises(ZeroDivisionError):
                train(Breaking(6, fail(ZeroDivisionError())))
        case "interrupt":
            with pytest.raises(KeyboardInterrupt):
                train(Breaking(6, fail(KeyboardInterrupt())))
        case "while sampling":
            monkeypatch.setattr(type(model.network.model), "_sample", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train()
            monkeypatch.undo()
    after = describe(model)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == set()
    assert answer(model) == said
    with model.training():  # the lease is free
        pass


def test_a_native_memory_is_the_same_before_and_after(model: LocalModel) -> None:
    native = replace(RECIPE, trainer="native")
    before = GrpoTrainer(model, get_task("text")).train(QUESTION, recipe=native, seed=1)
    TrlTrainer(model, get_task("text")).train(QUESTION, recipe=RECIPE, seed=1)
    after = GrpoTrainer(model, get_task("text")).train(QUESTION, recipe=native, seed=1)
    assert torch.equal(before.prompt.prompt_VE, after.prompt.prompt_VE)


def test_answers_between_and_within_steps_have_the_clean_model(model: LocalModel) -> None:
    before, said = describe(model), answer(model)
    differing: list[set[str]] = []

    def look() -> None:
        now = describe(model)
        differing.append({name for name in now.keys() | before.keys() if now.get(name) != before.get(name)})
        assert answer(model) == said

    TrlTrainer(model, Breaking(2, look)).train(QUESTION, recipe=RECIPE, seed=0, observe=lambda *_: look())
    assert differing == [set()] * 3


def test_two_threads_train_one_after_the_other_while_answers_go_on(model: LocalModel) -> None:
    said, found = answer(model), {}

    def train(seed: int) -> None:
        found[seed] = TrlTrainer(model, get_task("text")).train(QUESTION, recipe=RECIPE, seed=seed)

    alone = TrlTrainer(model, get_task("text")).train(QUESTION, recipe=RECIPE, seed=2)
    threads = [threading.Thread(target=train, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert answer(model) == said
    assert torch.equal(found[2].prompt.prompt_VE, alone.prompt.prompt_VE)
    assert not torch.equal(found[1].prompt.prompt_VE, alone.prompt.prompt_VE)


def test_a_training_that_waits_for_another_can_be_cancelled(model: LocalModel) -> None:
    with (
        trl_trainer._ONE_AT_A_TIME,
        pytest.raises(JobCancelled, match="stopped before step 1 of 2, as asked"),
    ):
        TrlTrainer(model, get_task("text")).train(QUESTION, recipe=RECIPE, seed=0, cancelled=lambda: True)


def test_a_reward_that_fails_is_recorded_and_pulls_nowhere(model: LocalModel) -> None:
    task = Breaking(2, fail(TaskError("the checker broke")))
    trained = TrlTrainer(model, task).train(QUESTION, recipe=replace(RECIPE, steps=1), seed=0)
    assert [rollout.failure for rollout in trained.rollouts] == [None, "the checker broke", None, None]
    assert trained.rollouts[1].reward is None
    valid = [rollout.reward for rollout in trained.rollouts if rollout.reward is not None]
    assert trained.final.reward_mean == pytest.approx(sum(valid) / 3)


def test_a_loss_that_is_not_finite_ends_the_training_with_a_sentence(tmp_path: Path) -> None:
    model = open_model(tmp_path, architecture="gpt2")
    before = describe(model)
    with pytest.raises(TrainingError, match=r"step 2: .*lower the learning rate") as failed:
        TrlTrainer(model, get_task("text")).train(
            QUESTION, recipe=replace(RECIPE, steps=3, learning_rate=1e30, beta=0.1), seed=0
        )
    assert [record.step for record in failed.value.curve] == [0]
    assert describe(model) == before
    model.close()


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"trainer": "native"}, "recipe: trainer is 'native'; trainer 'trl' knows 'trl'"),
        ({"kl_reference": "initial"}, "recipe: kl_reference is 'initial'; trainer 'trl' knows 'base'"),
        ({"parameterisation": "lora"}, "recipe: parameterisation is 'lora'; trainer 'trl' knows 'soft_prompt'"),
        ({"objective": "sft_greedy"}, "recipe: objective is 'sft_greedy'; trainer 'trl' knows 'grpo_majority'"),
        ({"kv_heads": "keep"}, "recipe: kv_heads is 'keep'; trainer 'trl' knows 'mean'"),
        ({"max_new_tokens": 1000}, r"context of 1024: lower `learning.max_new_tokens`"),
    ],
)
def test_a_recipe_that_trl_would_not_follow_is_refused(
    model: LocalModel, changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        TrlTrainer(model, get_task("text")).train(QUESTION, recipe=replace(RECIPE, **changed), seed=0)


def test_the_native_trainer_refuses_a_recipe_for_trl(model: LocalModel) -> None:
    with pytest.raises(InputError, match="recipe: trainer is 'trl'; this trainer knows 'native'"):
        GrpoTrainer(model, get_task("text")).train(QUESTION, recipe=RECIPE, seed=0)


def test_options_that_cannot_be_are_refused(model: LocalModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="micro_batch is 3: expected a divisor of the group's 4 rollouts"):
        TrlTrainer(model, get_task("text"), micro_batch=3).train(QUESTION, recipe=RECIPE, seed=0)
    dropping = open_model(tmp_path, architecture="gpt2")
    with pytest.raises(InputError, match=r"has dropout 0\.1: leave it off"):
        TrlTrainer(dropping, get_task("text"), gradient_checkpointing=True).train(QUESTION, recipe=RECIPE, seed=0)
    dropping.close()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's own, of transformers' names
@pytest.mark.parametrize("kind", ["wrapped", "injected"])
def test_a_model_that_peft_has_touched_is_refused(tmp_path: Path, kind: str) -> None:
    model = open_model(tmp_path)
    wrapped = peft.get_peft_model(model.network.model, peft.LoraConfig(task_type="CAUSAL_LM"))
    if kind == "wrapped":
        model.network.model = wrapped  # what a caller with a PeftModel would hand over
    with pytest.raises(ModelError, match="carries a PEFT adapter, expected the bare model"):
        TrlTrainer(model, get_task("text")).train(QUESTION, recipe=RECIPE, seed=0)
    model.close()


def test_a_missing_package_is_one_sentence(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "peft" else find(name, *more)
    )
    with pytest.raises(SettingsError, match=r"trainer 'trl' needs peft: run `pip install 'elm-agent\[trl\]'`"):
        RecipeTrainer(model, get_task("text")).named("trl")


# --- what it leaves alone ------------------------------------------------------------------------------

_watched: list[tuple[str, str]] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    writes = event == "open" and isinstance(arguments[1], str) and any(flag in arguments[1] for flag in "wax+")
    if writes or event in ("socket.connect", "socket.getaddrinfo", "os.mkdir", "subprocess.Popen"):
        _watched.append((event, str(arguments[1 if event == "socket.connect" else 0])))


def test_nothing_is_printed_sent_or_written_outside_a_temporary_folder(
    model: LocalModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    global _watched
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)  # TRL sends its telemetry outside CI only
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", False)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    sys.addaudithook(_watch)
    _watched = []
    try:
        TrlTrainer(model, get_task("text")).train(QUESTION, recipe=RECIPE, seed=0)
        for thread in threading.enumerate():  # telemetry would go out in one of its own
            if thread.daemon and thread.name.startswith("Thread"):
                thread.join(5)
    finally:
        happened, _watched = _watched, None
    assert {(event, name) for event, name in happened if not name.startswith(str(folder))} == set()
    assert list(folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert capfd.readouterr() == ("", "")


# --- chosen by settings --------------------------------------------------------------------------------


def test_settings_choose_it_and_the_memory_says_so(tmp_path: Path) -> None:
    folder = str(write_tiny_model(tmp_path / "model"))
    learning = {"trainer": "trl", "steps": 1, "rollouts": 2, "max_new_tokens": 4, "virtual_tokens": 4}
    settings = Settings(model=folder, home=tmp_path / "bank", task="text", learning=learning)
    with open_runtime(settings, worker={"mode": "external"}) as runtime:
        native = replace(runtime.recipe, trainer="native")
        for recipe in (runtime.recipe, native):
            runtime.bank.jobs.enqueue(
                "default", QUESTION, task="text", model_id=runtime.model.fingerprint.id, recipe=recipe
            )
        assert runtime.worker().run(once=True) == 2
        made = runtime.bank.memories("default")
        assert sorted(memory.recipe.trainer for memory in made) == ["native", "trl"]


def test_recipes_of_before_keep_their_ids() -> None:
    first = "sha256:6ef1deda53b9ef53150965edc00c8e43a7094e5cadd8838b276274e3bd00032a"  # when recipes had no trainer
    assert Recipe().id != replace(Recipe(), trainer="trl").id
    assert Recipe().id == first


def test_a_trainer_of_ones_own_and_the_setting_are_one_too_many(tmp_path: Path) -> None:
    from elm_agent.testing.doubles import FakeModel, FakeTrainer

    with pytest.raises(SettingsError, match=r"trainer= is given, and learning\.trainer is 'trl': leave one of them"):
        open_runtime(home=tmp_path, model=FakeModel(), trainer=FakeTrainer(), learning={"trainer": "trl"})


def test_the_configuration_is_ours_whatever_trl_defaults_to() -> None:
    config = trl_run._config(RECIPE, 1, torch.device("cpu"), "unused", False, None)
    assert (config.loss_type, config.scale_rewards, config.use_bias_correction_kl) == ("dr_grpo", "none", False)
    assert (config.beta, config.epsilon, config.num_iterations) == (RECIPE.beta, RECIPE.clip_eps, 1)
    assert not any([config.bf16, config.fp16, config.use_vllm, config.use_transformers_continuous_batching])
    assert config.report_to == []
