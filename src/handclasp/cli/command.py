"""What every command has: an example, ``--json``, the connection options where it talks to a server, and one way of failing.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from handclasp.cli import terminal
from handclasp.cli.lazy import LazyGroup
from handclasp.errors import HandclaspError, Kind, problem_type

if TYPE_CHECKING:
    from handclasp.cli.connection import Api

R = TypeVar("R")
CONNECTION = ("url", "token_file", "ca")


@dataclass
class State:
    """What the options that every command shares came to."""

    json: bool = False
    url: str | None = None
    token_file: str | None = None
    ca: str | None = None

    def api(self, **credentials: Any) -> Api:
        """Return a connection to the server that the options, the environment and the configuration file name."""
        from handclasp.cli.connection import connect

        return connect(self, **credentials)


_hand_over = click.make_pass_decorator(State, ensure=True)


def pass_state(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command what the shared options came to, as its first argument."""
    return _hand_over(function)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep a shared option: what stands nearest to the command wins, what is not given changes nothing."""
    if value and param.name:
        setattr(ctx.ensure_object(State), param.name, value)


def json_option() -> click.Option:
    """Return the ``--json`` option."""
    return click.Option(["--json"], is_flag=True, expose_value=False, callback=_remember, help="Write one JSON value to stdout.")


def connection_options() -> list[click.Parameter]:
    """Return the options that say which server, as whom, and what to trust."""
    return [
        click.Option(
            ["--url"], metavar="URL", expose_value=False, callback=_remember, help="The server, https://host:8443 [env: HANDCLASP_URL]."
        ),
        click.Option(
            ["--token-file"],
            metavar="FILE",
            expose_value=False,
            callback=_remember,
            help="File that holds the access token; - reads it from stdin [env: HANDCLASP_TOKEN_FILE; HANDCLASP_TOKEN: the token itself].",
        ),
        click.Option(
            ["--ca"],
            metavar="FILE|sha256:HEX",
            expose_value=False,
            callback=_remember,
            help="Trust bundle, or the root's fingerprint for first contact [env: HANDCLASP_CA].",
        ),
    ]


class Command(click.Command):
    """A command with an example and ``--json``; with ``client=True`` also the connection options, or those of them named."""

    def __init__(self, *args: Any, example: str, client: bool | Sequence[str] = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.params.append(json_option())
        wanted = CONNECTION if client is True else client or ()
        self.connection = [option for option in connection_options() if option.name in wanted]
        self.params.extend(self.connection)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write arguments, the command's own options, and the connection's below them."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Connection": []}
        for param in self.get_params(ctx):
            title = "Arguments" if isinstance(param, click.Argument) else "Connection" if param in self.connection else "Options"
            record = param.get_help_record(ctx)
            if record is not None:
                sections[title].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write nothing: click has a section of its own for arguments since 8.5, and ours stands with the options."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  (click calls it so)
        """Write the example, as it is typed."""
        with formatter.section("Example"):
            for line in self.example.splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Group(click.Group):
    """A group of commands of one module."""

    command_class = Command
    group_class = type


class RootGroup(LazyGroup):
    """The program itself: turns whatever ends a command into words, an exit code and, with ``--json``, a problem."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C ends it quietly with 130, as shells expect (128 + SIGINT)."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if terminal.is_terminal(sys.stderr):
                sys.stderr.write("\n")
            ctx.exit(130)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the program and leave the process with its exit code."""
        given = list(sys.argv[1:] if args is None else args)

        def run() -> Any:
            return super(RootGroup, self).main(given, prog_name, complete_var, standalone_mode=False, **extra)

        if not standalone_mode:
            return run()
        sys.exit(exit_code_of(run, as_json=wants_json(given)))


def wants_json(args: Sequence[str]) -> bool:
    """Tell from bare arguments whether an error must be JSON too: the options may be what could not be parsed."""
    options = args[: list(args).index("--")] if "--" in args else args
    return "--json" in options


def exit_code_of(run: Callable[[], Any], *, as_json: bool) -> int:
    """Run a command and return its exit code, saying what went wrong when something did."""
    try:
        code = run()
        sys.stdout.flush()
    except click.Abort:
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        terminal.say(error.format_message())
        return 2
    except click.UsageError as error:
        return _usage(error, as_json=as_json)
    except HandclaspError as error:
        return _failed(error, as_json=as_json)
    except BrokenPipeError:
        # The reader has what it wanted. Python would complain once more when it flushes stdout on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
        return 1
    except click.ClickException as error:
        return _failed(HandclaspError(Kind.BAD_REQUEST, error.format_message()), as_json=as_json)
    except OSError as error:
        return _failed(_os_error(error), as_json=as_json)
    return code if isinstance(code, int) else 0


def _usage(error: click.UsageError, *, as_json: bool) -> int:
    sentence = error.format_message().rstrip(".")
    sentence = sentence[:1].lower() + sentence[1:]
    path = error.ctx.command_path if error.ctx else "handclasp"
    if as_json:
        terminal.write_json(problem(Kind.BAD_REQUEST, sentence, f"{path} --help", title="Wrong usage"))
    terminal.error(sentence, "usage", f"{path} --help")
    return 2


def _failed(error: HandclaspError, *, as_json: bool) -> int:
    if as_json:
        terminal.write_json(problem(error.kind, error.detail, error.hint))
    terminal.error(error.detail, error.kind.value, error.hint)
    return 1


def problem(kind: Kind, detail: str, hint: str, *, title: str = "") -> dict[str, Any]:
    """Return the RFC 9457 problem that the server answers with for such an error; one that arose here looks the same."""
    from handclasp.api.problems import STATUS

    return {
        "type": problem_type(kind),
        "title": title or kind.value.replace("_", " ").capitalize(),
        "status": STATUS[kind],
        "kind": kind.value,
        "detail": detail,
        "hint": hint,
        "instance": "",
    }


def _os_error(error: OSError) -> HandclaspError:
    what = f"{error.filename}: {error.strerror}" if error.filename else (error.strerror or str(error))
    if isinstance(error, FileNotFoundError):
        return HandclaspError(Kind.NOT_FOUND, what)
    if isinstance(error, PermissionError):
        return HandclaspError(Kind.NOT_ALLOWED, what, hint="run it as the user who owns the file")
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return HandclaspError(Kind.BAD_REQUEST, what)
    return HandclaspError(Kind.UNAVAILABLE, what)
