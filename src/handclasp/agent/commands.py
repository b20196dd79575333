"""Commands and signals: bounded in time, with their output kept for the finding."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from handclasp.agent import reach
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    import subprocess

_OUTPUT = 1500


def run_command(what: str, argv: Sequence[str], *, timeout: float, environment: Mapping[str, str]) -> None:
    """Run a program; raise ``delivery_failed`` when it cannot be started, ends with another status than 0, or does not end in time.

    It has no shell, no input, and none of the agent's own settings in its environment. What it started goes with it when time is over.
    """
    import subprocess
    import tempfile

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
    import subprocess

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
    """Send a signal to the process in a pid file; raise ``delivery_failed``.

    A file that a service's user can write chooses among the processes of that user only, whatever this agent may signal (systemd's rule
    for ``PIDFile=``, systemd.service(5); CVE-2018-16888).
    """
    try:
        with reach.file(pidfile) as reached:
            writers = {os.fstat(reached.descriptor).st_uid} | reached.hands
            pid = int(reach.read_all(reached.descriptor, pidfile, 4096)[:32].split()[0])
        if pid <= 1:
            raise ValueError
    except (OSError, ValueError, IndexError) as error:
        raise HandclaspError(Kind.DELIVERY_FAILED, f"reload: there is no process id in {pidfile}") from error
    try:
        process = os.pidfd_open(pid)
    except (OSError, OverflowError) as error:
        raise _unsignalled(pid, error) from error
    try:
        # Read after the descriptor was had, so the one that is looked at is the one that is signalled, or nobody is.
        if not writers <= {0, os.geteuid()} and _uid_of(pid) not in writers:
            raise _unsignalled(pid, f"it is not a process of the user who can write {pidfile}")
        signal.pidfd_send_signal(process, number)
    except OSError as error:
        raise _unsignalled(pid, error) from error
    finally:
        os.close(process)


def _uid_of(pid: int) -> int:
    """Return the real user of a process. Raises ``OSError``."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Uid:"))


def _unsignalled(pid: int, why: object) -> HandclaspError:
    words = why.strerror or why if isinstance(why, OSError) else why
    return HandclaspError(Kind.DELIVERY_FAILED, f"reload: process {pid} cannot be signalled: {words}")
