"""``elm-agent config``: what the settings are and what they mean. Needs neither bank nor model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from elm_agent.cli.options import Shared, group, shared

if TYPE_CHECKING:
    from pydantic import BaseModel

app = group("config", "Look at the settings.")

_PASSWORD = re.compile(r"(//[^:/@]*:).*@")
_PASSWORD_PARAMETER = re.compile(r"(password=)[^&]+", re.IGNORECASE)


@app.command()
@shared
def show(options: Shared) -> None:
    """Show every setting as it is in force here, its environment variable and what it means; passwords are hidden."""
    settings = options.load()
    out = options.output()
    if out.json:
        values = settings.model_dump(mode="json")
        out.document(values | {"database_url": hide_password(settings.database_url)})
        return
    out.table(("setting", "value", "environment", "meaning"), _rows(settings, ""))


def hide_password(url: str | None) -> str | None:
    """A database URL that may be shown."""
    return None if url is None else _PASSWORD_PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1***@", url))


def _rows(section: BaseModel, prefix: str) -> Iterator[tuple[Any, ...]]:
    from pydantic import BaseModel

    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _rows(value, f"{prefix}{name}.")
        else:
            path = f"{prefix}{name}"
            shown = hide_password(value) if name == "database_url" else "-" if value is None else str(value)
            yield path, shown, "ELM_" + path.replace(".", "__").upper(), field.description or ""
