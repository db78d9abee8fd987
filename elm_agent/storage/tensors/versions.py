"""Does a bucket keep what is deleted? Asks an S3 server for the versioning of a bucket; knows nothing of tensors."""

from __future__ import annotations

import errno
from typing import Any

_UNKNOWN = ("NotImplemented", "MethodNotAllowed")


def versions_kept(file_system: Any, root: str, place: str) -> str | None:
    """One sentence where the bucket of ``root`` keeps versions, or will not say; None where it keeps none.

    ``file_system``: of s3fs. Suspended versioning counts: what was stored before it was suspended is kept.
    """
    bucket = root.partition("/")[0]
    try:
        status = file_system.call_s3("get_bucket_versioning", Bucket=bucket).get("Status")
    except PermissionError as error:
        reason = " ".join(str(error).split())[:200]
        return (
            f"the bucket of {place} may keep versions of what was deleted: it does not say ({reason}); allow "
            "s3:GetBucketVersioning to have it looked at"
        )
    except OSError as error:
        if error.errno == errno.ENOSYS or any(word in str(error) for word in _UNKNOWN):
            return None  # a server without versions
        raise
    if not status:
        return None
    return (
        f"the bucket of {place} keeps versions (versioning: {status}): deleted tensors stay in it as older versions "
        "until they are deleted there; give it a rule that expires noncurrent versions"
    )
