"""``lotts-search verifier-env``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lotts_search.cli.options import Json

if TYPE_CHECKING:
    from lotts_search.verifiers.environments.prepare import Environment


def verifier_env(
    name: Annotated[
        str | None,
        typer.Argument(help="A verifier with an environment of its own, or a recipe (.toml).", show_default=False),
    ] = None,
    every: Annotated[bool, typer.Option("--list", help="List verifiers with environments, and their states.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of all environments [default: $LOTTS_ENVIRONMENTS, or lotts-search/environments in the cache].",
            show_default=False,
        ),
    ] = None,
    python: Annotated[
        Path | None, typer.Option(help="Interpreter to make it from [default: the running one].", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Prepare it anew, even if it is ready.")] = False,
    json: Json = False,
) -> None:
    """Prepare the environment of a verifier whose packages conflict with this project's, and check it.

    The packages are downloaded once; afterwards the environment needs no network. It is prepared anew if its recipe has
    changed. pip's own settings apply, e.g. PIP_EXTRA_INDEX_URL for the CPU build of torch.

    Examples:

        lotts-search verifier-env --list

        lotts-search verifier-env hpsv2-package

        lotts-search verifier-env my_package.judge:Judge --python python3.11
    """
    from lotts_search import registry
    from lotts_search.cli.progress import Live
    from lotts_search.errors import BadInput, unknown
    from lotts_search.verifiers.environments.check import check_verifier_there
    from lotts_search.verifiers.environments.prepare import Environment, prepare
    from lotts_search.verifiers.environments.recipe import find_recipe, recipe_of

    if every == (name is not None):
        raise BadInput("name one verifier, or give --list")
    if name is None:
        _list(_environments(folder), json)
        return
    verifier: Any = None
    if name.endswith(".toml"):
        recipe = find_recipe(name)
    else:
        verifier = registry.verifier_class(name)
        own = recipe_of(verifier)
        if own is None:
            raise unknown("environment of verifier", name, _environments(folder))
        recipe = own
    environment = Environment.of(recipe, folder)
    with Live(f"environment {recipe.name}: {recipe.summary}") as live:
        if force or environment.state != "ready":
            prepare(
                environment,
                python=python,
                on_step=lambda share, what: live.console.print(f"{live.elapsed:5.0f} s  {what}", soft_wrap=True),
            )
        if verifier is not None:
            live.console.print(f"{live.elapsed:5.0f} s  try {name}")
            checked = check_verifier_there(verifier, name, folder)
            live.console.print(f"{live.elapsed:5.0f} s  {checked}", soft_wrap=True)
    _list({name: environment}, json)


def _environments(folder: Path | None) -> dict[str, Environment]:
    """Return the environments of the registered verifiers; one that cannot be imported has none."""
    from lotts_search import registry
    from lotts_search.errors import BadInput
    from lotts_search.verifiers.environments.prepare import Environment
    from lotts_search.verifiers.environments.recipe import recipe_of

    found = {}
    for name in registry.verifiers():
        try:
            recipe = recipe_of(registry.verifier_class(name))
        except BadInput:
            continue
        if recipe is not None:
            found[name] = Environment.of(recipe, folder)
    return found


def _list(environments: dict[str, Environment], json: bool) -> None:
    from rich.table import Table

    from lotts_search.cli.console import Console

    rows = {
        name: {
            "state": environment.state,
            "gigabytes": round(environment.record.get("bytes", 0) / 1e9, 2),
            "folder": str(environment.path),
        }
        for name, environment in environments.items()
    }
    if json:
        print(json_module.dumps(rows))
        return
    table = Table("verifier", "state", "GB", "folder", box=None, pad_edge=False, header_style="bold")
    for name, row in rows.items():
        table.add_row(name, str(row["state"]), str(row["gigabytes"] or ""), str(row["folder"]))
    Console(soft_wrap=True).print(table)
