"""The command ``lotts-search``.

Commands import heavy modules only when they run, so that ``--help`` is quick. This folder parses options, shows
progress and writes output files; the work itself is done by the rest of the package.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from lotts_search import __version__
from lotts_search.cli.command_line import Command
from lotts_search.cli.commands.bench import bench
from lotts_search.cli.commands.demo import demo
from lotts_search.cli.commands.export import export
from lotts_search.cli.commands.generate import generate
from lotts_search.cli.commands.listing import masks, metrics, models, rewriters, strategies, verifiers
from lotts_search.cli.commands.refine import refine
from lotts_search.cli.commands.report import report
from lotts_search.cli.commands.serve import serve
from lotts_search.cli.commands.set_metrics import set_metrics
from lotts_search.cli.commands.status import status
from lotts_search.cli.commands.study import study
from lotts_search.cli.commands.submit import submit
from lotts_search.cli.commands.theory import theory
from lotts_search.cli.commands.train import train
from lotts_search.cli.commands.tune import tune
from lotts_search.cli.commands.verifier_env import verifier_env
from lotts_search.errors import BadInput, LottsError, Notice, place_of
from lotts_search.study.signals import terminable

DISK = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPERM, errno.EROFS)
"""Errors of files that are no fault of the program."""
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Search": (generate, refine, serve, demo),
    "Study": (study, submit, status, tune, report, export, set_metrics, theory),
    "Models and plug-ins": (models, strategies, verifiers, verifier_env, metrics, rewriters, masks),
    "Development": (train,),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel, cls=Command)(command)
app.add_typer(bench, name="bench", rich_help_panel="Development")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lotts-search {__version__}")
        raise typer.Exit


@app.callback()
def explain(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; allowed anywhere.")] = False,
) -> None:
    """A better image for more compute: test-time search for text-to-image diffusion models.

    A search samples images for a prompt, scores them with a verifier, refines them, and keeps the best one that a compute
    budget pays for. The embedded models need no download and no GPU:

        lotts-search demo                       # LoTTS against Best-of-N, as a page

        lotts-search generate --help            # one search, with examples

        lotts-search study examples/study.yaml  # strategies over many prompts

    `lotts-search COMMAND --help` explains a command and shows examples.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 failure, 2 bad input, 130 stopped by Ctrl-C or SIGTERM.

    Args:
        arguments: the words after the program's name; those of the process when None.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:end]
    given = [word for word in given[:end] if word != "--debug"] + given[end:]
    warnings.simplefilter("always", Notice)
    warnings.showwarning = _Notices(warnings.showwarning)
    with suppress(OSError):  # the working directory may have been deleted
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # --strategy my_module:Name imports from there, as python -m does
    try:
        with terminable():
            app(given, prog_name="lotts-search")
    except SystemExit as end:
        # Typer turns Ctrl-C into an exit without a word.
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            _say("stopped", debug)
        raise
    except LottsError as error:
        _say(f"error: {error}", debug)
        sys.exit(2 if isinstance(error, BadInput) else 1)
    except Exception as error:
        lines = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        if isinstance(error, OSError) and error.errno in DISK:
            _say(f"error: {error}", debug)
        else:
            _say(f"error: {what}{place_of(error) or ' (unexpected; --debug shows where)'}", debug)
        sys.exit(1)


class _Notices:
    """Prints each :class:`~lotts_search.errors.Notice` once, and other warnings as before."""

    def __init__(self, other: Callable[..., None]):
        self._other, self._said = other, set[str]()

    def __call__(self, message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
        if not issubclass(category, Notice):
            self._other(message, category, *where, **options)
        elif str(message) not in self._said:
            self._said.add(str(message))
            print(f"note: {message}", file=sys.stderr)


def _say(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
