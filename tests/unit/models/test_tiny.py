"""The tiny model is a real one: it loads, splits text into bytes and is the same for the same seed."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from elm_agent.testing.tiny import tiny_tokenizer, write_tiny_model


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3_text", "gpt2"])
def test_loads_with_the_size_asked_for(tmp_path: Path, architecture: str) -> None:
    folder = write_tiny_model(tmp_path / "model", layers=3, width=16, architecture=architecture)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_hidden_layers == 3
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 16)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_same_seed_same_weights(tmp_path: Path) -> None:
    files = [write_tiny_model(tmp_path / str(i), seed=s) / "model.safetensors" for i, s in enumerate((3, 3, 4))]
    first, again, other = (path.read_bytes() for path in files)
    assert first == again
    assert first != other


def test_does_not_touch_the_callers_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    write_tiny_model(tmp_path / "model", seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_float64(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", dtype=torch.float64)
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float64


@pytest.mark.parametrize("text", ["7 + 8 = ?", "naïve – 数", "  two  spaces\n\n", "\\boxed{3}"])
def test_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_chat_template() -> None:
    tokenizer = tiny_tokenizer()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(text)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert ids.count(tokenizer.eos_token_id) == 1
