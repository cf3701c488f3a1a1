"""`medseg-brn`: the list of commands and the one place where errors become messages and exit codes."""

import sys
from typing import Annotated

import typer

from medseg_brn.cli.check import check
from medseg_brn.cli.compare import compare
from medseg_brn.cli.config import config
from medseg_brn.cli.demo import demo
from medseg_brn.cli.doctor import doctor
from medseg_brn.cli.evaluate import evaluate
from medseg_brn.cli.infer import infer
from medseg_brn.cli.models import models
from medseg_brn.cli.plan import plan
from medseg_brn.cli.study import study
from medseg_brn.cli.train import train
from medseg_brn.cli.view import view
from medseg_brn.errors import MedsegError

app = typer.Typer(
    name="medseg-brn",
    help="3D medical image segmentation that trains on batches of one to four patches.",
    epilog="Start with `medseg-brn demo`: it needs no data and no network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, check, plan, train, infer, view, evaluate, compare, config, doctor):
    app.command()(command)
app.add_typer(models, name="models")
app.add_typer(study, name="study")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("medseg-brn"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """3D medical image segmentation that trains on batches of one to four patches."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 an error told once, 2 wrong usage, 130 interrupted."""
    try:
        app()
    except MedsegError as error:
        print(f"medseg-brn: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        print(
            f"medseg-brn: {error.filename}: {error.strerror}; check the path and its permissions",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("medseg-brn: interrupted", file=sys.stderr)
        sys.exit(130)
