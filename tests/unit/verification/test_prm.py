"""The process reward format on a tiny random model of the public shape."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config

from elm_agent.errors import InputError, ModelError, ModelUnavailable, VerificationError
from elm_agent.models.prm import (
    STEP_TOKEN,
    SYSTEM_PROMPT,
    ProcessRewardModel,
    ProcessRewardNetwork,
    load_process_reward_model,
)
from elm_agent.records import Candidate
from elm_agent.testing.tiny import tiny_tokenizer
from elm_agent.verification import ProcessReward
from elm_agent.verification.prm import aggregate, split_steps


def write_tiny_prm(folder: Path, *, step_token: str | None = STEP_TOKEN) -> Path:
    tokenizer = tiny_tokenizer()
    if step_token:
        tokenizer.add_special_tokens({"additional_special_tokens": [step_token]})
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ProcessRewardNetwork(config)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_prm(tmp_path_factory.mktemp("prm"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ProcessRewardModel:
    return load_process_reward_model(folder, device="cpu")


def candidate(text: str) -> Candidate:
    return Candidate(
        text=text, answer=None, tokens=1, mean_logprob=0.0, self_certainty=0.0, finished=True, seconds=0.0
    )


SOLUTIONS = (
    "Seven times eight.\n\nThat is 56.\n\nSo \\boxed{56}.",
    "It is 54.",
    "First 7 * 8 = 7 * 4 * 2.\n\nThen 28 * 2.\n\n56\n\n\n\nDone, and this row is the longest one of all.",
)


def slow_scores(folder: Path, question: str, text: str) -> list[float]:
    """One row, no padding, no mask, the head by hand from the file's tensors, one position after another."""
    model = load_process_reward_model(folder, device="cpu")
    tensors = load_file(folder / "model.safetensors")
    chat = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
    chat += "<|im_start|>assistant\n"
    for step in split_steps(text):
        chat += step + STEP_TOKEN
    ids = model.tokenizer(chat + "<|im_end|>\n", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        hidden = model.network.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    scores = []
    for position, token in enumerate(ids):
        if token == model.tokenizer.convert_tokens_to_ids(STEP_TOKEN):
            inner = torch.relu(tensors["score.0.weight"] @ hidden[position] + tensors["score.0.bias"])
            wrong, right = (tensors["score.2.weight"] @ inner + tensors["score.2.bias"]).tolist()
            scores.append(math.exp(right) / (math.exp(right) + math.exp(wrong)))
    return scores


def test_tensor_names_are_those_of_the_public_checkpoints(folder: Path) -> None:
    names = load_file(folder / "model.safetensors").keys()
    assert {name for name in names if not name.startswith("model.")} == {
        "score.0.weight",
        "score.0.bias",
        "score.2.weight",
        "score.2.bias",
    }
    assert "model.embed_tokens.weight" in names
    assert "model.layers.1.self_attn.q_proj.bias" in names


def test_scores_agree_with_a_slow_loop_and_padding_changes_nothing(folder: Path, model: ProcessRewardModel) -> None:
    question = "What is 7 times 8?"
    rows = [model.encode(question, split_steps(text)) for text in SOLUTIONS]
    together = model.step_probabilities(rows)
    assert [len(steps) for steps in together] == [3, 1, 4]
    for row, text, steps in zip(rows, SOLUTIONS, together, strict=True):
        assert steps == pytest.approx(slow_scores(folder, question, text), abs=1e-5)
        assert model.step_probabilities([row])[0] == pytest.approx(steps, abs=1e-6)
        assert all(0 < step < 1 for step in steps)
    assert model.step_probabilities(rows[::-1])[::-1] == [pytest.approx(steps, abs=1e-6) for steps in together]
    flat = [step for steps in together for step in steps]
    assert len({round(step, 4) for step in flat}) == len(flat), "steps must be told apart for the test to mean much"


def test_a_pad_is_never_read_even_if_its_id_is_the_step_token(folder: Path) -> None:
    model = load_process_reward_model(folder, device="cpu")
    model.step_id = 0  # the id that pads become
    assert [len(steps) for steps in model.step_probabilities([[5, 0], [5, 0, 6, 0, 7, 8]])] == [1, 2]


def test_a_step_depends_on_what_stands_before_it_only(model: ProcessRewardModel) -> None:
    short = model.step_probabilities([model.encode("q", ["one"])])[0]
    longer = model.step_probabilities([model.encode("q", ["one", "two"])])[0]
    assert longer[0] == pytest.approx(short[0], abs=1e-6)


def test_a_step_token_written_in_the_texts_adds_no_score(model: ProcessRewardModel) -> None:
    rows = [model.encode(f"q {STEP_TOKEN}", [f"a{STEP_TOKEN}b", "c"])]
    assert [len(steps) for steps in model.step_probabilities(rows)] == [2]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a\n\nb", ["a", "b"]),
        ("\n\na\nstill a\n \t\n\n\nb\n\n", ["a\nstill a", "b"]),
        ("a\r\n\r\nb", ["a", "b"]),
        ("", [""]),
        (" \n\n ", [""]),
    ],
)
def test_split_steps(text: str, steps: list[str]) -> None:
    assert split_steps(text) == steps


def test_aggregates_by_hand() -> None:
    steps = [0.5, 0.9, 0.8]
    assert aggregate(steps, "product") == pytest.approx(0.36)
    assert aggregate(steps, "min") == 0.5
    assert aggregate(steps, "last") == 0.8


@pytest.mark.parametrize("how", ["product", "min", "last"])
def test_verifier_scores_in_order(model: ProcessRewardModel, how: str) -> None:
    verifier = ProcessReward(model, aggregate=how)  # type: ignore[arg-type]
    verdicts = verifier.score("What is 7 times 8?", [candidate(text) for text in SOLUTIONS])
    for verdict, text in zip(verdicts, SOLUTIONS, strict=True):
        steps = model.step_probabilities([model.encode("What is 7 times 8?", split_steps(text))])[0]
        assert verdict.score == pytest.approx(aggregate(steps, how), abs=1e-6)  # type: ignore[arg-type]
        assert verdict.detail["steps"] == pytest.approx(steps, abs=1e-6)
        assert verdict.detail["aggregate"] == how
    json.dumps([verdict.detail for verdict in verdicts])


def test_no_candidates_no_verdicts_and_an_empty_text_is_one_step(model: ProcessRewardModel) -> None:
    assert ProcessReward(model).score("q", []) == []
    assert len(ProcessReward(model).score("q", [candidate("")])[0].detail["steps"]) == 1


def test_a_solution_longer_than_the_context_is_a_verification_error(model: ProcessRewardModel) -> None:
    with pytest.raises(VerificationError, match="process reward model reads 512"):
        ProcessReward(model).score("q", [candidate("x" * 600)])


def test_a_score_that_is_not_finite_is_a_verification_error(folder: Path) -> None:
    model = load_process_reward_model(folder, device="cpu")
    torch.nn.init.constant_(model.network.score[2].bias, math.nan)
    with pytest.raises(VerificationError, match="expected a finite number"):
        ProcessReward(model).score("q", [candidate("x")])


def test_unknown_aggregate(model: ProcessRewardModel) -> None:
    with pytest.raises(InputError, match="expected product, min or last"):
        ProcessReward(model, aggregate="mean")  # type: ignore[arg-type]


# --- folders that are not what they should be ---------------------------------------------------------------


def test_missing_folder_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"does not exist: set verification\.prm_path"):
        load_process_reward_model(tmp_path / "nowhere")
    with pytest.raises(ModelUnavailable, match=r"has no config\.json"):
        load_process_reward_model(tmp_path)


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    write_tiny_prm(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match=r"no \.safetensors file"):
        load_process_reward_model(tmp_path)


def test_missing_step_token(tmp_path: Path) -> None:
    write_tiny_prm(tmp_path, step_token=None)
    with pytest.raises(ModelError, match="no token '<extra_0>'"):
        load_process_reward_model(tmp_path)


def test_missing_chat_template(model: ProcessRewardModel) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [STEP_TOKEN]})
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        ProcessRewardModel(model.network, tokenizer)


@pytest.mark.parametrize(("dropped", "part"), [("score.", "head"), ("model.layers.1.", "backbone")])
def test_missing_tensors(tmp_path: Path, dropped: str, part: str) -> None:
    write_tiny_prm(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"its {part} lacks {dropped}"):
        load_process_reward_model(tmp_path)


def test_truncated_tensors_another_architecture_and_a_broken_config(tmp_path: Path) -> None:
    write_tiny_prm(tmp_path)
    tensors = tmp_path / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_process_reward_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="expected model type 'qwen2', got 'llama'"):
        load_process_reward_model(tmp_path)
    config.write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_process_reward_model(tmp_path)


def test_wrong_head_shape(tmp_path: Path) -> None:
    write_tiny_prm(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["score.2.weight"] = torch.zeros(3, 32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_process_reward_model(tmp_path)


def test_code_in_the_folder_never_runs(tmp_path: Path, folder: Path) -> None:
    write_tiny_prm(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    config["architectures"] = ["Qwen2ForProcessRewardModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    loaded = load_process_reward_model(tmp_path, device="cpu")
    original = load_process_reward_model(folder, device="cpu")
    row = loaded.encode("q", ["a", "b"])
    assert loaded.step_probabilities([row]) == original.step_probabilities([row])
