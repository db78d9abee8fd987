"""The worker: take a job, learn from it, say how it ended. Knows queue and trainer; who runs it is ``runners``.

Every job ends in exactly one of five ways: done, failed (again or for good), cancelled, released, or discarded
because another worker took it over.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from elm_agent.errors import InputError, JobCancelled, LeaseLost, ModelMismatch, NotFound, StorageError, TrainingError
from elm_agent.memory.answering import describe
from elm_agent.memory.gate import Gate
from elm_agent.memory.heartbeat import Heartbeat
from elm_agent.memory.learn import learn
from elm_agent.protocols import Observer, Trainer
from elm_agent.records import MemoryRecord, ModelFingerprint

if TYPE_CHECKING:
    from elm_agent.memory.calibrating import Refit
    from elm_agent.memory.replay import Replay
    from elm_agent.storage.bank import Bank
    from elm_agent.storage.queue.jobs import Lease

logger = logging.getLogger(__name__)

FATAL = (InputError, ModelMismatch, TrainingError)
"""Failures that a second attempt with the same question, model and seed would only repeat."""


class Worker:
    """Works off the jobs of one model.

    Args:
        trainer_for: the trainer of a task, by the task's name; raises ``InputError`` for an unknown one.
        model: only jobs for this model are taken.
        tasks: names of the tasks whose jobs are taken; None takes all. Others are left to other workers.
        owner: name in the job rows; by default host, process and a random part.
        lease_seconds: a job without a sign of life for this long is taken over by others.
        heartbeat_seconds: time between signs of life; each training step gives one as well.
        poll_seconds: how often an idle worker looks for a job.
        backoff_seconds: wait before the second attempt; the queue doubles it each time.
        concurrency: jobs learnt at the same time, each on a thread; with the native trainer they share their batches.
        gate: what a trained memory has to show before it may serve; None: what is asked of every memory.
        replay: how a question is learnt once more whose vote stayed split; None: it is not.
        refit: how the abstention of a namespace is fitted anew when it has grown; None: it is not.
        upkeep: called between two jobs, often; see ``maintain.Scheduled``. Not with ``once``.
        observe: told every step of ``LEARN_STEPS``, and ``job.done``, ``job.failed``, ``job.cancelled``,
            ``job.released``, ``job.lost``, ``job.replayed`` and ``job.refitted``, and of a probe ``probe.done`` or
            ``probe.failed``; each detail names its ``job_id``. What it raises is logged.
    """

    def __init__(
        self,
        *,
        bank: Bank,
        trainer_for: Callable[[str], Trainer],
        model: ModelFingerprint,
        tasks: Collection[str] | None = None,
        owner: str | None = None,
        lease_seconds: float = 60.0,
        heartbeat_seconds: float = 10.0,
        poll_seconds: float = 0.5,
        backoff_seconds: float = 5.0,
        concurrency: int = 1,
        gate: Gate | None = None,
        replay: Replay | None = None,
        refit: Refit | None = None,
        upkeep: Callable[[], object] | None = None,
        observe: Observer | None = None,
    ) -> None:
        if concurrency < 1:
            raise InputError(f"concurrency is at least 1; got {concurrency}")
        self.bank = bank
        self.model = model
        self.tasks = None if tasks is None else frozenset(tasks)
        self.owner = owner or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._trainer_for = trainer_for
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._poll_seconds = poll_seconds
        self._backoff_seconds = backoff_seconds
        self._concurrency = concurrency
        self._gate = gate
        self._replay = replay
        self._refit = refit
        self._upkeep = upkeep or (lambda: None)
        self._observe = observe or (lambda _name, _detail: None)
        self._stopping = self._finishing = False
        self._woken: SimpleQueue[None] = SimpleQueue()  # not an event: a handler would wait for its lock for ever
        self._turn = threading.Lock()
        self._in_hand: dict[str, Lease] = {}  # by id; a job that was given back is not ours to report on any more

    # --- running -----------------------------------------------------------------------------------------

    def run(self, *, once: bool = False) -> int:
        """Work until ``stop``, or with ``once`` until no job is due. Returns the number of jobs taken.

        A job whose attempt failed is due again after its pause, so ``once`` may leave it queued; see ``idle``.
        What one slot raises ends all of them after their current step, and is raised here. An interrupt (Ctrl-C)
        waits for no step: the jobs in hand go back to the queue, and threads that still compute are left behind.
        """
        taken = [0] * self._concurrency
        raised: list[BaseException] = []

        def loop(slot: int) -> None:
            while True:
                with self._turn:  # one idle slot looks, the others wait for their turn
                    if self._stopping or self._finishing:
                        return
                    if not once:
                        self._upkeep()
                    lease = self._claim(patient=not once)
                    if lease is None:
                        if once:
                            return
                        self._doze()
                        continue
                taken[slot] += 1
                self._work(lease)

        def work(slot: int, caught: type[BaseException]) -> None:
            try:
                loop(slot)
            except caught as error:  # raised below, in the thread that somebody looks at
                raised.append(error)
                self.stop()

        others = [
            threading.Thread(target=work, args=(slot, BaseException), name=f"elm-worker-{slot}", daemon=True)
            for slot in range(1, self._concurrency)
        ]
        for thread in others:
            thread.start()
        try:
            work(0, Exception)
            for thread in others:
                thread.join()
        except BaseException:
            self.stop()
            self._give_back()
            raise
        if raised:
            raise raised[0]
        return sum(taken)

    def run_one(self) -> bool:
        """Take and finish one due job; False when there is none."""
        lease = self._claim(patient=False)
        if lease is not None:
            self._work(lease)
        return lease is not None

    def wake(self) -> None:
        """Look for a job now instead of at the next poll."""
        self._woken.put(None)

    def stop(self) -> None:
        """Stop after the current training step; its job goes back to the queue. For good, from any thread or
        signal handler."""
        self._stopping = True
        self._woken.put(None)

    def finish(self) -> None:
        """Take no more jobs, and end when those in hand are done. For good, from any thread or signal handler."""
        self._finishing = True
        self._woken.put(None)

    def idle(self) -> bool:
        """Whether none of the jobs that this worker takes is queued or running, here or elsewhere."""
        return self.bank.jobs.idle(self.model.id, self.tasks)

    # --- one job -----------------------------------------------------------------------------------------

    def _doze(self) -> None:
        """Until the next poll, or until ``wake``."""
        with suppress(Empty):
            self._woken.get(timeout=self._poll_seconds)
            while True:  # all at once
                self._woken.get_nowait()

    def _claim(self, *, patient: bool) -> Lease | None:
        try:
            return self.bank.jobs.claim(
                self.owner, lease_seconds=self._lease_seconds, model_id=self.model.id, tasks=self.tasks
            )
        except StorageError as error:
            if not patient:
                raise
            logger.warning("no job could be claimed, will look again: %s", error)
            return None

    def _work(self, lease: Lease) -> None:
        self._in_hand[lease.job.id] = lease
        try:
            self._learn(lease)
        finally:
            self._in_hand.pop(lease.job.id, None)

    def _learn(self, lease: Lease) -> None:
        heartbeat = Heartbeat(
            self.bank.jobs, lease, lease_seconds=self._lease_seconds, every_seconds=self._heartbeat_seconds
        )
        observe = self._observer(lease, heartbeat)
        try:
            with heartbeat:
                observe("job.claimed", {"question": lease.job.question, "attempt": lease.job.attempts})
                memory = learn(
                    lease,
                    trainer=self._trainer_for(lease.job.task),
                    bank=self.bank,
                    model_fingerprint=self.model,
                    observe=observe,
                    gate=self._gate,
                    cancelled=lambda: heartbeat.lost or heartbeat.cancel_requested or self._stopping,
                )
        except LeaseLost as error:
            self._lost(lease, str(error))
        except JobCancelled as error:
            self._stopped(lease, heartbeat, str(error))
        except Exception as error:  # noqa: BLE001 - whatever went wrong is written into the job's row
            if lease.job.id in self._in_hand:  # else the engine was closed under it after an interrupt
                self._failed(lease, error)
        except BaseException:  # Ctrl-C: the job is somebody else's to finish
            self._settle(lease, "job.released", "interrupted", self.bank.jobs.release)
            raise
        else:
            self._tell(lease, "job.done", {"memory_id": memory.id, "state": memory.state.value})
            self._learn_again(lease, memory)
            self._fit_anew(lease)

    def _learn_again(self, lease: Lease, memory: MemoryRecord) -> None:
        """Queue the question anew if its vote stayed split. The memory is published: a failure costs the replay."""
        if self._replay is None:
            return
        try:
            job = self._replay.of_split_vote(self.bank, lease.job, memory)
        except StorageError as error:
            logger.warning(
                "job %s: its question could not be queued again: %s", lease.job.id, error, extra=_ids(lease)
            )
            return
        if job is not None:
            self._tell(lease, "job.replayed", {"replay_id": job.id, "rollouts": job.recipe.rollouts})

    def _fit_anew(self, lease: Lease) -> None:
        """Abstention follows what the namespace has seen since. A failure leaves the last fit."""
        if self._refit is None:
            return
        try:
            told = self._refit.if_grown(self.bank, lease.job.namespace)
        except (StorageError, NotFound) as error:
            logger.warning("job %s: abstention could not be fitted anew: %s", lease.job.id, error, extra=_ids(lease))
            return
        if told is not None:
            self._tell(lease, "job.refitted", {"calibration": told})

    def _observer(self, lease: Lease, heartbeat: Heartbeat) -> Observer:
        steps = lease.job.recipe.steps

        def observe(name: str, detail: dict[str, Any]) -> None:
            if name == "train.step":
                kept = ("majority_answer", "vote_share", "reward_mean")
                done = {"step": detail["step"] + 1, "steps": steps}
                heartbeat.beat(done | {key: detail[key] for key in kept})
            self._tell(lease, name, detail)

        return observe

    def _tell(self, lease: Lease, name: str, detail: dict[str, Any]) -> None:
        try:
            self._observe(name, {"job_id": lease.job.id, "namespace": lease.job.namespace, **detail})
        except Exception as error:  # a broken listener costs neither the memory nor the jobs that wait
            logger.warning("job %s: the observer failed at %r", lease.job.id, name, exc_info=error, extra=_ids(lease))

    # --- the ways in which a job ends ----------------------------------------------------------------------

    def _lost(self, lease: Lease, reason: str) -> None:
        if lease.job.id not in self._in_hand:  # given back, or ended by its own slot just before
            return
        logger.warning(
            "job %s: another worker took over, this result is discarded (%s)",
            lease.job.id,
            reason,
            extra=_ids(lease),
        )
        self._tell(lease, "job.lost", {"reason": reason})

    def _stopped(self, lease: Lease, heartbeat: Heartbeat, reason: str) -> None:
        if heartbeat.lost:
            self._lost(lease, reason)
        elif heartbeat.cancel_requested:
            self._settle(lease, "job.cancelled", reason, self.bank.jobs.cancelled)
        else:
            self._settle(lease, "job.released", reason, self.bank.jobs.release)

    def _failed(self, lease: Lease, error: Exception) -> None:
        retry = not isinstance(error, FATAL)
        curve = error.curve if isinstance(error, TrainingError) else ()
        reason = describe(error)
        logger.warning("job %s failed: %s", lease.job.id, reason, exc_info=error, extra=_ids(lease))
        self._settle(
            lease,
            "job.failed",
            reason,
            lambda lease, reason: self.bank.jobs.fail(
                lease, reason, backoff_seconds=self._backoff_seconds, retry=retry, curve=curve
            ),
        )

    def _give_back(self) -> None:
        """Release what the other slots have in hand; their next step finds its lease gone."""
        while self._in_hand:
            _, lease = self._in_hand.popitem()
            self._settle(lease, "job.released", "interrupted", self.bank.jobs.release)

    def _settle(self, lease: Lease, name: str, reason: str, write: Callable[[Lease, str], object]) -> None:
        """Write how the job ended. Where that fails the lease runs out, and the job is taken up again."""
        try:
            write(lease, reason)
        except LeaseLost as error:
            self._lost(lease, str(error))
        except StorageError as error:
            logger.warning(
                "job %s: %r could not be written, its lease will run out: %s",
                lease.job.id,
                name,
                error,
                extra=_ids(lease),
            )
        else:
            self._tell(lease, name, {"reason": reason})


def _ids(lease: Lease) -> dict[str, str]:
    """What a log record of the job is about."""
    return {"job_id": lease.job.id, "namespace": lease.job.namespace}
