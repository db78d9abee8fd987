"""Training one memory: the algorithm of the paper, step by step (METHOD section 1).

Kept from GRPO: groups, clipping, the k3 KL term. Dropped: a critic, division by the group's standard deviation,
per-length division. Exact savings, because the base is frozen and the question is shared: its keys and values
are computed once per step (with gradient) and serve rollouts and update alike; logits are taken for completion
tokens only; the reference reads the bare question once per memory.
Knows nothing of stores, jobs or routes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from elm_agent.errors import JobCancelled, TrainingError
from elm_agent.models.decoding import Row, decode
from elm_agent.models.engine import LocalModel
from elm_agent.models.network import Network, Prefix
from elm_agent.protocols import Observer, Task, Trained
from elm_agent.records import Recipe, Rollout, StepRecord
from elm_agent.softprompt import SoftPrompt
from elm_agent.training import numerics
from elm_agent.training.checks import refuse_others, refuse_too_long
from elm_agent.training.judging import judge


class GrpoTrainer:
    """Distils one question into one soft prompt by GRPO with majority-vote rewards. A ``Trainer``.

    The model is held only within a step's two halves (rollouts, update), so that answers go in between.
    """

    def __init__(self, model: LocalModel, task: Task) -> None:
        self.model = model
        self.task = task

    def train(
        self,
        question: str,
        *,
        recipe: Recipe,
        seed: int,
        observe: Observer = lambda _name, _detail: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Trained:
        """See ``Trainer.train``. The trajectory is a function of (question, recipe, seed) and the model."""
        prompt_ids = self.model.encode(self.task.messages(question))
        _check(recipe, self.model, len(prompt_ids))
        network, started = self.model.network, time.perf_counter()
        text_TE, last_id = network.embed(prompt_ids[:-1]), prompt_ids[-1]
        # 1. The memory begins as the question's own embeddings; it is the only trainable tensor.
        prompt_VE = numerics.initial_prompt(self.model.text_embeddings(question), recipe.virtual_tokens)
        prompt_VE.requires_grad_(True)
        optimizer = torch.optim.AdamW([prompt_VE], lr=recipe.learning_rate, weight_decay=0.0)
        reference = self._reference(recipe, prompt_VE, text_TE)
        curve: list[StepRecord] = []
        rollouts: list[Rollout] = []
        for step in range(recipe.steps):
            if cancelled():
                raise JobCancelled(f"stopped before step {step + 1} of {recipe.steps}, as asked")
            # 2a. G completions from the current memory.
            tick = time.perf_counter()
            with self.model.training():
                prefix, _ = network.read([torch.cat([prompt_VE.to(network.dtype), text_TE])])
                rows = sample_group(network, prefix, last_id, self.model.end_ids, recipe, seed=seed, step=step)
            seconds_rollout = time.perf_counter() - tick
            # 2b. Votes are the rewards: 1 for the most common answer's class, else 0.
            group, answer, share = judge(self.model, self.task, rows, step)
            # 2c. Advantages against the group's mean.
            advantages_G = numerics.group_advantages([rollout.reward for rollout in group])
            # 2d, 2e. One clipped policy-gradient step on the memory alone.
            tick = time.perf_counter()
            with self.model.training():
                loss, kl, clipped = backward(network, prefix, reference, last_id, rows, advantages_G, recipe)
                norm = descend(prompt_VE, optimizer, recipe.max_grad_norm)
            if not (torch.isfinite(prompt_VE).all() and loss == loss and norm < float("inf")):
                raise TrainingError(f"step {step + 1}: loss {loss}, gradient norm {norm}: lower the learning rate")
            rewards = [rollout.reward for rollout in group if rollout.reward is not None]
            record = StepRecord(
                step=step,
                majority_answer=answer,
                vote_share=share,
                reward_mean=sum(rewards) / len(rewards),
                loss=loss,
                kl=kl,
                grad_norm=norm,
                clip_fraction=clipped,
                tokens=sum(rollout.tokens for rollout in group),
                finished_share=sum(rollout.finished for rollout in group) / len(group),
                seconds_rollout=seconds_rollout,
                seconds_update=time.perf_counter() - tick,
            )
            # 3. The whole trajectory is kept.
            curve.append(record)
            rollouts.extend(group)
            observe("train.step", asdict(record))
        prompt = SoftPrompt(prompt_VE.detach().to("cpu", torch.float32).contiguous())
        return Trained(
            prompt=prompt,
            keys=self.model.keys(prompt),
            curve=tuple(curve),
            rollouts=tuple(rollouts),
            seed=seed,
            seconds=time.perf_counter() - started,
        )

    def _reference(self, recipe: Recipe, prompt_VE: torch.Tensor, text_TE: torch.Tensor) -> Prefix | None:
        """What KL pulls towards, read once: the bare model's view of the question, or the initial memory's."""
        if recipe.beta == 0:
            return None
        network = self.model.network
        with self.model.training(), torch.no_grad():
            start = [text_TE] if recipe.kl_reference == "base" else [prompt_VE.to(network.dtype), text_TE]
            return network.read([torch.cat(start)])[0]


def rollout_seed(seed: int, step: int, index: int) -> int:
    """A 63-bit seed from (memory, step, rollout), so that results never depend on what trains beside it."""
    digest = hashlib.sha256(f"{seed}/{step}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def sample_group(
    network: Network,
    prefix: Prefix,
    last_id: int,
    end_ids: Sequence[int],
    recipe: Recipe,
    *,
    seed: int,
    step: int,
) -> list[Row]:
    """G sampled completions of the one row in ``prefix`` (which lacks the last prompt token), without gradient."""
    rows = [
        Row(
            max_new_tokens=recipe.max_new_tokens,
            temperature=recipe.temperature,
            seed=rollout_seed(seed, step, index),
        )
        for index in range(recipe.rollouts)
    ]
    with torch.no_grad():
        shared = prefix.shared(len(rows), detach=True)
        last_B1 = torch.full((len(rows), 1), last_id, device=network.device)
        decode(network, shared, network.extend(shared, last_B1)[:, -1], rows, end_ids)
    return rows


def completion_logprobs(
    network: Network, prefix: Prefix, last_id: int, tokens_GT: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Log-probabilities (G, T) of right-padded completions after the one row in ``prefix`` and its last token."""
    last_G1 = torch.full((tokens_GT.shape[0], 1), last_id, device=tokens_GT.device)
    inputs_GT = torch.cat([last_G1, tokens_GT[:, :-1]], dim=1)
    logits_GTV = network.extend(prefix.shared(tokens_GT.shape[0]), inputs_GT)
    return numerics.token_logprobs(logits_GTV, tokens_GT, temperature)


def backward(
    network: Network,
    prefix: Prefix,
    reference: Prefix | None,
    last_id: int,
    rows: Sequence[Row],
    advantages_G: torch.Tensor,
    recipe: Recipe,
) -> tuple[float, float, float]:
    """Put the gradient of the loss on the memory. Returns loss, mean KL per token (nats) and clipped share."""
    if reference is None and not bool(advantages_G.any()):
        return 0.0, 0.0, 0.0  # every term is exactly zero, and so is the gradient
    tokens_GT, mask_GT = completions([row.tokens for row in rows], network.device)
    logprobs_GT = completion_logprobs(network, prefix, last_id, tokens_GT, recipe.temperature)
    old_GT = logprobs_GT.detach()  # one update per group: the sampling policy is the current one
    objective_GT = numerics.clipped_objective(logprobs_GT, old_GT, advantages_G, recipe.clip_eps)
    kl_GT = None
    if reference is not None:
        with torch.no_grad():
            reference_GT = completion_logprobs(network, reference, last_id, tokens_GT, recipe.temperature)
        kl_GT = numerics.kl_k3(logprobs_GT, reference_GT)
    loss = numerics.dr_grpo_loss(objective_GT, kl_GT, mask_GT, max_tokens=recipe.max_new_tokens, beta=recipe.beta)
    torch.autograd.backward(loss)
    kl = 0.0 if kl_GT is None else float((kl_GT.detach() * mask_GT).sum() / mask_GT.sum())
    return float(loss.detach()), kl, numerics.clip_fraction(logprobs_GT.detach(), old_GT, mask_GT, recipe.clip_eps)


def descend(prompt_VE: torch.Tensor, optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """Clip the gradient, take one optimizer step, clear the gradient. Returns the norm before clipping."""
    if prompt_VE.grad is None:  # nothing pulled; the optimizer still steps with its momentum
        prompt_VE.grad = torch.zeros_like(prompt_VE)
    norm = float(torch.nn.utils.clip_grad_norm_([prompt_VE], max_norm))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def completions(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Completions padded on the right with 0: tokens (G, T) int64, and the bool mask (G, T) of what is real."""
    longest = max(len(row) for row in rows)
    tokens_GT = torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows], device=device)
    lengths_G = torch.tensor([len(row) for row in rows], device=device)
    return tokens_GT, torch.arange(longest, device=device)[None, :] < lengths_G[:, None]


def _check(recipe: Recipe, model: LocalModel, prompt_length: int) -> None:
    """Raise ``InputError`` for what this trainer cannot do, or could do and not keep: before the first step."""
    known = {
        "trainer": "native",
        "parameterisation": "soft_prompt",
        "objective": "grpo_majority",
        "kv_heads": model.kv_heads,
    }
    refuse_others(recipe, known)
    refuse_too_long(recipe, model, prompt_length)
