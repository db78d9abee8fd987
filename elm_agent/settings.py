"""Every default of the library, with its unit and reason. Unknown keys are refused.

Sources, strongest first: arguments, environment (``ELM_MODEL``, ``ELM_LEARNING__STEPS``), a TOML file
(``load_settings(path)``), the defaults below. Settings are frozen: one object describes one runtime.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from elm_agent.errors import SettingsError
from elm_agent.records import KeyKind, Recipe

TaskName = Literal["math", "number", "choice", "text"]
_LONGEST = 2_000  # characters of a text, path or URL
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")  # and what turns text around


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        return check_text(value)


class LearningSettings(_Section):
    """How a memory is trained; becomes a ``Recipe`` (METHOD section 1)."""

    virtual_tokens: int = Field(20, ge=1, le=512, description="V, rows of a memory (paper)")
    rollouts: int = Field(8, ge=2, le=256, description="G, completions per step (paper)")
    steps: int = Field(10, ge=1, le=1000, description="S, optimizer steps (paper)")
    max_new_tokens: int = Field(32, ge=1, description="T_max, tokens; the paper's 2048 suits 7B models")
    temperature: float = Field(0.5, gt=0, description="of the rollouts; the paper: 1.0 or per model; from our sweep")
    learning_rate: float = Field(5e-3, gt=0, description="AdamW, constant; lost in the paper, from our sweep")
    beta: float = Field(0.0, ge=0, description="weight of the KL term; lost in the paper, from our sweep")
    clip_eps: float = Field(0.2, gt=0, lt=1, description="PPO clip range")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm is clipped here")
    kl_reference: Literal["base", "initial"] = Field("base", description="bare model, or the initial prompt")
    kv_heads: Literal["mean", "keep"] = Field("mean", description="pool heads in kv keys (paper), or keep them")
    min_vote_share: float = Field(
        0.0, ge=0, le=1, description="gate: final vote share below which a memory stays a candidate"
    )
    seed: int = Field(0, ge=0, description="base seed; each memory derives its own")
    trainer: Literal["native", "trl"] = Field(
        "native", description="this library's loop, or the reference: TRL and PEFT (`pip install 'elm-agent[trl]'`)"
    )
    objective: Literal["grpo_majority", "sft_greedy"] = Field(
        "grpo_majority", description="GRPO on votes (paper), or its comparison: imitate the greedy answer"
    )
    parameterisation: Literal["soft_prompt", "prefix", "lora"] = Field(
        "soft_prompt", description="what is trained: V embeddings (paper), keys and values of V positions, or B A"
    )
    lora_rank: int = Field(16, ge=1, le=256, description="of A and B; gives the paper's 42M numbers for Llama 8B")
    lora_alpha: float = Field(16.0, gt=0, description="alpha / rank times B A is added; lost in the paper")
    skip_equal_rewards: bool = Field(
        False, description="approximation: a step whose rewards are all equal changes nothing, momentum included"
    )
    stop_when_settled: int = Field(
        0, ge=0, description="approximation: stop after so many steps in a row at `settled_share`; 0: never"
    )
    settled_share: float = Field(1.0, gt=0, le=1, description="vote share from which a step counts as settled")
    rollout_weights: Literal["exact", "float16", "int8"] = Field(
        "exact", description="approximation: rollouts drawn with rounded weights on a CPU, and corrected for"
    )
    rollout_drafts: bool = Field(
        False, description="approximation: rollouts read several tokens at once, guessed from earlier rollouts"
    )

    replay_rollouts: int | None = Field(
        None, ge=2, le=256, description="with which split votes and wrong answers are learnt again; None: never"
    )
    replay_vote_share: float = Field(
        0.5, gt=0, le=1, description="final vote share below which a vote counts as split, for `replay_rollouts`"
    )

    @field_validator("objective", mode="before")
    @classmethod
    def _no_answers(cls, value: Any) -> Any:
        if value == "grpo_ground_truth":
            raise ValueError("it needs reference answers, which an agent has not: use `GrpoTrainer` for such a study")
        return value

    @field_validator("parameterisation", mode="before")
    @classmethod
    def _no_copies(cls, value: Any) -> Any:
        if value == "full":
            raise ValueError("it trains a copy of the whole model, which no bank keeps: a study uses `GrpoTrainer`")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> LearningSettings:
        recipe = self.recipe()
        if recipe.contradiction is not None:
            raise ValueError(recipe.contradiction)
        if recipe.trainer == "trl" and recipe.parameterisation != "soft_prompt":
            raise ValueError("trainer 'trl' knows the parameterisation 'soft_prompt' alone: use trainer 'native'")
        if recipe.trainer == "trl" and (recipe.objective != "grpo_majority" or recipe.approximations):
            raise ValueError(
                "trainer 'trl' knows the objective 'grpo_majority' alone, and no approximation: use trainer 'native'"
            )
        if self.replay_rollouts is not None and self.replay_rollouts <= self.rollouts:
            raise ValueError(
                f"replay_rollouts ({self.replay_rollouts}) are those of the second time: make them more than "
                f"rollouts ({self.rollouts}), or leave them out"
            )
        if self.replay_rollouts is not None and self.objective == "sft_greedy":
            raise ValueError("objective 'sft_greedy' has one completion and no votes: leave replay_rollouts out")
        return self

    def recipe(self) -> Recipe:
        """The frozen record of these settings that is stored with every memory."""
        return Recipe(**self.model_dump(exclude={"replay_rollouts", "replay_vote_share"}))


class RetrievalSettings(_Section):
    """How a memory is found (METHOD section 2)."""

    key: KeyKind = Field(KeyKind.INPUT, description="input embeddings, or attention keys of every layer")
    top_k: int = Field(1, ge=1, le=100, description="candidates looked at; the nearest usable one is taken")
    min_similarity: float = Field(-1.0, ge=-1, le=1, description="cosine below which nothing is retrieved")
    exclude_same_question: bool = Field(
        False, description="strict online stream: a memory never serves the question that made it"
    )


class UtilitySettings(_Section):
    """What memories are worth by their uses: a second phase of retrieval, and a quarantine; both off by default."""

    ranking: Literal["nearest", "mean", "ucb", "thompson"] = Field(
        "nearest", description="order of the nearest: similarity (paper), times expected utility, or exploring"
    )
    candidates: int = Field(8, ge=1, le=100, description="how many of the nearest are ordered anew")
    weight: float = Field(1.0, ge=0, le=1, description="a score is similarity x (1 + weight x utility)")
    ucb_width: float = Field(1.0, ge=0, description="standard deviations that `ucb` adds to the expected utility")
    seed: int = Field(0, ge=0, description="of `thompson`, with question and memory: the same draws every time")
    prior: float = Field(
        1.0, gt=0, description="uses' worth of helped, no difference and hurt before the first use; 1: flat"
    )
    verifier_weight: float = Field(
        0.25, ge=0, le=1, description="of a use that only the verifier judged; 2p - 1 for one that is right in p"
    )
    quarantine_harm: float | None = Field(
        None, ge=0.5, lt=1, description="probability of harm from which a memory is quarantined; None: never"
    )
    quarantine_uses: int = Field(5, ge=1, description="uses that told something, before that rule judges a memory")


class AdmissionSettings(_Section):
    """What a trained memory has to show before it may serve, beside `learning.min_vote_share`; all off by default."""

    min_vote_rise: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="vote share of the last half of the steps less the first's, in the mean; below: candidate",
    )
    min_entropy: float | None = Field(
        None, ge=0, description="nats per token of the last step's completions; below they collapsed: quarantined"
    )
    min_length_ratio: float | None = Field(
        None, gt=0, description="tokens of the last step to those of the first; below: quarantined; 0.1 is one text"
    )
    max_length_ratio: float | None = Field(
        None, gt=0, description="the same ratio; above: quarantined; it grows where answers no longer end"
    )
    max_norm_ratio: float | None = Field(
        None, ge=1, description="norm of the memory to its initial one, or the inverse; above: quarantined"
    )
    probe: bool = Field(
        False, description="try it on its own and on past questions, against their majority answers, before it serves"
    )
    probe_questions: int = Field(4, ge=0, le=100, description="past questions of a probe; each costs two completions")
    probe_max_new_tokens: int | None = Field(
        None, ge=1, description="tokens of a completion of the probe; None: as many as a rollout had"
    )
    probe_reference_share: float = Field(
        0.5, ge=0, le=1, description="final vote share from which a past majority answer is a reference; half: clear"
    )
    probe_may_lose: int = Field(
        0, ge=0, description="past questions that may go wrong beyond those that come right; above: quarantined"
    )

    @model_validator(mode="after")
    def _ordered(self) -> AdmissionSettings:
        least, most = self.min_length_ratio, self.max_length_ratio
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_length_ratio ({least:g}) is above max_length_ratio ({most:g}): nothing would pass")
        return self


class AbstentionSettings(_Section):
    """When a memory is near and still not used, as past uses tell; off by default."""

    mode: Literal["manual", "calibrated"] = Field(
        "manual", description="`retrieval.min_similarity` alone, or fitted to uses where that is not set"
    )
    min_chance: float = Field(
        0.5, gt=0, lt=1, description="chance of helping rather than hurting, below which nothing is used; 0.5: even"
    )
    min_uses: int = Field(
        30, ge=2, description="uses that told of help or harm, before a fit is made; with fewer it says little"
    )
    window: int = Field(10_000, ge=2, description="newest uses that a fit reads: old ones are of an older bank")
    ridge: float = Field(1.0, gt=0, description="uses' worth of pull towards no effect: a few uses move it little")
    explore: float = Field(
        0.05, ge=0, le=1, description="share of such questions that use the memory all the same, or it never recovers"
    )


class BudgetSettings(_Section):
    """What an answer may cost, in rows that are generated; both candidates by default."""

    tier: Literal["auto", "cheap", "normal", "thorough"] = Field(
        "normal", description="the memory's answer alone where it is proven, both (paper), both and a vote; or chosen"
    )
    cheap_uses: int = Field(10, ge=1, description="uses that told something, before a memory can be proven")
    cheap_utility: float = Field(
        0.0, ge=-1, le=1, description="that its utility surely reaches when it is proven; 0: no worse than no memory"
    )
    cheap_width: float = Field(
        1.64, ge=0, description="standard deviations by which `surely` is meant; 1.64: 95 % on one side"
    )
    compare: float = Field(
        0.1, ge=0, le=1, description="share of cheap questions that are answered twice all the same, for evidence"
    )
    samples: int = Field(
        4, ge=1, le=256, description="of the plain model at learning.temperature, for the vote of thorough"
    )
    vote_accuracy: float = Field(
        0.75, ge=0.5, le=1, description="how often a vote takes the better of two answers; assumed, for auto"
    )
    row_price: float = Field(
        0.03, ge=0, description="accuracy that a further row has to bring, for auto; 0.03: 3 points"
    )


class ReviewSettings(_Section):
    """What a person decides before it takes effect; all off by default."""

    memories: bool = Field(False, description="a trained memory stays a candidate until somebody approves it")
    overrides: Literal["off", "interrupt", "queue"] = Field(
        "off",
        description="a memory's answer that another plain one stands against: returned (paper), asked about in the "
        "graph before, or queued while the plain one is returned",
    )


class VerificationSettings(_Section):
    """How two different answers are judged (METHOD section 3)."""

    verifier: Literal["mean_logprob", "self_certainty", "majority", "prm"] = Field(
        "mean_logprob", description="judges two different answers; the default from our comparison"
    )
    samples: int = Field(8, ge=1, description="extra samples of the majority verifier")
    opinions: int = Field(
        0,
        ge=0,
        le=32,
        description="further memories that answer where the two differ: all vote, a tie is the verifier's; 0: paper",
    )
    opinions_by: Literal["prompt", "words"] = Field(
        "prompt",
        description="how further memories answer: as the nearest one does, or after their question and voted answer",
    )
    example: bool = Field(
        False,
        description="where the two differ, the memory is heard in words too: its question and voted answer as a turn",
    )
    lead: int = Field(
        0,
        ge=0,
        description="votes by which another answer has to lead the plain one, which stands otherwise; 0: a tie is "
        "the verifier's (paper)",
    )
    prm_path: Path | None = Field(None, description="folder of a process reward model (Qwen2.5-Math-PRM format)")
    prm_aggregate: Literal["product", "min", "last"] = Field(
        "product", description="how the scores of the steps become one"
    )

    @model_validator(mode="after")
    def _reachable(self) -> VerificationSettings:
        if self.lead > (most := self.opinions + self.example):
            raise ValueError(
                f"lead ({self.lead}) is more than any answer can be ahead: memory and plain answer have a vote each, "
                f"opinions and example bring {most}"
            )
        return self


class WorkerSettings(_Section):
    """How background learning runs."""

    mode: Literal["thread", "inline", "external", "ray"] = Field(
        "thread", description="in this process, before the node returns (tests), by `elm-agent worker`, or on Ray"
    )
    concurrency: int = Field(4, ge=1, description="memories trained at the same time when several jobs wait")
    lease_seconds: float = Field(60.0, gt=0, description="a job without a heartbeat for this long is taken over")
    heartbeat_seconds: float = Field(10.0, gt=0, description="how often a worker says that it lives")
    poll_seconds: float = Field(0.5, gt=0, description="how often an idle worker looks for a job")
    max_attempts: int = Field(3, ge=1, description="a job that fails this often stays failed")
    backoff_seconds: float = Field(5.0, ge=0, description="wait before the second attempt; doubles each time")


class EncryptionSettings(_Section):
    """Encryption at rest: tensors, and the text of questions, answers and rollouts."""

    key_env: str | None = Field(None, description="environment variable with the master key, 32 bytes in base64")
    key_file: Path | None = Field(None, description="file with the master key, 32 bytes in base64")

    @property
    def wanted(self) -> bool:
        return self.key_env is not None or self.key_file is not None


class EvictionSettings(_Section):
    """When memories retire by themselves. None switches a rule off; a pinned memory never goes."""

    ttl_days: float | None = Field(None, gt=0, description="a memory older than this retires")
    capacity: int | None = Field(None, ge=0, description="most active memories of a namespace; the least useful go")
    unused_days: float | None = Field(None, gt=0, description="a memory unused for this long retires")
    min_utility: float | None = Field(
        None, ge=-1, le=1, description="(fixed - broken) / settled uses below which a memory retires"
    )
    min_utility_uses: int = Field(10, ge=1, description="settled uses before `min_utility` judges a memory")
    duplicate_similarity: float | None = Field(
        None, gt=0, le=1, description="cosine of input keys from which the less useful of two memories retires"
    )
    models_in_use: tuple[str, ...] | None = Field(
        None, min_length=1, description="model ids or names; memories of other models retire"
    )
    where: str | None = Field(None, description="expression over a memory's fields; those it is true for retire")
    undo_days: float = Field(7.0, ge=0, description="how long a retired memory can be restored before a purge")
    purge: bool = Field(False, description="whether `maintain` purges what was retired before the undo window")
    every_seconds: float | None = Field(
        None, gt=0, description="how often a worker applies these rules; None: only `elm-agent maintain`"
    )


class MaintenanceSettings(_Section):
    """How `elm-agent maintain --merge` and `--distil` make fewer memories of many; nothing else does either."""

    merge_similarity: float = Field(
        0.98, gt=0, le=1, description="least cosine of keys from which two memories may become one of them; a guess"
    )
    distil_similarity: float = Field(
        0.9, gt=0, le=1, description="least cosine to the most useful memory of a region that becomes one; a guess"
    )
    members: int = Field(8, ge=2, le=256, description="most memories of a group; the others wait for another pass")
    may_lose: int = Field(
        0, ge=0, description="questions that may go wrong beyond those that come right, when the new one is tried"
    )
    distil_steps: int = Field(20, ge=1, le=1000, description="optimizer steps, each on every question of the region")
    distil_learning_rate: float = Field(5e-3, gt=0, description="AdamW, constant; that of learning")


class VllmSettings(_Section):
    """vLLM as the engine that draws tokens (``engine = "vllm"``)."""

    gpu_memory_utilization: float = Field(
        0.4, gt=0, lt=1, description="share of the GPU's memory that vLLM takes; learning needs room beside it"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of vLLM's engine, such as tensor_parallel_size"
    )


class RaySettings(_Section):
    """Background learning on a Ray cluster."""

    address: str | None = Field(None, description="of the cluster; None: RAY_ADDRESS, or one on this machine")
    min_actors: int = Field(1, ge=0, description="workers that are kept even when the queue is empty")
    max_actors: int = Field(2, ge=1, description="most workers, each with a model of its own")
    num_cpus: float = Field(1.0, ge=0, description="CPUs reserved for each worker")
    num_gpus: float = Field(0.0, ge=0, description="GPUs reserved for each worker; 0.25: four share one")
    strategy: Literal["SPREAD", "PACK", "STRICT_SPREAD", "STRICT_PACK"] = Field(
        "SPREAD", description="how workers are placed on nodes"
    )
    jobs_per_actor: int = Field(2, ge=1, description="queued jobs for each worker before another one is started")
    place_seconds: float = Field(60.0, gt=0, description="a worker without a place for this long is a problem")
    idle_seconds: float = Field(30.0, ge=0, description="workers that were too many for this long are let go")
    stop_seconds: float = Field(120.0, gt=0, description="time for a training step to end before workers are killed")
    factory: str | None = Field(
        None, description="MODULE:FUNCTION that workers call like `open_runtime`, for a model or task of one's own"
    )
    dashboard: bool = Field(False, description="start Ray's dashboard with a cluster on this machine")


class TelemetrySettings(_Section):
    """Spans and metrics of answering and learning, for OpenTelemetry. Texts are never sent."""

    mode: Literal["off", "global", "otlp"] = Field(
        "off", description="off; to the providers that the application has set; or to a collector at `endpoint`"
    )
    endpoint: str | None = Field(None, description="base URL of an OTLP collector, such as http://localhost:4318")
    every_seconds: float = Field(15.0, gt=0, description="how often metrics are sent")


class Settings(BaseSettings):
    """Everything a runtime needs to know. ``Settings()`` is the embedded default: no server, key or GPU."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="ELM_", env_nested_delimiter="__", validate_default=True
    )

    # the model
    model: str = Field("smollm2-135m", description="embedded name, hub id, folder or .gguf file")
    gguf_file: str | None = Field(None, description="name of the GGUF file inside `model`")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto", description="of the weights; auto: float32 on a CPU, as stored on a GPU"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of the model; None: all cores")
    pack: bool = Field(
        True,
        description="float32 on a CPU: a second copy of the weights, packed for decoding, which is twice as quick",
    )
    graphs: bool = Field(
        False, description="on a GPU: record a decode step as a CUDA graph and replay it; no GPU has measured it yet"
    )
    prefix_cache_mb: int = Field(
        256,
        ge=0,
        description="with `pack`: most MiB of what answers begin with (templates, memories), so that it is read once",
    )
    overlap: bool = Field(
        False,
        description="draw tokens while memories are updated; slower on a CPU, and no GPU has measured it yet",
    )
    cache_dir: Path | None = Field(None, description="downloaded models; None: the user cache folder")
    offline: bool = Field(False, description="never use the network, not even for `model`")
    engine: Literal["native", "vllm"] = Field(
        "native", description="who draws tokens: this library, or vLLM (`pip install 'elm-agent[vllm]'`)"
    )
    max_batch_rows: int = Field(64, ge=1, description="most rows that generate together")
    join_window_ms: float = Field(4.0, ge=0, description="how long the first request waits for company")

    # where things lie
    home: Path = Field(Path(".elm"), description="folder of the embedded bank")
    database_url: str | None = Field(None, description="SQLAlchemy URL; None: SQLite under `home`")
    tensors: str | None = Field(
        None, description="folder or fsspec URL (s3://bucket/prefix) of tensors; None: `home`/tensors"
    )
    tensor_options: dict[str, Any] = Field(
        default_factory=dict,
        description="options of the fsspec file system, such as endpoint_url; credentials stay in the environment",
    )
    tensor_cache_mb: int = Field(
        1024, ge=0, description="most MiB of remote tensors kept under `home`/cache; the least recently used go"
    )
    tensor_cache_hours: float = Field(
        24.0, ge=0, description="how long a copy of a remote tensor is kept; also of one that another machine purged"
    )
    index: str = Field(
        "auto",
        description="auto feeds embedded Chroma and reads by exact scan up to `exact_limit` memories; exact; chroma; "
        "pgvector (in the PostgreSQL database); or a server: chroma+http://HOST:PORT, qdrant+http://HOST:PORT",
    )
    exact_limit: int = Field(20_000, ge=0, description="memories per namespace that an exact scan serves")
    namespace: str = Field("default", description="tenant boundary in every store")
    shared_namespaces: tuple[str, ...] = Field(
        (), description="namespaces of the same model whose memories are read, never changed, beside one's own"
    )

    # the work
    task: TaskName = Field("math", description="how to ask, and which answers are equal")
    max_new_tokens: int = Field(256, ge=1, description="most tokens of an answer")
    learn: bool = Field(True, description="queue one learning job after each answer")

    learning: LearningSettings = LearningSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    utility: UtilitySettings = UtilitySettings()
    admission: AdmissionSettings = AdmissionSettings()
    abstention: AbstentionSettings = AbstentionSettings()
    budget: BudgetSettings = BudgetSettings()
    review: ReviewSettings = ReviewSettings()
    verification: VerificationSettings = VerificationSettings()
    worker: WorkerSettings = WorkerSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    eviction: EvictionSettings = EvictionSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    ray: RaySettings = RaySettings()
    vllm: VllmSettings = VllmSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    log_format: Literal["text", "json"] = Field(
        "text", description="of the command line's log lines on standard error: warnings in words, or all as JSON"
    )

    @field_validator("*")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        return check_text(value)

    @field_validator("namespace")
    @classmethod
    def _namespace(cls, value: str) -> str:
        return check_namespace(value)

    @field_validator("shared_namespaces")
    @classmethod
    def _shared(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_namespace(name) for name in value)

    @field_validator("index")
    @classmethod
    def _index(cls, value: str) -> str:
        return check_index(value)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error)) from None

    def changed(self, **overrides: Any) -> Settings:
        """These settings with ``overrides`` on top; a section may be a dict of only what changes in it."""
        return Settings(**_merge(self.model_dump(), overrides))

    @property
    def resolved_database_url(self) -> str:
        """The database URL, SQLite under ``home`` by default."""
        return self.database_url or f"sqlite:///{self.home.absolute() / 'elm.sqlite'}"

    @property
    def resolved_tensors(self) -> str:
        """A folder, or the URL of a file system that fsspec knows."""
        return self.tensors or str(self.home / "tensors")


def check_text(value: Any) -> Any:
    """A setting that is no text, or one that a file name, a URL and a terminal can carry; or a ``SettingsError``."""
    if isinstance(value, str | Path):
        text = str(value)
        if len(text) > _LONGEST:
            raise SettingsError(f"{text[:40]!r}… has {len(text)} characters: expected at most {_LONGEST}")
        if bad := _NO_TEXT.search(text):
            raise SettingsError(f"{text[:80]!r} holds {bad[0]!r}: expected text without control characters")
    return value


def check_namespace(value: str) -> str:
    """A usable namespace name, or a ``SettingsError`` that says which characters are allowed."""
    allowed = value.replace("-", "").replace("_", "").replace(".", "")
    if not (1 <= len(value) <= 100 and allowed.isascii() and allowed.isalnum() and value[0] not in ".-"):
        raise SettingsError(
            f"namespace {value[:40]!r} is not usable: expected 1 to 100 ASCII letters, digits, '-', '_' or '.', "
            "beginning with a letter, digit or '_'"
        )
    return value


def check_index(value: str) -> str:
    """A usable ``index`` setting, or a ``SettingsError``."""
    words, servers = (
        ("auto", "exact", "chroma", "pgvector"),
        ("chroma+http", "chroma+https", "qdrant+http", "qdrant+https"),
    )
    scheme, separator, rest = value.partition("://")
    if value in words or (separator and scheme in servers and rest.strip("/")):
        return value
    raise SettingsError(
        f"index {value[:80]!r} is not known: expected {', '.join(words)}, or a server's URL that begins with "
        f"{', '.join(f'{server}://' for server in servers)}"
    )


def load_settings(path: str | os.PathLike[str] | None = None, **overrides: Any) -> Settings:
    """Settings from an optional TOML file, the environment above it and keyword overrides on top.

    Raises:
        SettingsError: the file is missing, is not TOML, or has an unknown or unusable key.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError:
            raise SettingsError(f"settings file {os.fspath(path)!r} does not exist") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"settings file {os.fspath(path)!r} is not TOML: {str(error)[:200]}") from None
        except OSError as error:
            raise SettingsError(f"settings file {os.fspath(path)!r} cannot be read: {error.strerror}") from None
    environment = EnvSettingsSource(Settings)()
    return Settings(**_merge(_merge(values, environment), overrides))


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merge(merged[name], value)
        else:
            merged[name] = value
    return merged


def _explain(error: ValidationError) -> str:
    first, *more = error.errors()
    where = ".".join(str(part) for part in first["loc"])[:200] or "settings"
    if first["type"] == "extra_forbidden":
        text = f"unknown setting {where!r}: `elm-agent config show` lists the known ones"
    else:
        # Values of a section that do not go together: the message names them.
        whole = first["type"] == "value_error" and isinstance(first["input"], dict)
        got = "" if whole else f"got {str(first['input'])[:80]!r}; "
        text = f"setting {where!r}: {got}{first['msg'].removeprefix('Value error, ')}"
    return text + (f" (and {len(more)} more)" if more else "")
