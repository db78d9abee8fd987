"""From a URL of tensors to a file system of fsspec; what its errors mean. Knows nothing of tensors.

Credentials come from where the file system's own library looks for them (for S3 the AWS environment variables,
profile or role): settings are shown and shared, so an option that looks like a secret is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from elm_agent.errors import SettingsError

_SECRET = re.compile(r"^(key|pass|pwd|sas|credentials?)$|secret|token|passw|access_key|account_key|connection_string")
_S3_PATIENCE = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2, "mode": "standard"}}


def local_folder(place: str) -> Path | None:
    """The folder that a path or a ``file://`` URL names; None for any other URL. Raises ``SettingsError``."""
    scheme, separator, rest = place.partition("://")
    if not separator:
        return Path(place)
    if scheme not in ("file", "local"):
        return None
    if not rest.startswith("/"):
        raise SettingsError(f"tensors {place!r} names no folder of this machine: expected file:///FOLDER")
    return Path(rest)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ``SettingsError`` for an option that looks like a secret: settings are shown, logged and shared."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            check_options(value)
        elif _SECRET.search(str(name).lower()):
            raise SettingsError(
                f"tensor_options.{name} looks like a secret, which settings must not hold: leave it out and give it "
                "in the environment (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
            )


def redacted(url: str) -> str:
    """The URL without the password that may stand in it."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", url)


def open_file_system(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of a URL and the path in it, without a slash at its end.

    Raises:
        SettingsError: an unknown kind of URL, a missing package, or a secret among the options.
    """
    check_options(options)
    scheme = url.partition("://")[0]
    if scheme in ("s3", "s3a"):
        options = {
            "config_kwargs": _S3_PATIENCE,
            **options,
        }  # a server that is gone costs an answer a second, not ten
    try:
        system, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **options)
    except ImportError as error:
        package = {"s3": "'elm-agent[s3]'", "s3a": "'elm-agent[s3]'"}.get(scheme, "the package that it names")
        raise SettingsError(
            f"tensors at {scheme}:// need a package that is not installed ({error}): pip install {package}"
        ) from error
    except (ValueError, TypeError) as error:
        raise SettingsError(f"tensors at {redacted(url)} cannot be opened: {error}") from error
    if not str(root).strip("/") and scheme not in ("memory",):
        raise SettingsError(f"tensors {redacted(url)!r} names no bucket or folder: expected s3://BUCKET/PREFIX")
    return system, str(root).rstrip("/")


def advice_on(error: Exception) -> str:
    """What a file system's library said, in one line, and what to do."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return (
            f"access was refused ({reason}); check the credentials in the environment (for S3: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) and what they may do"
        )
    return f"{reason}; check that the server is up and reachable, then run the same command again"
