"""Settings become objects here, and only here: the one place that reads ``Settings`` and names concrete back ends.

Knows nothing of graphs or commands. Heavy parts are imported when they are opened.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from elm_agent.errors import InputError, ModelMismatch, NotFound, SettingsError
from elm_agent.protocols import JobRunner, LanguageModel, Observer, Task, TensorStore, Trainer, Verifier
from elm_agent.records import Candidate, Feedback, JobState, KeyKind, Recipe
from elm_agent.settings import Settings, load_settings

if TYPE_CHECKING:
    from elm_agent.memory.abstention import Abstaining
    from elm_agent.memory.calibrating import Refit
    from elm_agent.memory.condensing import CondenseReport
    from elm_agent.memory.feedback import FeedbackReport
    from elm_agent.memory.gate import Gate
    from elm_agent.memory.maintain import MaintenanceReport
    from elm_agent.memory.probe import Probe
    from elm_agent.memory.ranking import Ranking
    from elm_agent.memory.replay import Replay
    from elm_agent.memory.succession import Distil
    from elm_agent.memory.tiers import Budget
    from elm_agent.memory.worker import Worker
    from elm_agent.storage.bank import Bank
    from elm_agent.storage.indexes.feed import FedIndex
    from elm_agent.storage.posterior import HarmRule, Weights
    from elm_agent.storage.search import IndexChoice
    from elm_agent.storage.sql.database import Database
    from elm_agent.storage.vault.base import Vault
    from elm_agent.storage.vault.master_keys import KeyFunction

Progress = Callable[[int, int], None]
"""``progress(bytes_done, bytes_in_all)`` while a model is downloaded."""

Score = Callable[[str, Candidate], float]
"""``score(question, candidate)``: the simplest verifier of one's own; higher is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Everything that answering and learning need, wired and open. A context manager; safe from any thread."""

    settings: Settings
    model: LanguageModel
    bank: Bank
    task: Task
    verifier: Verifier
    trainer: Trainer
    runner: JobRunner
    recipe: Recipe
    observe: Observer | None
    _telemetry: Observer | None = field(repr=False)
    _trainer_for: Callable[[str], Trainer] = field(repr=False)
    _tasks: frozenset[str] = field(repr=False)
    _concurrency: int = field(repr=False)
    _closing: ExitStack = field(repr=False)
    _bound: set[str] = field(default_factory=set, repr=False)
    _binding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def bind(self, namespace: str) -> None:
        """Make ``namespace`` ready for this model; asks the bank once per process.

        Raises:
            ModelMismatch: the namespace was made for another model.
        """
        with self._binding:
            if namespace not in self._bound:
                self.bank.bind(namespace, self.model.fingerprint)
                self._bound.add(namespace)

    def shared(self, namespace: str) -> tuple[str, ...]:
        """The namespaces that are read beside ``namespace``, itself left out."""
        return tuple(name for name in self.settings.shared_namespaces if name != namespace)

    def worker(self, *, concurrency: int | None = None, observe: Observer | None = None) -> Worker:
        """A worker on this runtime's model and bank, for a process of its own (``elm-agent worker``).

        ``concurrency``: as in the settings by default, and 1 with a trainer of your own.
        """
        together = concurrency or self._concurrency
        tell = _both(self._telemetry, observe)
        return _worker(
            self.settings, self.bank, self.model, self.task, self._trainer_for, self._tasks, together, tell
        )

    @property
    def ranking(self) -> Ranking:
        """The second phase of retrieval."""
        return _ranking(self.settings)

    @property
    def budget(self) -> Budget:
        """What an answer may cost."""
        return _budget(self.settings)

    def abstaining(self, namespace: str) -> Abstaining | None:
        """Which memories are passed over for what uses tell; None: as the settings say, none for that.

        Raises ``StorageError``.
        """
        chosen = self.settings.abstention
        if chosen.mode == "manual":
            return None
        from elm_agent.memory.abstention import Abstaining

        found = self.bank.calibrations.get(namespace, self.settings.retrieval.key)
        if found is not None and found.model_id != self.model.fingerprint.id:
            found = None
        return Abstaining(
            calibration=found, min_chance=chosen.min_chance, explore=chosen.explore, seed=self.settings.utility.seed
        )

    def feedback(
        self, use_id: str, verdict: Feedback | str, *, answer: str | None = None, namespace: str | None = None
    ) -> FeedbackReport:
        """Note that the answer of a use was "right" or "wrong", and with ``answer`` what is right.

        The last word counts. Raises as ``memory.feedback.give_feedback``.
        """
        report = take_feedback(
            self.bank, self.settings, use_id, verdict, answer=answer, namespace=namespace, task=self.task
        )
        if report.job_state is JobState.QUEUED:
            self.runner.notify()
        return report

    def close(self) -> None:
        """Stop learning after its current step, then close bank and model. Idempotent."""
        self._closing.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_bank(
    settings: Settings | None = None, *, owns_index: bool = True, encryption_key: KeyFunction | None = None
) -> Bank:
    """The bank of ``settings`` without a model, for audits. Makes an empty one where there is none.

    ``owns_index=False``: never open embedded Chroma, which bears one process only; for workers beside an agent.

    ``encryption_key``: a function that returns the 32 bytes of the master key, called with nothing, or with the id
    of the key that is wanted (None: the one for new work); instead of the settings of ``encryption``.

    Raises:
        SettingsError: the master key is named and cannot be had.
        StorageError: the database or its folder cannot be used.

    A key that is not the bank's own is noticed by what first needs it, which raises ``VaultLocked``.
    """
    from elm_agent.storage.bank import Bank
    from elm_agent.storage.indexes.exact import ExactIndex
    from elm_agent.storage.sql.database import Database
    from elm_agent.storage.tensors.flat import adopt_flat_tensors
    from elm_agent.storage.tensors.local import LocalTensors

    settings = settings or Settings()
    with ExitStack() as opened:  # what is open when something fails is closed again
        database = Database.open(settings.resolved_database_url)
        opened.callback(database.close)
        tensors = open_tensors(settings)
        if isinstance(tensors, LocalTensors):
            adopt_flat_tensors(database, tensors)
        vault = _vault(settings, database, encryption_key)
        bank = Bank(
            database,
            tensors,
            exact_limit=settings.exact_limit,
            index=_index_choice(settings),
            durable=_durable_index(settings, database, owns_index),
            exact=ExactIndex(settings.home / "index"),
            vault=vault,
            shared=settings.shared_namespaces,
            harm=_harm_rule(settings),
        )
        opened.pop_all()  # from here on the bank closes it
        return bank


def open_tensors(settings: Settings) -> TensorStore:
    """The store of tensors that ``settings`` name: a local folder, or any file system that fsspec knows.

    Raises:
        SettingsError: the URL is not usable, a package is missing, or an option looks like a secret.
    """
    from elm_agent.storage.tensors.cache import TensorCache
    from elm_agent.storage.tensors.local import LocalTensors
    from elm_agent.storage.tensors.remote import FsspecTensors
    from elm_agent.storage.tensors.urls import local_folder

    folder = local_folder(settings.resolved_tensors)
    if folder is not None:
        if settings.tensor_options:
            raise SettingsError("tensor_options are for a file system's URL, but tensors is a folder: leave them out")
        return LocalTensors(folder)
    cache = TensorCache(
        settings.home / "cache" / "tensors",
        max_bytes=settings.tensor_cache_mb << 20,
        max_age_seconds=settings.tensor_cache_hours * 3600,
    )
    return FsspecTensors(settings.resolved_tensors, options=settings.tensor_options, cache=cache)


def maintain_bank(
    bank: Bank,
    settings: Settings,
    *,
    namespaces: Sequence[str] | None = None,
    evict: bool = True,
    purge: bool | None = None,
    dry_run: bool = False,
    actor: str = "maintain",
    observe: Observer | None = None,
) -> MaintenanceReport:
    """One pass of upkeep by the rules of ``settings.eviction``; see ``memory.maintain``.

    ``namespaces=None``: all of the bank. ``purge=None``: as the settings say. Raises ``SettingsError`` for rules that
    cannot be applied, before anything is changed.
    """
    from elm_agent.memory.eviction import Rules
    from elm_agent.memory.maintain import maintain

    chosen = settings.eviction
    _check_condition(chosen.where)
    return maintain(
        bank,
        namespaces,
        Rules(**chosen.model_dump(exclude={"undo_days", "purge", "every_seconds"})),
        evict=evict,
        purge=chosen.purge if purge is None else purge,
        undo_days=chosen.undo_days,
        dry_run=dry_run,
        actor=actor,
        refit=refit_of(settings),
        observe=observe,
    )


def condense_bank(
    bank: Bank,
    settings: Settings,
    *,
    merge: bool = False,
    distil: bool = False,
    namespace: str | None = None,
    model: LanguageModel | None = None,
    student: LanguageModel | None = None,
    task: Task | None = None,
    seconds: float | None = None,
    dry_run: bool = False,
    actor: str = "maintain",
    cancelled: Callable[[], bool] = lambda: False,
    observe: Observer | None = None,
) -> CondenseReport:
    """One pass of merging and distilling by ``settings.maintenance``; see ``memory.condensing``.

    ``namespace=None``: that of the settings. ``model``: needed unless it is a dry run. ``student``: what distilling
    trains, where ``model`` is not it but passes on to it. ``task=None``: as in the settings. ``seconds``: most of
    them; None: as many as it takes.

    Raises ``SettingsError`` where new memories wait for a person, and as ``memory.condensing`` does.
    """
    from elm_agent.memory.condensing import Rules, Tools, condense

    if distil and settings.review.memories:
        raise SettingsError(
            "review.memories is set, so that a person approves what is to serve, and what is distilled serves at "
            "once: merge alone, or leave it out"
        )
    chosen, tools = settings.maintenance, None
    if model is not None and not dry_run:
        task = _task(settings) if task is None else task
        tools = Tools(probe=_probe(settings, model, task), distil=_distil(student or model, task) if distil else None)
    return condense(
        bank,
        settings.namespace if namespace is None else namespace,
        Rules(
            merge=chosen.merge_similarity if merge else None,
            distil=chosen.distil_similarity if distil else None,
            most=chosen.members,
            may_lose=chosen.may_lose,
            steps=chosen.distil_steps,
            learning_rate=chosen.distil_learning_rate,
            kind=settings.retrieval.key,
            weights=utility_weights(settings),
        ),
        tools,
        seconds=seconds,
        dry_run=dry_run,
        actor=actor,
        cancelled=cancelled,
        observe=observe,
    )


def _distil(model: LanguageModel, task: Task) -> Distil:
    """Raises ``SettingsError`` for a model that is not the library's own."""
    from elm_agent.models.engine import LocalModel
    from elm_agent.training.distilling import Distiller

    if not isinstance(model, LocalModel):
        raise SettingsError(f"a {type(model).__name__} cannot be trained, so nothing can be distilled: merge alone")
    return Distiller(model, task).distil


def take_feedback(
    bank: Bank,
    settings: Settings,
    use_id: str,
    verdict: Feedback | str,
    *,
    answer: str | None = None,
    namespace: str | None = None,
    task: Task | None = None,
) -> FeedbackReport:
    """What a user says of an answer, by ``settings``; see ``memory.feedback.give_feedback``. Needs no model.

    ``namespace=None``: that of the settings. ``task=None``: likewise.
    """
    from elm_agent.memory.feedback import give_feedback

    return give_feedback(
        bank,
        settings.namespace if namespace is None else namespace,
        use_id,
        verdict,
        task=_task(settings) if task is None else task,
        answer=answer,
        replay=_replay(settings),
        recipe=settings.learning.recipe(),
    )


def _replay(settings: Settings) -> Replay | None:
    from elm_agent.memory.replay import Replay

    chosen = settings.learning
    if chosen.replay_rollouts is None:
        return None
    return Replay(
        rollouts=chosen.replay_rollouts,
        split_below=chosen.replay_vote_share,
        max_attempts=settings.worker.max_attempts,
    )


def utility_weights(settings: Settings) -> Weights:
    """How much each kind of use counts."""
    from elm_agent.storage.posterior import Weights

    return Weights(prior=settings.utility.prior, verifier=settings.utility.verifier_weight)


def _ranking(settings: Settings) -> Ranking:
    from elm_agent.memory.ranking import Ranking

    chosen = settings.utility
    return Ranking(
        how=chosen.ranking,
        candidates=chosen.candidates,
        weight=chosen.weight,
        ucb_width=chosen.ucb_width,
        seed=chosen.seed,
        weights=utility_weights(settings),
    )


def _budget(settings: Settings) -> Budget:
    from elm_agent.memory.tiers import Budget

    chosen = settings.budget.model_dump()
    accuracy = (1.0 + settings.utility.verifier_weight) / 2  # of the verifier, that its word weighs so much
    return Budget(**chosen, verifier_accuracy=accuracy, seed=settings.utility.seed)


def _gate(settings: Settings, model: LanguageModel, task: Task) -> Gate:
    from elm_agent.memory.admission import Rules
    from elm_agent.memory.gate import Gate

    chosen = settings.admission
    probe = _probe(settings, model, task) if chosen.probe else None
    bounds = {name: getattr(chosen, name) for name in Rules.__dataclass_fields__}
    return Gate(rules=Rules(**bounds), probe=probe, review=settings.review.memories)


def _probe(settings: Settings, model: LanguageModel, task: Task) -> Probe:
    from elm_agent.memory.probe import Probe
    from elm_agent.tasks import get_task

    chosen = settings.admission
    return Probe(
        model=model,
        task_for=lambda name: task if name == task.name else get_task(name),
        questions=chosen.probe_questions,
        max_new_tokens=chosen.probe_max_new_tokens,
        min_vote_share=chosen.probe_reference_share,
    )


def refit_of(settings: Settings) -> Refit | None:
    """How abstention is fitted anew; None: it is not."""
    from elm_agent.memory.calibrating import Refit

    chosen = settings.abstention
    if chosen.mode == "manual":
        return None
    return Refit(
        kind=settings.retrieval.key,
        weights=utility_weights(settings),
        min_uses=chosen.min_uses,
        window=chosen.window,
        ridge=chosen.ridge,
    )


def _harm_rule(settings: Settings) -> HarmRule | None:
    from elm_agent.storage.posterior import HarmRule

    chosen = settings.utility
    if chosen.quarantine_harm is None:
        return None
    return HarmRule(
        probability=chosen.quarantine_harm, uses=chosen.quarantine_uses, weights=utility_weights(settings)
    )


def _vault(settings: Settings, database: Database, encryption_key: KeyFunction | None) -> Vault:
    from elm_agent.storage.vault.opening import open_vault

    wanted = settings.encryption
    return open_vault(database, key_env=wanted.key_env, key_file=wanted.key_file, function=encryption_key)


def _index_choice(settings: Settings) -> IndexChoice:
    choices: dict[str, IndexChoice] = {"auto": "auto", "exact": "exact"}
    return choices.get(settings.index, "durable")


def _durable_index(settings: Settings, database: Database, owns_index: bool) -> FedIndex | None:
    """Every process opens a server's index; embedded Chroma bears one, its owner."""
    kind, separator, _ = settings.index.partition("+")
    if separator:
        from elm_agent.storage.indexes.server_urls import parse_server_url

        url = parse_server_url(settings.index, database.engine.url)
        if kind == "qdrant":
            from elm_agent.storage.indexes.qdrant import QdrantIndex

            return QdrantIndex(url)
        from elm_agent.storage.indexes.chroma_server import ChromaServerIndex

        return ChromaServerIndex(url)
    if kind == "pgvector":
        from elm_agent.storage.indexes.pgvector import PgvectorIndex

        return PgvectorIndex(database)
    if kind in ("auto", "chroma") and owns_index:
        from elm_agent.storage.indexes.chroma import ChromaIndex

        return ChromaIndex(settings.home / "chroma")
    return None


def open_runtime(
    settings: Settings | None = None,
    *,
    model: LanguageModel | str | None = None,
    task: Task | str | None = None,
    verifier: Verifier | Score | None = None,
    trainer: Trainer | None = None,
    observe: Observer | None = None,
    progress: Progress | None = None,
    owns_index: bool = True,
    encryption_key: KeyFunction | None = None,
    **overrides: Any,
) -> Runtime:
    """Open everything that ``settings`` describe, with keyword overrides on top (``learning={"steps": 2}``).

    Args:
        model, task: a name, as in the settings, or an object of your own.
        verifier: an object, or a function ``(question, candidate) -> float``; the built-in ones are settings.
        trainer: needed with a model object that is not a ``LocalModel``.
        observe: told every step of answering (``ANSWER_STEPS``) and of learning (see ``Worker``) in this process;
            workers on Ray are other processes.
        progress: told how far the download of a model has come.
        owns_index, encryption_key: see ``open_bank``.

    Raises:
        SettingsError: settings that are wrong or cannot go together.
        ModelUnavailable, ModelError: the model cannot be had or lacks what the settings ask for.
        ModelMismatch: the namespace was made for another model.
        StorageError: the bank cannot be opened.
    """
    names = {"model": model, "task": task}
    overrides |= {name: value for name, value in names.items() if isinstance(value, str)}
    settings = load_settings(**overrides) if settings is None else settings.changed(**overrides)
    check_settings(settings)
    _check_ray(settings, model=model, task=task, trainer=trainer, encryption_key=encryption_key)
    from elm_agent.memory.step_logs import step_logs

    with ExitStack() as opened:  # what is open when something fails is closed again
        telemetry = _both(step_logs(), _telemetry(settings, opened))
        observe = _both(telemetry, observe)
        bank = open_bank(settings, owns_index=owns_index, encryption_key=encryption_key)
        opened.callback(bank.close)
        if model is None or isinstance(model, str):
            model = _load_model(settings, opened, progress)
        _check_model(settings, model)
        task = _task(settings) if task is None or isinstance(task, str) else task
        trainer_for, tasks = _trainers(settings, model, task, trainer)
        judge = _verifier(settings, model, task, verifier)
        bank.bind(settings.namespace, model.fingerprint)
        _check_shared(settings, bank, model)
        together = settings.worker.concurrency if trainer is None else 1  # nobody said that another may be shared
        runner = _runner(settings, _worker(settings, bank, model, task, trainer_for, tasks, together, observe))
        opened.callback(runner.stop)
        runner.start()
        return Runtime(
            settings=settings,
            model=model,
            bank=bank,
            task=task,
            verifier=judge,
            trainer=trainer_for(task.name),
            runner=runner,
            recipe=settings.learning.recipe(),
            observe=observe,
            _telemetry=telemetry,
            _trainer_for=trainer_for,
            _tasks=tasks,
            _concurrency=together,
            _closing=opened.pop_all(),
            _bound={settings.namespace},
        )


def open_model(settings: Settings, *, progress: Progress | None = None) -> LanguageModel:
    """The model of ``settings`` alone, for looking at memories; the caller closes it.

    Raises ``ModelUnavailable``, ``ModelError``.
    """
    with ExitStack() as opened:
        model = _load_model(settings, opened, progress)
        opened.pop_all()
        return model


def check_settings(settings: Settings) -> None:
    """Raise ``SettingsError`` for settings that are fine alone and make no sense together."""
    judge, worker = settings.verification, settings.worker
    if judge.verifier == "prm" and judge.prm_path is None:
        raise SettingsError("verification.verifier is 'prm': it needs verification.prm_path, a folder with the model")
    if judge.verifier != "prm" and judge.prm_path is not None:
        raise SettingsError(
            f"verification.prm_path is set, but verification.verifier is {judge.verifier!r}: set it to 'prm', "
            "or leave the path out"
        )
    if settings.namespace in settings.shared_namespaces:
        raise SettingsError(
            f"namespace {settings.namespace!r} is also one of shared_namespaces, which are only read: take it out of "
            "them"
        )
    if worker.heartbeat_seconds >= worker.lease_seconds:
        raise SettingsError(
            f"worker.heartbeat_seconds ({worker.heartbeat_seconds:g}) must be shorter than worker.lease_seconds "
            f"({worker.lease_seconds:g}), or every lease runs out"
        )
    if settings.engine != "vllm" and settings.vllm.options:
        raise SettingsError(
            f"vllm.options is set, but engine is {settings.engine!r}: set it to 'vllm', or leave it out"
        )
    if settings.engine == "vllm" and settings.learning.parameterisation != "soft_prompt":
        raise SettingsError(
            f"engine 'vllm' reads embeddings alone, and learning.parameterisation is "
            f"{settings.learning.parameterisation!r}: set one of them to its default"
        )
    _check_admission(settings)
    sent = settings.telemetry
    if (sent.mode == "otlp") is not (sent.endpoint is not None):
        raise SettingsError(
            f"telemetry.mode is {sent.mode!r} and telemetry.endpoint is {sent.endpoint!r:.80}: set both, 'otlp' and "
            "the collector's URL, or leave the endpoint out"
        )
    if sent.endpoint is not None and not sent.endpoint.startswith(("http://", "https://")):
        raise SettingsError(f"telemetry.endpoint is {sent.endpoint[:80]!r}: expected http://HOST:PORT of a collector")
    if settings.ray.min_actors > settings.ray.max_actors:
        raise SettingsError(
            f"ray.min_actors ({settings.ray.min_actors}) is more than ray.max_actors ({settings.ray.max_actors})"
        )
    _check_condition(settings.eviction.where)


def _check_admission(settings: Settings) -> None:
    asked = settings.admission
    measured = [name for name in ("min_entropy", "max_norm_ratio") if getattr(asked, name) is not None]
    if measured and settings.learning.trainer != "native":
        raise SettingsError(
            f"admission.{measured[0]} needs what only learning.trainer 'native' measures; got "
            f"{settings.learning.trainer!r}: set one of them to its default"
        )
    if asked.min_entropy is not None and settings.engine != "native":
        raise SettingsError(
            f"admission.min_entropy needs what only engine 'native' says of its rollouts; got {settings.engine!r}: "
            "set one of them to its default"
        )
    if asked.min_vote_rise is not None and settings.learning.objective == "sft_greedy":
        raise SettingsError(
            "admission.min_vote_rise is about votes, and learning.objective 'sft_greedy' has none: leave it out"
        )


def _check_condition(where: str | None) -> None:
    """A condition that cannot be read would only be missed at the first pass of upkeep."""
    if where is None:
        return
    from elm_agent.memory.conditions import condition

    try:
        condition(where)
    except InputError as error:
        raise SettingsError(f"eviction.where: {error}") from None


def _check_ray(settings: Settings, **objects: object) -> None:
    """Objects of this process do not reach the workers on Ray; what makes them there is named instead."""
    given = [f"{name}=" for name, value in objects.items() if not isinstance(value, str | None)]
    if given and settings.worker.mode == "ray" and settings.ray.factory is None:
        raise SettingsError(
            f"worker.mode is 'ray', and {', '.join(given)} exists in this process only: set ray.factory to "
            "MODULE:FUNCTION, called like `open_runtime` on each worker, that makes it there"
        )


@contextmanager
def opened_model(settings: Settings, progress: Progress | None = None) -> Iterator[LanguageModel]:
    """The model of ``settings`` without a bank, for measurements; closed at the end.

    Raises ``SettingsError``, ``ModelUnavailable`` or ``ModelError`` as ``open_runtime`` does.
    """
    check_settings(settings)
    with ExitStack() as opened:
        model = _load_model(settings, opened, progress)
        _check_model(settings, model)
        yield model


# --- one small factory for each part --------------------------------------------------------------------


def _load_model(settings: Settings, opened: ExitStack, progress: Progress | None) -> LanguageModel:
    from elm_agent import models

    model = models.load(
        settings.model,
        gguf_file=settings.gguf_file,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        cache_dir=settings.cache_dir,
        offline=settings.offline,
        max_batch_rows=settings.max_batch_rows,
        join_window_ms=settings.join_window_ms,
        kv_heads=settings.learning.kv_heads,
        pack=settings.pack,
        graphs=settings.graphs,
        prefix_cache_mb=settings.prefix_cache_mb,
        overlap=settings.overlap,
        engine=settings.engine,
        gpu_memory_utilization=settings.vllm.gpu_memory_utilization,
        vllm_options=settings.vllm.options,
        progress=progress,
    )
    opened.callback(model.close)
    return model


def _check_model(settings: Settings, model: LanguageModel) -> None:
    rows = settings.learning.virtual_tokens
    if rows + 2 > model.context_length:
        raise SettingsError(
            f"learning.virtual_tokens ({rows}) leaves no room in the context of model {model.fingerprint.name!r} "
            f"({model.context_length} positions): lower it"
        )
    in_use = settings.eviction.models_in_use
    if in_use is not None and not {model.fingerprint.id, model.fingerprint.name} & set(in_use):
        raise SettingsError(
            f"eviction.models_in_use does not name the model in use, {model.fingerprint.name!r} "
            f"({model.fingerprint.id}): all that it learns would retire; add it"
        )
    if settings.retrieval.key is KeyKind.KV:
        model.query("kv", KeyKind.KV)  # a model without such keys says so here, not at the first question
    _check_kind(settings, model)


def _check_kind(settings: Settings, model: LanguageModel) -> None:
    """An architecture whose projections are not known says so here, not at the first job."""
    from elm_agent.models.engine import LocalModel

    if settings.learning.parameterisation == "lora" and isinstance(model, LocalModel):
        _ = model.network.projections


def _check_shared(settings: Settings, bank: Bank, model: LanguageModel) -> None:
    """A shared namespace is there and of the same model, or every question would fail on it."""
    models = {info.name: info.model for info in bank.namespaces()} if settings.shared_namespaces else {}
    for name in settings.shared_namespaces:
        if name not in models:
            raise NotFound(f"shared namespace {name!r} is not in this bank: learn or import something into it first")
        if models[name].id != model.fingerprint.id:
            raise ModelMismatch(
                f"shared namespace {name!r} was made for model {models[name].name!r}, got "
                f"{model.fingerprint.name!r}: memories fit one model only; take it out of `shared_namespaces`"
            )


def _task(settings: Settings) -> Task:
    from elm_agent.tasks import get_task

    return get_task(settings.task)


def _verifier(settings: Settings, model: LanguageModel, task: Task, given: Verifier | Score | None) -> Verifier:
    from elm_agent import verification

    if given is not None:
        if hasattr(given, "score"):
            if not isinstance(getattr(given, "name", None), str):
                raise SettingsError(f"verifier= is a {type(given).__name__} without a name: give it one, for reasons")
            return cast(Verifier, given)
        if callable(given):
            return verification.CallableVerifier(given)
        raise SettingsError(
            f"verifier= takes an object or a function; got {type(given).__name__}. The built-in ones are the setting "
            "verification.verifier"
        )
    return verifier_of(settings, model, task)


def verifier_of(settings: Settings, model: LanguageModel, task: Task, *, seed: int = 0) -> Verifier:
    """The built-in verifier that ``settings`` name. ``seed``: of the samples that one of them draws."""
    from elm_agent import verification

    chosen = settings.verification
    match chosen.verifier:
        case "mean_logprob":
            return verification.MeanLogprob()
        case "self_certainty":
            return verification.SelfCertainty()
        case "majority":
            return verification.MajorityOfSamples(
                model=model,
                task=task,
                samples=chosen.samples,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.learning.temperature,
                seed=seed,
            )
        case "prm":
            from elm_agent.models.prm import load_process_reward_model

            assert chosen.prm_path is not None  # check_settings
            judge = load_process_reward_model(chosen.prm_path, device=settings.device)
            return verification.ProcessReward(judge, aggregate=chosen.prm_aggregate)


def _trainers(
    settings: Settings, model: LanguageModel, task: Task, given: Trainer | None
) -> tuple[Callable[[str], Trainer], frozenset[str]]:
    """The trainer of a job's task, and the tasks that it knows: the queue may hold jobs of others."""
    if given is not None:
        if settings.learning.trainer != "native":
            raise SettingsError(
                f"trainer= is given, and learning.trainer is {settings.learning.trainer!r}: leave one of them out"
            )

        def only(name: str) -> Trainer:
            if name != task.name:
                raise InputError(f"the job is of task {name!r}, this worker learns {task.name!r}: start one for it")
            return given

        return only, frozenset({task.name})

    from elm_agent.models.engine import LocalModel
    from elm_agent.tasks import get_task, task_names
    from elm_agent.training import RecipeTrainer

    if not isinstance(model, LocalModel):
        raise SettingsError(f"model= is a {type(model).__name__}, which only trainer= can train: give one too")

    def by_recipe(name: str) -> RecipeTrainer:
        return RecipeTrainer(model, task if name == task.name else get_task(name))

    by_recipe(task.name).named(settings.learning.trainer)  # a missing package is told now, not by the first job
    return by_recipe, task_names() | {task.name}


def _worker(
    settings: Settings,
    bank: Bank,
    model: LanguageModel,
    task: Task,
    trainer_for: Callable[[str], Trainer],
    tasks: frozenset[str],
    concurrency: int,
    observe: Observer | None,
) -> Worker:
    from elm_agent.memory.maintain import Scheduled
    from elm_agent.memory.worker import Worker

    every = settings.eviction.every_seconds
    return Worker(
        bank=bank,
        trainer_for=trainer_for,
        model=model.fingerprint,
        tasks=tasks,
        lease_seconds=settings.worker.lease_seconds,
        heartbeat_seconds=settings.worker.heartbeat_seconds,
        poll_seconds=settings.worker.poll_seconds,
        backoff_seconds=settings.worker.backoff_seconds,
        concurrency=concurrency,
        gate=_gate(settings, model, task),
        replay=_replay(settings),
        refit=refit_of(settings),
        upkeep=None if every is None else Scheduled(lambda: maintain_bank(bank, settings, actor="worker"), every),
        observe=observe,
    )


def _telemetry(settings: Settings, opened: ExitStack) -> Observer | None:
    """None where nothing is to be told, and then nothing is loaded."""
    chosen = settings.telemetry
    if chosen.mode == "off":
        return None
    from elm_agent.telemetry import Telemetry, exporting

    if chosen.endpoint is None:
        return Telemetry()
    telemetry, close = exporting(chosen.endpoint, every_seconds=chosen.every_seconds)
    opened.callback(close)
    return telemetry


def _both(first: Observer | None, second: Observer | None) -> Observer | None:
    if first is None or second is None:
        return first or second

    def tell(name: str, detail: dict[str, Any]) -> None:
        first(name, detail)
        second(name, detail)

    return tell


def _runner(settings: Settings, worker: Worker) -> JobRunner:
    from elm_agent.memory.runners import ExternalRunner, InlineRunner, ThreadRunner

    match settings.worker.mode:
        case "inline":
            return InlineRunner(worker)
        case "thread":
            return ThreadRunner(worker)
        case "external":
            return ExternalRunner(worker.bank, worker.model.id, worker.tasks)
        case "ray":
            return _ray_runner(settings, worker)


def _ray_runner(settings: Settings, worker: Worker) -> JobRunner:
    """Workers on Ray open the same bank from the same settings; where the bank is bound to this host, so are they."""
    from elm_agent.executors.ray import RayRunner

    chosen = settings.ray
    here = settings.resolved_database_url.startswith("sqlite") or settings.tensors is None
    threads = settings.threads or max(1, int(chosen.num_cpus))  # not all cores: workers share a node
    there = _absolute(settings).changed(threads=threads, worker={"mode": "external"})
    return RayRunner(
        jobs=worker.bank.jobs,
        model_id=worker.model.id,
        tasks=worker.tasks,
        factory=chosen.factory or f"{__name__}:{open_runtime.__name__}",
        settings=there.model_dump(mode="json"),
        only_host=socket.gethostname() if here else None,
        address=chosen.address,
        dashboard=chosen.dashboard,
        min_actors=chosen.min_actors,
        max_actors=chosen.max_actors,
        jobs_per_actor=chosen.jobs_per_actor,
        num_cpus=chosen.num_cpus,
        num_gpus=chosen.num_gpus,
        strategy=chosen.strategy,
        poll_seconds=settings.worker.poll_seconds,
        place_seconds=chosen.place_seconds,
        idle_seconds=chosen.idle_seconds,
        stop_seconds=chosen.stop_seconds,
    )


def _absolute(settings: Settings) -> Settings:
    """The same settings for a process that runs in another folder."""
    changed: dict[str, Any] = {"home": settings.home.absolute()}
    if settings.tensors is not None and "://" not in settings.tensors:
        changed["tensors"] = str(Path(settings.tensors).absolute())
    scheme, _, file = (settings.database_url or "").partition(":///")
    if scheme.startswith("sqlite") and file and not file.startswith("file:"):
        changed["database_url"] = f"{scheme}:///{Path(file).absolute()}"
    if Path(settings.model).exists():
        changed["model"] = str(Path(settings.model).absolute())
    return settings.changed(**changed)
