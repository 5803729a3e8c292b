"""All commands, and what happens when one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from vitprune.cli import compare, dg, export, look, prune, report, search, sweep, train
from vitprune.cli.run import catch_termination, reported

app = typer.Typer(
    name="vitprune",
    help="Structured pruning of vision transformers: trace, prune, fine-tune, measure, save, and load anywhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": prune.demo,
    "inspect": look.inspect,
    "prune": prune.prune,
    "search": search.search,
    "sweep": sweep.sweep,
    "compare": compare.compare,
    "dg": dg.dg,
    "report": report.report,
    "train": train.train,
    "finetune": train.finetune,
    "eval": look.evaluate,
    "bench": look.bench,
    "export": export.export,
}
for name, command in COMMANDS.items():
    app.command(name, no_args_is_help=name != "demo")(reported(command))


def _version(wanted: bool) -> None:
    if wanted:
        from vitprune import __version__

        typer.echo(f"vitprune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = (
        False
    ),
) -> None:
    pass


def main() -> None:
    """Runs the command line and leaves the process with its exit code."""
    catch_termination()
    app()
