"""The command `bench`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from benchmark import __version__, api
from benchmark.commands.comparing import compare
from benchmark.commands.looking import check, list_, show
from benchmark.commands.planning import plan
from benchmark.commands.publishing import leaderboard
from benchmark.commands.regression import accept, regress
from benchmark.commands.running import calibrate, run
from benchmark.commands.serving import serve
from benchmark.commands.stealing import steal
from benchmark.commands.stores import collect, status, verify
from benchmark.errors import BenchError

app = typer.Typer(
    name="bench",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Query-based black-box attacks against defenses, at matched clean accuracy.",
)

# Newer versions of typer carry their own click: its base of all usage errors, by way of a child.
_UsageError: type[BaseException] = typer.BadParameter.__mro__[2]
_COMMANDS = (
    *(run, plan, calibrate, steal, serve, compare, leaderboard, regress, accept),
    *(list_, show, check, status, collect, verify),
)
for _command in _COMMANDS:
    app.command(_command.__name__.rstrip("_"))(_command)


@app.callback(invoke_without_command=True)
def about(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Measure defenses against query-based black-box attacks."""
    if version:
        typer.echo(f"querybench {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command; mistakes in the input are one line and exit code 2."""
    sys.exit(_guarded())


def _guarded() -> int:
    try:
        outcome: Any = app(standalone_mode=False)
    except api.ShardsFailedError as error:
        return _say(str(error), 2 if error.only_input else 1)
    except BenchError as error:
        return _say(str(error), 2)
    except _UsageError as error:
        return _say(getattr(error, "format_message", error.__str__)(), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted; finished shards are kept, the same command goes on", 130)
    return outcome if isinstance(outcome, int) else 0


def _say(message: str, code: int) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
