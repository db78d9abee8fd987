"""A process reward model in the format of Qwen2.5-Math-PRM: a probability that each step of a solution is right.

The plain Qwen2 backbone of transformers with a two-layer head of our own, so no code of a checkpoint ever runs,
and safetensors only. Names of tensors, ``model.*`` and ``score.{0,2}.*``, are those of the public checkpoints
(Qwen/Qwen2.5-Math-PRM-7B). Knows nothing of candidates or verdicts.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2Model, Qwen2PreTrainedModel

from elm_agent.errors import InputError, ModelError, ModelUnavailable

STEP_TOKEN = "<extra_0>"
"""Follows every step; the head is read there."""

SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."


class ProcessRewardNetwork(Qwen2PreTrainedModel):  # type: ignore[misc]  # transformers is not typed for us
    """Qwen2 without its language head, and Linear(H, H), ReLU, Linear(H, 2) on every position asked for."""

    _keys_to_ignore_on_load_unexpected = (r"lm_head\.",)

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.post_init()

    def forward(self, tokens_BT: torch.Tensor, where_BT: torch.Tensor) -> torch.Tensor:
        """Logits (N, 2) of the N positions where the bool mask ``where_BT`` holds, row by row, left to right.

        Rows are padded on the right: attention is causal, so no real position sees a pad and no mask is needed.
        """
        hidden_BTH = self.model(input_ids=tokens_BT, use_cache=False).last_hidden_state
        logits_N2: torch.Tensor = self.score(hidden_BTH[where_BT])
        return logits_N2


class ProcessRewardModel:
    """A loaded process reward model with its tokenizer. Safe from any thread, one batch at a time.

    Raises:
        ModelError: the tokenizer has no ``<extra_0>`` or no chat template.
    """

    def __init__(self, network: ProcessRewardNetwork, tokenizer: PreTrainedTokenizerBase) -> None:
        step_id = tokenizer.get_vocab().get(STEP_TOKEN)
        if step_id is None:
            raise ModelError(
                f"the tokenizer has no token {STEP_TOKEN!r}, which marks the end of a step: "
                "expected a process reward model in the format of Qwen2.5-Math-PRM"
            )
        if not tokenizer.chat_template:
            raise ModelError(
                "the tokenizer of the process reward model has no chat template: add the one it came with"
            )
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.step_id = int(step_id)
        self._lock = threading.Lock()

    @property
    def context_length(self) -> int:
        """Most tokens of question and solution together."""
        return int(self.network.config.max_position_embeddings)

    def encode(self, question: str, steps: Sequence[str]) -> list[int]:
        """Token ids of the chat of a question and its solution, with exactly one ``<extra_0>`` after each step.

        Raises:
            InputError: there is no step, or the chat is longer than the context.
        """
        if not steps:
            raise InputError("a solution has no step to judge: expected at least one")
        # The marker written out in a text would be taken for one of ours and shift every score behind it.
        question, *steps = (_readable(text.replace(STEP_TOKEN, "")) for text in (question, *steps))
        chat = self.tokenizer.apply_chat_template(
            [
                {"role": "system", "content": SYSTEM_PROMPT},
                {"role": "user", "content": question},
                {"role": "assistant", "content": "".join(step + STEP_TOKEN for step in steps)},
            ],
            tokenize=False,
            add_generation_prompt=False,
        )
        ids: list[int] = self.tokenizer(chat, add_special_tokens=False)["input_ids"]
        if len(ids) > self.context_length:
            raise InputError(
                f"question and solution take {len(ids)} tokens; the process reward model reads {self.context_length}"
            )
        return ids

    def step_probabilities(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each row of token ids, the probability in [0, 1] of class 1 at every ``<extra_0>``, in order."""
        if not rows:
            return []
        device = self.network.device
        tokens = [torch.tensor(row, dtype=torch.long) for row in rows]
        tokens_BT = pad_sequence(tokens, batch_first=True, padding_value=-1)
        where_BT = tokens_BT == self.step_id  # before pads become a token, so that no pad is ever read
        with self._lock, torch.inference_mode():
            logits_N2 = self.network(tokens_BT.clamp(min=0).to(device), where_BT.to(device))
        right_N = logits_N2.float().softmax(dim=-1)[:, 1].cpu()
        return [part.tolist() for part in right_N.split(where_BT.sum(dim=1).tolist())]


def load_process_reward_model(
    folder: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto"
) -> ProcessRewardModel:
    """Load the model in a local ``folder``; ``dtype`` "auto" is that of the checkpoint.

    Raises:
        ModelUnavailable: the folder, its config or its safetensors are not there.
        ModelError: not a process reward model: another config, no head, no step token.
    """
    path = Path(folder)
    config = _read_config(path)
    if not any(path.glob("*.safetensors")):
        raise ModelUnavailable(
            f"process reward model {str(path)!r} has no .safetensors file; other formats are not read"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        network, info = ProcessRewardNetwork.from_pretrained(
            path,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"process reward model {str(path)!r} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        part = "head" if any(name.startswith("score.") for name in missing) else "backbone"
        raise ModelError(
            f"{str(path)!r} is not a process reward model: its {part} lacks {', '.join(missing[:3])} "
            "(expected model.*, score.0.* and score.2.* as in Qwen2.5-Math-PRM)"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return ProcessRewardModel(network.to(device), tokenizer)


def _read_config(path: Path) -> Qwen2Config:
    """The backbone's config, without the parts that name code of the checkpoint."""
    try:
        values: dict[str, Any] = json.loads((path / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        what = "has no config.json" if path.is_dir() else "does not exist"
        raise ModelUnavailable(
            f"process reward model folder {str(path)!r} {what}: set verification.prm_path to a downloaded model"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(path / 'config.json')!r} cannot be read: {_first_line(error)}") from None
    if not isinstance(values, dict) or values.get("model_type") != "qwen2":
        got = values.get("model_type") if isinstance(values, dict) else type(values).__name__
        raise ModelError(f"{str(path)!r} is not a process reward model: expected model type 'qwen2', got {got!r}")
    values.pop("auto_map", None)
    return Qwen2Config.from_dict(values)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _readable(text: str) -> str:
    """``text`` as a tokenizer takes it: lone surrogates, which no encoding has, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
