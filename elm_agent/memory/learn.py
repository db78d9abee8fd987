"""Turn one leased job into one memory: train, gate, publish. The only way a memory comes into being."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from elm_agent.errors import InputError, ModelMismatch
from elm_agent.memory.gate import Gate
from elm_agent.protocols import Observer, Trainer
from elm_agent.records import JobRecord, MemoryRecord, ModelFingerprint, Recipe, digest_of, question_digest
from elm_agent.storage.queue.jobs import refuse_offline

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank
    from elm_agent.storage.queue.jobs import Lease


def learn(
    lease: Lease,
    *,
    trainer: Trainer,
    bank: Bank,
    model_fingerprint: ModelFingerprint,
    observe: Observer,
    cancelled: Callable[[], bool],
    gate: Gate | None = None,
) -> MemoryRecord:
    """Distil the job's question into a memory, exactly once (METHOD section 1; write order of the bank).

    ``gate``: what it has to show before it may serve; None: what is asked of every memory.

    Raises:
        ModelMismatch: the job is for another model.
        JobCancelled: ``cancelled()`` became true between two steps, or while the memory was probed.
        LeaseLost: another worker took the job over; nothing was published.
        InputError: the namespace's kv keys are pooled in another way, the recipe is for studies alone, or see
            ``Trainer.train``.
        TrainingError, StorageError: see ``Trainer.train`` and ``Bank.publish``.
    """
    job = lease.job
    if job.model_id != model_fingerprint.id:
        raise ModelMismatch(
            f"job {job.id} is for model {job.model_id[:19]}, this worker has {model_fingerprint.name!r} "
            f"({model_fingerprint.id[:19]}): start a worker with the model of namespace {job.namespace!r}"
        )
    refuse_offline(job.recipe)  # publishing would say so too, but only after the training is paid for
    _check_keys(bank, job)
    seed = memory_seed(job.recipe, job.question)
    trained = trainer.train(job.question, recipe=job.recipe, seed=seed, observe=observe, cancelled=cancelled)
    observe("train.done", {"steps": len(trained.curve), "seconds": trained.seconds})
    ruling = (gate or Gate()).judge(bank, job, trained, observe=observe, cancelled=cancelled)
    return bank.publish(
        lease,
        trained,
        task=job.task,
        model=model_fingerprint,
        recipe=job.recipe,
        state=ruling.state,
        reason=ruling.reason,
        admission=ruling.detail(),
        review=ruling.review,
        observe=observe,
    )


def _check_keys(bank: Bank, job: JobRecord) -> None:
    """Keys of one namespace have one width; publishing would say so too, but only after the training is paid for."""
    for memory in bank.memories(job.namespace, limit=1):
        pooled = memory.recipe.kv_heads
        if pooled != job.recipe.kv_heads and bank.keys(job.namespace, memory.id).kv is not None:
            raise InputError(
                f"the kv keys of namespace {job.namespace!r} are made with `kv_heads` {pooled!r}, this job has "
                f"{job.recipe.kv_heads!r}: set it to {pooled!r}, or use another namespace"
            )


def memory_seed(recipe: Recipe, question: str) -> int:
    """The seed of one memory, in [0, 2**48): it depends on recipe and question, never on time, order or batch."""
    digest = digest_of([recipe.seed, question_digest(question)])
    return int(digest.removeprefix("sha256:")[:12], 16)
