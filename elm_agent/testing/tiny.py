"""A random tiny causal language model in a folder, for tests that need a real but small one.

It is loaded like any other local folder. Knows nothing of the network: every file is made here. Text is
split into single bytes, so that every string has tokens and one character of ASCII is one token.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from elm_agent.models.quiet import quiet

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CHATML_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '\n<tool_call>\n' }}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with a place for tools, whose calls are JSON between two marks."""


def write_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    width: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    architecture: str = "llama",
    dtype: torch.dtype = torch.float32,
    context_length: int = 1024,
    chat_template: str = CHATML,
) -> Path:
    """Write a model with random weights, its tokenizer (259 tokens) and ChatML template; returns ``folder``.

    ``architecture`` is a ``model_type`` of transformers such as ``llama``, ``mistral``, ``qwen2``, ``qwen3``,
    ``gemma3_text`` or ``gpt2`` (which has no separate key heads: ``kv_heads`` is ignored). ``width`` is E, a
    multiple of ``heads``. The same arguments give the same weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(chat_template)
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    specials = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end}
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        # Ten times the usual spread: the logits of so narrow a model would hardly differ otherwise.
        initializer_range=0.2,
        **_sizes(architecture, layers, width, heads, kv_heads, context_length),
        **specials,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(dtype)
    model.generation_config = GenerationConfig(**specials)
    with quiet():
        model.save_pretrained(folder)
    return folder


def tiny_tokenizer(chat_template: str = CHATML) -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes and ``SPECIAL_TOKENS``, without merges."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def _sizes(
    architecture: str, layers: int, width: int, heads: int, kv_heads: int, context_length: int
) -> dict[str, int]:
    if architecture == "gpt2":
        return {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": context_length}
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
        "max_position_embeddings": context_length,
    }
