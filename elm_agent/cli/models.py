"""``elm-agent models``: which models come by name, and fetching them before they are needed. Opens no bank."""

from __future__ import annotations

from typing import Annotated

import typer

from elm_agent.cli.options import Shared, group, shared
from elm_agent.cli.progress import download_bar

app = group("models", "Look at the embedded models and fetch them.")


@app.command("list")
@shared
def list_(options: Shared) -> None:
    """List the embedded models. Any hub id, local folder or .gguf file works as well."""
    settings = options.load()
    from elm_agent.models.pull import cache_folder, is_pulled
    from elm_agent.models.registry import EMBEDDED

    found = [
        {
            "name": model.name,
            "default": model.name == settings.model,
            "here": is_pulled(model.name, cache_dir=settings.cache_dir),
            "megabytes": round(model.wheel_bytes / 1e6),
            "licence": model.licence,
            "description": model.description,
        }
        for model in EMBEDDED.values()
    ]
    out = options.output()
    if out.json:
        out.document({"models": found, "cache": cache_folder(settings.cache_dir)})
        return
    columns = ("name", "here", "MB", "licence", "description")
    rows = [
        (item["name"], "yes" if item["here"] else "no", item["megabytes"], item["licence"], item["description"])
        for item in found
    ]
    out.table(columns, rows)
    out.say(f"\ncache: {cache_folder(settings.cache_dir)}\na hub id, a local folder or a .gguf file works as well")


@app.command()
@shared
def pull(
    options: Shared,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Embedded name; by default the model of the settings.")
    ] = None,
) -> None:
    """Fetch an embedded model into the cache; goes on where a broken download ended."""
    settings = options.load()
    from elm_agent.models.pull import pull as pull_model

    wanted = name or settings.model
    out = options.output()
    with download_bar(out, wanted) as progress:
        folder = pull_model(wanted, cache_dir=settings.cache_dir, offline=settings.offline, progress=progress)
    if out.json:
        out.document({"name": wanted, "folder": folder})
    else:
        out.say(f"{wanted} is ready in {folder}")
