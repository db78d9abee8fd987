"""The tiny model as a GGUF file, for tests of what reads such files."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def write_tiny_gguf(folder: Path, target: Path) -> Path:
    """Write the Llama model in ``folder`` (of ``write_tiny_model``) to ``target`` in float32; returns ``target``."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    _add_tokenizer(writer, folder, end=config["eos_token_id"])
    for name, weight in load_file(folder / "model.safetensors").items():
        if "q_proj" in name:
            weight = _interleaved(weight, heads)
        elif "k_proj" in name:
            weight = _interleaved(weight, kv_heads)
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, *, end: int) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    added = [token["content"] for token in tokenizer["added_tokens"]]
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [token for token in added if token not in vocabulary]
    kinds = [gguf.TokenType.CONTROL if token in added else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_scores([0.0] * len(tokens))  # readers derive merges from scores: none here
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_chat_template((folder / "chat_template.jinja").read_text("utf-8"))


def _interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    # Rotary halves lie side by side in GGUF's Llama, one after the other in safetensors.
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
