"""TRL's ``GRPOTrainer`` bent to METHOD section 1: one question, one soft prompt, our votes as its rewards.

The only module that imports TRL, PEFT and datasets; imported when a memory is trained with them. What TRL does
silently otherwise is set here, each setting with its reason. Knows nothing of leases, records or jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, PromptTuningConfig, PromptTuningInit, TaskType
from peft.tuners.tuners_utils import BaseTunerLayer
from trl import GRPOConfig, GRPOTrainer

from elm_agent.errors import ModelError
from elm_agent.records import Recipe

Rewards = Callable[[list[list[int]]], Sequence[float | None]]
"""From the token ids of a group's completions to its rewards; None: the reward failed."""


class GroupRun(GRPOTrainer):  # type: ignore[misc]
    """One memory's training on TRL.

    Args:
        network: the frozen base, lent (see ``models.lending``): it comes back wrapped and patched.
        prompt_ids: token ids of the question in its template; every rollout begins with them.
        initial_VE: what the memory begins as.
        end_ids: the tokens that end a rollout; none: each runs to its limit.
        seed_of: the seed of a step's rollouts; TRL draws a whole group from one stream.
        rewards: judges each group.
        stepped: called after every optimizer step with TRL's log of it.
        folder: TRL wants one; nothing is written there.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        tokenizer: Any,
        *,
        prompt_ids: Sequence[int],
        initial_VE: torch.Tensor,
        end_ids: Sequence[int],
        recipe: Recipe,
        seed_of: Callable[[int], int],
        rewards: Rewards,
        stepped: Callable[[dict[str, float]], None],
        folder: str,
        gradient_checkpointing: bool = False,
        micro_batch: int | None = None,
    ) -> None:
        self._prompt_ids, self._seed_of, self._stepped = list(prompt_ids), seed_of, stepped
        self.seconds_rollout = 0.0
        vars(network)["generation_config"] = _plain_generation(network, end_ids)
        if not gradient_checkpointing:  # which works in training mode only
            vars(network)["train"] = lambda _mode=True: network  # eval mode: no dropout in a frozen model
        device = next(network.parameters()).device

        def reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
            return list(rewards(completion_ids))

        super().__init__(
            model=network,
            processing_class=tokenizer,
            reward_funcs=[reward],
            args=_config(recipe, seed_of(0), device, folder, gradient_checkpointing, micro_batch),
            train_dataset=Dataset.from_dict({"prompt": [""]}),  # the tokens are ours, see _tokenize_prompts
            peft_config=PromptTuningConfig(
                task_type=TaskType.CAUSAL_LM,
                num_virtual_tokens=recipe.virtual_tokens,
                prompt_tuning_init=PromptTuningInit.RANDOM,  # its TEXT would put special tokens before the question
            ),
        )
        self.callback_handler.callbacks = [  # only what steers the loop; the others print
            callback
            for callback in self.callback_handler.callbacks
            if type(callback).__name__ == "DefaultFlowCallback"
        ]
        self.eos_token_ids = _ends(end_ids)  # TRL adds the tokenizer's own, and cuts rollouts there
        self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = _ends(end_ids)
        with torch.no_grad():
            self.prompt_VE.copy_(initial_VE)

    @property
    def prompt_VE(self) -> torch.nn.Parameter:
        """The memory: (V, E), at least float32."""
        weight: torch.nn.Parameter = self.model.prompt_encoder["default"].embedding.weight
        return weight

    def _send_telemetry(self) -> None:
        """Nothing leaves this machine."""

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self._prompt_ids) for _ in prompts], None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(self._seed_of(self.state.global_step))
        started = time.perf_counter()
        drawn = super()._generate_single_turn(*args, **kwargs)
        self.seconds_rollout = time.perf_counter() - started
        return drawn

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "grad_norm" in logs:  # a step's log, not the summary at the end
            self._stepped(logs)


def refuse_wrapped(network: torch.nn.Module) -> None:
    """Raise ``ModelError`` for a model that PEFT has wrapped or changed: its KL reference would be another one."""
    wrapped = isinstance(network, PeftModel)
    if wrapped or any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        raise ModelError(
            f"the model ({type(network).__name__}) carries a PEFT adapter, expected the bare model: merge it into "
            "the weights (`merge_and_unload`) or unload it, and give what is left"
        )


def _config(
    recipe: Recipe,
    seed: int,
    device: torch.device,
    folder: str,
    gradient_checkpointing: bool,
    micro_batch: int | None,
) -> GRPOConfig:
    rows = micro_batch or recipe.rollouts
    config = GRPOConfig(
        output_dir=folder,
        # the group: all rollouts of one step from the current memory, one update
        num_generations=recipe.rollouts,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=recipe.rollouts // rows,
        max_steps=recipe.steps,
        max_completion_length=recipe.max_new_tokens,
        temperature=recipe.temperature,
        seed=seed % 2**32,
        generation_kwargs={"remove_invalid_values": True},  # NaN is for the loss to show; drawing from it crashes
        # the loss
        loss_type="dr_grpo",
        scale_rewards="none",  # the loss type alone does not switch the division off
        beta=recipe.beta,
        use_bias_correction_kl=False,  # on by default: it changes the gradient of the k3 term
        epsilon=recipe.clip_eps,
        # AdamW as in the paper: constant rate, nothing but the memory
        optim="adamw_torch",
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=recipe.max_grad_norm,
        # arithmetic: that of the model's weights; TRL would choose bf16 autocast, on a CPU too
        bf16=False,
        fp16=False,
        use_cpu=device.type == "cpu",
        activation_checkpointing=gradient_checkpointing,
        # silence
        report_to="none",
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite would be logged as the last finite one
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    if config.device.type == "cuda":
        config._n_gpu = 1  # a second GPU in the machine is not ours
    return config


def _plain_generation(network: torch.nn.Module, end_ids: Sequence[int]) -> Any:
    """End tokens and nothing else: a penalty or a cut-off of the model's own would sample from another policy."""
    own: Any = network.generation_config
    ends = _ends(end_ids)
    return type(own)(eos_token_id=ends, pad_token_id=own.pad_token_id, bos_token_id=own.bos_token_id)


def _ends(end_ids: Sequence[int]) -> list[int]:
    return list(end_ids) or [-1]  # never drawn; none at all would be filled in from the tokenizer
