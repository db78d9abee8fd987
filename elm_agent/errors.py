"""The tree of failures. Every class says one thing and is also the standard-library type a caller would expect.

    ElmError
    ├── SettingsError        (ValueError)    a setting is unknown, out of range or contradicts another
    ├── InputError           (ValueError)    a question, file or argument cannot be used
    │   └── ChangedMeanwhile                 somebody else changed it since the caller looked
    ├── NotFound             (LookupError)   an id or name that is not in the bank
    ├── ModelError           (RuntimeError)  the language model cannot be loaded or used
    │   ├── ModelUnavailable (OSError)       its files are not here and could not be fetched
    │   └── ModelMismatch    (ValueError)    a bank made for another model
    ├── StorageError         (OSError)       a store refused or lost something
    │   ├── TensorMissing    (LookupError)   the record is there, its tensor is not
    │   ├── TensorCorrupt    (ValueError)    bytes, shape or digest are not what the record says
    │   ├── VaultLocked                      content is sealed, and its key is missing or another one
    │   ├── IndexUnavailable                 the vector index cannot be opened or asked
    │   ├── BankMoved                        the bank went to other back ends; this one takes no changes
    │   └── StoreBusy        (TimeoutError)  another process holds a lock for too long
    ├── JobError             (RuntimeError)
    │   ├── LeaseLost                        another worker took the job over; the result is discarded
    │   └── JobCancelled                     somebody asked the job to stop
    ├── TrainingError        (RuntimeError)  a memory could not be trained (for example a loss that is not finite)
    ├── VerificationError    (RuntimeError)  a verifier failed; never turned into a score
    └── TaskError            (RuntimeError)  extracting or comparing answers failed; never turned into a reward

Messages carry what was got, what was expected and the next thing to do.
"""

from __future__ import annotations

from typing import Any


class ElmError(Exception):
    """Root of every failure that elm_agent raises on purpose."""

    exit_code: int = 1
    """Exit status of the command line for this failure (see ``elm-agent --help``)."""


class SettingsError(ElmError, ValueError):
    """A setting is unknown, out of range or contradicts another."""

    exit_code = 2


class InputError(ElmError, ValueError):
    """A question, file or argument cannot be used."""

    exit_code = 2


class ChangedMeanwhile(InputError):
    """A memory was changed by somebody else since the caller looked at it; nothing was done."""


class NotFound(ElmError, LookupError):
    """An id or name that is not in the bank."""

    exit_code = 3


class ModelError(ElmError, RuntimeError):
    """The language model cannot be loaded or used."""

    exit_code = 5


class ModelUnavailable(ModelError, OSError):
    """The model's files are not on this machine and could not be fetched."""


class ModelMismatch(ModelError, ValueError):
    """A bank was made for another model, tokenizer or template."""


class StorageError(ElmError, OSError):
    """A store refused or lost something."""

    exit_code = 4


class TensorMissing(StorageError, LookupError):
    """The record of a memory is there, its tensor file is not."""


class TensorCorrupt(StorageError, ValueError):
    """The bytes, shape or digest of a tensor are not what its record says."""


class VaultLocked(StorageError):
    """Content is sealed, and the key that opens it is missing or another one."""


class IndexUnavailable(StorageError):
    """The vector index cannot be opened or asked."""


class BankMoved(StorageError):
    """The bank was moved to other back ends; this one takes no changes any more."""


class StoreBusy(StorageError, TimeoutError):
    """Another process holds a lock for longer than we wait."""


class JobError(ElmError, RuntimeError):
    """Something about a background job."""

    exit_code = 6


class LeaseLost(JobError):
    """Another worker took the job over; what this worker made is discarded."""


class JobCancelled(JobError):
    """Somebody asked the job to stop."""


class TrainingError(ElmError, RuntimeError):
    """A memory could not be trained. ``curve``: the ``StepRecord`` of each step that was done before."""

    curve: tuple[Any, ...] = ()


class VerificationError(ElmError, RuntimeError):
    """A verifier failed. A failure is a record, never a score."""


class TaskError(ElmError, RuntimeError):
    """Extracting or comparing answers failed. A failure is a record, never a reward."""
