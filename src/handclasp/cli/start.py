"""The ``handclasp`` entry point: the whole command line, or the agent alone.

An agent runs on every host and has 45 MB for everything; the command line would be 7 MB of that for as long as it runs, and a quarter of
the time that it takes to start. So ``handclasp agent run`` with nothing but its usual options goes to the agent directly. Whatever else is
typed, mistakes and ``--help`` included, is the command line's, which knows the same command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

_OPTIONS = {"-c": "config", "--config": "config", "--state-dir": "state_dir", "--log-level": "log_level"}
_LEVELS = ("debug", "info", "warning", "error")


def main() -> None:
    """Run the program."""
    options = agent_options(sys.argv[1:])
    if options is not None and "_HANDCLASP_COMPLETE" not in os.environ:
        _run_agent(options)
    from handclasp.cli.main import main

    main()


def agent_options(arguments: Sequence[str]) -> dict[str, str] | None:
    """Return the options of a plain ``agent run``; None for anything that the command line had better look at."""
    if list(arguments[:2]) != ["agent", "run"]:
        return None
    found, rest = {"log_level": "info"}, list(arguments[2:])
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name not in _OPTIONS or not (equals or rest):
            return None
        value = value if equals else rest.pop(0)
        if not value or value.startswith("-"):
            return None
        found[_OPTIONS[name]] = value
    return found if "config" in found and found["log_level"] in _LEVELS else None


def _run_agent(options: dict[str, str]) -> NoReturn:
    from handclasp.cli import terminal
    from handclasp.cli.parts import agent_part

    try:
        terminal.start_logging(options["log_level"])
        agent_part("", "run")(options["config"], options.get("state_dir"))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # told and mapped to an exit code as in every other command, below
        failure = error
    else:
        sys.exit(0)

    def fail() -> NoReturn:
        raise failure

    from handclasp.cli.command import exit_code_of

    sys.exit(exit_code_of(fail, as_json=False))
