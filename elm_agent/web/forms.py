"""What a browser sends: fields of forms and of queries, each of a known name, kind and length."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import TypeVar
from urllib.parse import parse_qsl

from starlette.requests import Request

from elm_agent.errors import InputError, NotFound
from elm_agent.records import is_storable

MOST_BYTES = 20_000
LONGEST_TEXT = 2000  # characters
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

Choice = TypeVar("Choice", bound=StrEnum)


class TooMuch(InputError):
    """A form that is longer than any of ours."""


class Forged(InputError):
    """A form that was not made for the session that sends it."""


async def fields_of(request: Request) -> dict[str, str]:
    """The fields of a form. Raises ``TooMuch``, or ``InputError`` for what is no form."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise TooMuch(f"the form has more than {MOST_BYTES} bytes: nothing was done")
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=50))
    except ValueError:
        raise InputError("what was sent is no form of this page") from None


def text(fields: dict[str, str], name: str) -> str | None:
    """A text without white space around it; None when it is blank. Raises ``InputError``."""
    value = fields.get(name, "").strip()
    if len(value) > LONGEST_TEXT:
        raise InputError(f"{name} has {len(value)} characters: expected at most {LONGEST_TEXT}")
    if not is_storable(value):
        raise InputError(f"{name} holds characters that no database stores")
    return value or None


def choice(fields: dict[str, str], name: str, kind: type[Choice], among: Iterable[Choice] = ()) -> Choice | None:
    """One of the values of an enum, or None for none. Raises ``InputError``."""
    value = fields.get(name, "")
    try:
        found = kind(value) if value else None
    except ValueError:
        found = None
    allowed = list(among) or list(kind)
    if value and found not in allowed:
        raise InputError(f"{name} is {value[:40]!r}: expected one of {', '.join(allowed)}")
    return found


def number(fields: dict[str, str], name: str) -> int | None:
    """A whole number of at most 18 digits, or None. Raises ``InputError``."""
    value = fields.get(name, "")
    if not value:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= 18):
        raise InputError(f"{name} is {value[:40]!r}: expected a whole number")
    return int(value)


def identifier(request: Request, name: str) -> str:
    """An id in the path. Raises ``NotFound`` for what never was one."""
    return known(str(request.path_params[name]), name.removesuffix("_id"))


def known(value: str, what: str) -> str:
    """``value``, if it may be an id. Raises ``NotFound``."""
    if not _ID.fullmatch(value):
        raise NotFound(f"there is no {what} {value[:80]!r}")
    return value
