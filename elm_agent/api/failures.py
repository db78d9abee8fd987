"""What a failure looks like to other programs: a status and one sentence, ``{"error": {"type", "message"}}``."""

from __future__ import annotations

import logging
from typing import Any

from elm_agent.errors import (
    BankMoved,
    ElmError,
    IndexUnavailable,
    InputError,
    JobError,
    ModelMismatch,
    ModelUnavailable,
    NotFound,
    SettingsError,
    StorageError,
    StoreBusy,
    TaskError,
    TensorCorrupt,
    TensorMissing,
    VaultLocked,
)

logger = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotFound, 404),
    (InputError, 422),
    (SettingsError, 422),  # a name that is no namespace
    (TaskError, 422),  # an answer that cannot be compared with the right one
    (ModelMismatch, 409),
    (BankMoved, 409),
    (JobError, 409),
    (TensorMissing, 409),
    (TensorCorrupt, 409),
    (StoreBusy, 503),
    (IndexUnavailable, 503),
    (VaultLocked, 503),
    (StorageError, 503),
    (ModelUnavailable, 503),
)
_REASONS = {
    400: "InputError",
    401: "Unauthorized",
    404: "NotFound",
    405: "MethodNotAllowed",
    413: "TooLarge",
    421: "WrongHost",
    503: "Busy",
}


class Busy(ElmError):
    """As many questions are being answered as may be at once."""


def status_of(error: BaseException) -> int:
    """The HTTP status of a failure; 500 for what is nobody's input."""
    if isinstance(error, Busy):
        return 503
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def told(error: BaseException) -> dict[str, Any]:
    """The failure as JSON. What nobody foresaw is logged whole, and told by its class alone."""
    if isinstance(error, ElmError):
        return failure(type(error).__name__, str(error))
    logger.error("a question of the API failed", exc_info=error)
    return failure(type(error).__name__, "an unexpected failure: the server's log has more")


def failure(kind: str, message: str) -> dict[str, Any]:
    """The one shape of a failure; ``message``: one line."""
    line = " ".join(message.split())
    return {"error": {"type": kind, "message": line.encode("utf-8", "backslashreplace").decode()}}


def http_failure(status: int, message: str) -> dict[str, Any]:
    """A failure that HTTP itself names."""
    return failure(_REASONS.get(status, "HTTPError"), message)
