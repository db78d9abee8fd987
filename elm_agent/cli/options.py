"""The options every command shares, given before or after the command's name. Knows nothing of any command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from elm_agent.cli.output import Output
from elm_agent.errors import InputError

if TYPE_CHECKING:
    from elm_agent.settings import Settings

PANEL = "Shared options"
TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]
"""How a time is given to an option; without a zone it is local, see ``in_zone``."""


def _option(name: str, metavar: str, text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=PANEL, show_default=False)


_ANNOTATIONS: dict[str, Any] = {
    "home": Annotated[Path | None, _option("--home", "DIR", "Folder of the embedded bank.")],
    "namespace": Annotated[str | None, _option("--namespace", "NAME", "Namespace (tenant) of the bank.")],
    "model": Annotated[str | None, _option("--model", "NAME", "Embedded name, hub id, folder or .gguf file.")],
    "settings": Annotated[Path | None, _option("--settings", "FILE", "TOML file of settings.")],
    "database_url": Annotated[str | None, _option("--database-url", "URL", "SQLAlchemy URL of the database.")],
    "log_format": Annotated[
        Literal["text", "json"] | None,
        _option("--log-format", "FORM", "Of log lines on standard error: text or json."),
    ],
    "json": Annotated[
        bool, typer.Option("--json", help="Only JSON on standard output.", rich_help_panel=PANEL, show_default=False)
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the user gave of the shared options; None means "as the settings say"."""

    home: Path | None = None
    namespace: str | None = None
    model: str | None = None
    settings: Path | None = None
    database_url: str | None = None
    log_format: Literal["text", "json"] | None = None
    json: bool = False

    def over(self, earlier: Shared | None) -> Shared:
        """These options, completed by those given earlier on the line; the later word wins."""
        if earlier is None:
            return self
        return Shared(**{f.name: getattr(self, f.name) or getattr(earlier, f.name) for f in fields(self)})

    def load(self, **overrides: Any) -> Settings:
        """The settings of this call. ``overrides`` are what the command itself decides.

        Raises:
            SettingsError: a file, name or value that cannot be used.
        """
        from elm_agent.settings import load_settings

        names = ("home", "namespace", "model", "database_url", "log_format")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return load_settings(self.settings, **given, **overrides)

    def output(self) -> Output:
        return Output(json=self.json)


def in_zone(value: datetime | None) -> datetime | None:
    """A time that was given to an option, in UTC. Raises ``InputError`` at the ends of the calendar."""
    try:
        return None if value is None else value.astimezone(UTC)
    except OverflowError:
        raise InputError(
            f"the time {value} cannot be told in every zone: name one after year 1, before 9999"
        ) from None


def shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command; ``function`` receives them as its first argument, a ``Shared``."""
    _, *own = inspect.signature(function, eval_str=True).parameters.values()

    @functools.wraps(function)
    def command(ctx: typer.Context, **values: Any) -> Any:
        here = Shared(**{name: values.pop(name) for name in _ANNOTATIONS})
        ctx.obj = here.over(ctx.obj)
        return function(ctx.obj, **values)

    extra = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=False if name == "json" else None, annotation=a
        )
        for name, a in _ANNOTATIONS.items()
    ]
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    parameters = [context, *own, *extra]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads this one
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def group(name: str, text: str) -> typer.Typer:
    """A group of commands that also takes the shared options."""
    made = typer.Typer(name=name, help=text, rich_markup_mode=None)
    made.callback(help=text)(shared(_nothing))
    return made


def _nothing(_: Shared) -> None:
    """Only takes the options; the command does the work."""
