"""The commands put together, and how their errors end: in plain lines on stderr and an exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from typing import Annotated, Any

import psycopg
import typer
from typer.core import TyperGroup

from router.cli import check, demo, dsn, each, explain, init, schema, status, tenants
from router.cli._common import BAD_USAGE, FAILED, concealed, show_error
from router.core.errors import ConfigError, RouterError, UnknownTenant, UnknownVersion
from router.testing import ClusterError


@contextmanager
def _concealing() -> Iterator[None]:
    """Let no usage error quote a connection string; typer itself prints them."""
    try:
        yield
    except Exception as error:
        if isinstance(message := vars(error).get("message"), str):
            vars(error)["message"] = concealed(message)
        raise


class _Commands(TyperGroup):
    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _concealing():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _concealing():
            return super().invoke(ctx)


app = typer.Typer(
    name="router",
    cls=_Commands,
    help="Routes requests to the right PostgreSQL: a version, its primary for writing, a replica for reading.",
    epilog="Exit codes: 0 all is fine; 1 something is wrong: a check or request failed; 2 bad usage or bad settings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(check.check)
app.command()(status.status)
app.command()(explain.explain)
app.command()(dsn.dsn)
app.command()(dsn.psql)
app.command()(tenants.tenants)
app.command()(each.each)
app.command()(init.init)
app.command()(schema.schema)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    *,
    program: Annotated[bool, typer.Option("-V", help="Print the version of psycopg-router, the program.")] = False,
    version: Annotated[bool, typer.Option("--version", hidden=True)] = False,
) -> None:
    # Every command means a version of the database by --version; alone, it is what all programs take it for.
    if version and context.invoked_subcommand is not None:
        raise typer.BadParameter(
            f"--version goes behind the command: router {context.invoked_subcommand} --version KEY"
        )
    if program or version:
        print(f"psycopg-router {installed_version('psycopg-router')}")
        raise typer.Exit
    # What a log would say of a failed attempt, each command says itself.
    logging.getLogger().addHandler(logging.NullHandler())


def run() -> None:
    """Run the command that the arguments name, and exit with its code."""
    try:
        app(prog_name="router")
    except (ConfigError, UnknownVersion, UnknownTenant) as error:
        show_error(error)
        sys.exit(BAD_USAGE)
    except (RouterError, ClusterError, psycopg.Error, OSError) as error:
        show_error(error)
        sys.exit(FAILED)
