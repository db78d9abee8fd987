"""Our own tasks and verifiers, judged by the suites that we ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from elm_agent.errors import ModelError
from elm_agent.models.prm import STEP_TOKEN, ProcessRewardNetwork, load_process_reward_model
from elm_agent.protocols import Task, Verifier
from elm_agent.tasks import ChoiceTask, MathTask, NumberTask, TextTask
from elm_agent.testing.conformance import TaskSuite, VerifierCapability, VerifierSuite
from elm_agent.testing.doubles import FakeModel, FixedVerifier
from elm_agent.testing.tiny import tiny_tokenizer
from elm_agent.verification import CallableVerifier, MajorityOfSamples, MeanLogprob, ProcessReward, SelfCertainty

ALL = frozenset(VerifierCapability)


class TestMathTask(TaskSuite):
    equal = (("1/2", "0.5"), ("\\frac{1}{2}", "0.5"), ("56", "56.0"), ("x+1", "1+x"))
    different = (("1/2", "1/3"), ("56", "57"), ("x+1", "x-1"))
    boxed = (("So \\boxed{56}.", "56"), ("It is 56.", "56"))

    @pytest.fixture
    def task(self) -> Task:
        return MathTask()


class TestNumberTask(TaskSuite):
    equal = (("1,000", "1000"), ("56", "56.0"))
    different = (("56", "57"), ("-1", "1"))
    boxed = (("First 3, then \\boxed{56}.", "56"), ("3 and then 56", "56"))

    @pytest.fixture
    def task(self) -> Task:
        return NumberTask()


class TestChoiceTask(TaskSuite):
    equal = (("A", "a"),)
    different = (("A", "B"),)
    boxed = (("The answer is \\boxed{B}.", "B"),)

    @pytest.fixture
    def task(self) -> Task:
        return ChoiceTask()


class TestTextTask(TaskSuite):
    equal = (("Jane Austen", "jane  austen."), ("ﬁne", "fine"))
    different = (("Jane Austen", "Emily Brontë"),)
    boxed = (("\\boxed{Jane Austen}", "Jane Austen"), ("Jane Austen", "Jane Austen"))

    @pytest.fixture
    def task(self) -> Task:
        return TextTask()


class TestMeanLogprob(VerifierSuite):
    @pytest.fixture
    def verifier(self) -> Verifier:
        return MeanLogprob()


class TestSelfCertainty(VerifierSuite):
    @pytest.fixture
    def verifier(self) -> Verifier:
        return SelfCertainty()


class TestCallableVerifier(VerifierSuite):
    capabilities = ALL

    @pytest.fixture
    def verifier(self) -> Verifier:
        return CallableVerifier(lambda _question, item: -len(item.text))

    @pytest.fixture
    def failing(self) -> Verifier:
        return CallableVerifier(lambda _question, item: {}[item.text])


class TestMajorityOfSamples(VerifierSuite):
    capabilities = ALL

    @pytest.fixture
    def verifier(self) -> Verifier:
        return self.of(FakeModel())

    @pytest.fixture
    def failing(self) -> Verifier:
        return self.of(FakeModel(zero_shot_error=ModelError("no memory left")))

    def of(self, model: FakeModel) -> Verifier:
        return MajorityOfSamples(model=model, task=NumberTask(), samples=4, max_new_tokens=64)


class TestProcessReward(VerifierSuite):
    """A tiny random model of the public shape."""

    capabilities = ALL

    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return load_process_reward_model(_tiny(tmp_path_factory.mktemp("prm")), device="cpu")

    @pytest.fixture
    def verifier(self, model: Any) -> Verifier:
        return ProcessReward(model)

    @pytest.fixture
    def failing(self, model: Any) -> Verifier:
        class TooLong(ProcessReward):
            def score(self, question: str, candidates: Any) -> Any:
                return super().score(question * 1_000, candidates)

        return TooLong(model)


class TestFixedVerifier(VerifierSuite):
    capabilities = ALL

    @pytest.fixture
    def verifier(self) -> Verifier:
        return FixedVerifier()

    @pytest.fixture
    def failing(self) -> Verifier:
        return FixedVerifier(fail=True)


def _tiny(folder: Path) -> Path:
    import torch
    from transformers import Qwen2Config

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [STEP_TOKEN]})
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ProcessRewardNetwork(config).save_pretrained(folder)
    return folder
