"""What every view works with: the bank, who may see what, long works, and pages made from templates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from elm_agent import __version__
from elm_agent.api.access import Holder
from elm_agent.storage.bank import Bank, NamespaceInfo
from elm_agent.web.sessions import Session, Sessions
from elm_agent.web.walls import Walls
from elm_agent.web.work import Works

if TYPE_CHECKING:
    from elm_agent.protocols import LanguageModel

ACTOR = "web page"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """``open_model``: loads the model that memories are made for; None: the page never does. ``undo_days``: how long
    an evicted memory is safe from a purge.
    """

    bank: Bank
    walls: Walls
    sessions: Sessions
    undo_days: float
    open_model: Callable[[], LanguageModel] | None = None
    works: Works = field(default_factory=Works)
    templates: Environment = field(default_factory=lambda: _environment())

    def namespace(self, request: Request) -> NamespaceInfo:
        """The namespace that the address names. Raises ``NotFound``."""
        return self.walls.namespace(self.bank, holder_of(request), str(request.path_params["namespace"]))

    def page(self, request: Request, template: str, *, code: int = 200, **context: Any) -> HTMLResponse:
        """The page of a template. It knows the session's form token, and the namespace where there is one."""
        session: Session = request.scope["session"]
        info: NamespaceInfo | None = context.get("namespace")
        known = {
            "form": session.form,
            "signed_in": session.holder is not None and not self.sessions.open_to_all,
            "namespace": info,
            "may_change": info is not None and self.walls.may_change(info),
            "path": request.scope["path"],  # not of `request.url`, which a wild Host header breaks
            "code": code,
        }
        text = self.templates.get_template(template).render(known | context)
        return HTMLResponse(text, status_code=code)


def holder_of(request: Request) -> Holder:
    """Who asks; the guard let nobody else in."""
    holder: Holder | None = request.scope["session"].holder
    assert holder is not None
    return holder


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("elm_agent.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"url": url, "version": __version__}
    made.filters |= {"when": when, "figure": figure, "share": share, "short": short, "json": _json}
    return made


def url(*parts: str, **query: Any) -> str:
    """A path of this page, each part quoted; names of a query that are None or blank are left out."""
    path = "/" + "/".join(quote(part, safe="") for part in parts)
    given = {name: str(value) for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def when(moment: datetime | None) -> str:
    """In UTC, to the second."""
    return "–" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S")


def figure(value: float | None, digits: int = 3) -> str:
    """A number as people read it: 12,345 or 0.125."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def share(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.0%}"


def short(text: str | None, width: int = 120) -> str:
    """One line of at most ``width`` characters."""
    line = " ".join((text or "–").split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
