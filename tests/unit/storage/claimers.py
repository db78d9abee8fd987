"""What the processes of the concurrency tests run. Imports little, so that they start quickly."""

from __future__ import annotations

from elm_agent.storage.queue.jobs import JobQueue
from elm_agent.storage.sql.database import Database


def drain(jobs: JobQueue, owner: str) -> list[str]:
    claimed = []
    while (lease := jobs.claim(owner, lease_seconds=600)) is not None:
        claimed.append(lease.job.id)
    return claimed


def drain_in_process(url: str, owner: str) -> list[str]:
    database = Database.open(url)
    try:
        return drain(JobQueue(database), owner)
    finally:
        database.close()
