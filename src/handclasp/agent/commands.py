"""Commands and signals: bounded in time, with their output kept for the finding."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from handclasp.errors import HandclaspError, Kind

_OUTPUT = 1500


def run_command(what: str, argv: Sequence[str], *, timeout: float, environment: Mapping[str, str]) -> None:
    """Run a program; raise ``delivery_failed`` when it cannot be started, ends with another status than 0, or does not end in time.

    It has no shell, no input, and none of the agent's own settings in its environment. What it started goes with it when time is over.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HANDCLASP_")}
    # A file and not a pipe: a daemon that inherits it must not keep us waiting for the end of its output.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, **environment},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise HandclaspError(Kind.DELIVERY_FAILED, f"{what}: {argv[0]} cannot be started: {error}") from error
        problem = _wait(process, timeout)
        if problem:
            output.seek(max(0, output.seek(0, os.SEEK_END) - _OUTPUT))
            said = output.read().decode("utf-8", "replace").strip()
            raise HandclaspError(Kind.DELIVERY_FAILED, f"{what}: {argv[0]} {problem}" + (f": {said}" if said else ""))


def _wait(process: subprocess.Popen[bytes], timeout: float) -> str:
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"did not end in {timeout:g} s"
    if status < 0:
        return f"was ended by signal {-status}"
    return f"ended with status {status}" if status else ""


def send_signal(number: int, pidfile: Path) -> None:
    """Send a signal to the process in a pid file; raise ``delivery_failed``."""
    try:
        pid = int(pidfile.read_bytes()[:32].split()[0])
        if pid <= 1:
            raise ValueError
    except (OSError, ValueError, IndexError) as error:
        raise HandclaspError(Kind.DELIVERY_FAILED, f"reload: there is no process id in {pidfile}") from error
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError, OverflowError) as error:
        raise HandclaspError(Kind.DELIVERY_FAILED, f"reload: process {pid} cannot be signalled: {error}") from error
