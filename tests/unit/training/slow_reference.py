"""Losses the obvious way, and the tiny models to compare them on: what the trainer's gradients are held against."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.records import Recipe
from elm_agent.testing.tiny import write_tiny_model


def open_model(folder: Path, **options: Any) -> LocalModel:
    dtype = options.pop("dtype", "float32")
    loaded = load_pretrained(str(write_tiny_model(folder, **options)), device="cpu", dtype=dtype, offline=True)
    return LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)


def slow_logprobs(
    model: torch.nn.Module,
    start: list[torch.Tensor],
    prompt_ids: list[int],
    completion: list[int],
    temperature: float,
) -> list[torch.Tensor]:
    """One log-probability a token: a full forward pass from ``start``, embeddings (V, E), no cache."""
    text = model.get_input_embeddings()(torch.tensor(prompt_ids + completion))
    embeds = torch.cat([*start, text])[None]
    logits = model(inputs_embeds=embeds).logits[0] / temperature
    first = embeds.shape[1] - len(completion)
    return [logits[first - 1 + t].log_softmax(-1)[token] for t, token in enumerate(completion)]


def slow_greedy(model: torch.nn.Module, prompt_ids: list[int], limit: int, end_ids: tuple[int, ...]) -> list[int]:
    """The most likely completion of the bare prompt: a full forward pass for each token."""
    completion: list[int] = []
    while len(completion) < limit and not (completion and completion[-1] in end_ids):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt_ids + completion])).logits[0, -1]
        completion.append(int(logits.argmax()))
    return completion


def slow_loss(
    model: torch.nn.Module,
    prompt_VE: torch.Tensor,
    initial_VE: torch.Tensor,
    prompt_ids: list[int],
    completions: list[list[int]],
    rewards: list[float],
    recipe: Recipe,
    sampler: list[list[float]] | None = None,
) -> torch.Tensor:
    """The step's loss the obvious way, completion by completion and token by token.

    ``sampler``: the log-probabilities with which each token was drawn, where another sampler drew them.
    """
    mean = sum(rewards) / len(rewards)
    total = torch.zeros((), dtype=torch.float64)
    for index, (completion, reward) in enumerate(zip(completions, rewards, strict=True)):
        policy = slow_logprobs(model, [prompt_VE], prompt_ids, completion, recipe.temperature)
        with torch.no_grad():
            start = [] if recipe.kl_reference == "base" else [initial_VE]
            reference = slow_logprobs(model, start, prompt_ids, completion, recipe.temperature)
        for place, (new, ref) in enumerate(zip(policy, reference, strict=True)):
            ratio = (new - new.detach()).exp()
            advantage = reward - mean
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - recipe.clip_eps, 1 + recipe.clip_eps) * advantage)
            if sampler is not None:
                gain = gain * min(math.exp(float(new.detach()) - sampler[index][place]), 2.0)
            k3 = (ref - new).exp() - (ref - new) - 1
            total = total - gain + recipe.beta * k3
    return total / (len(completions) * recipe.max_new_tokens)
