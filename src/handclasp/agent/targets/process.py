"""Making a process that is ours for good: recorded before it becomes the command, ended with us, and found again by whoever comes after us.

1. Before it becomes the command, a new process waits until its process id is durably recorded (``child.json``); it goes away if the agent
   is gone by then.
2. The kernel sends it SIGTERM when the agent dies (prctl, set by itself after its uid is final, because a change of uid clears it).
3. The next agent reads the record and ends whatever is left of it, the whole process group, before it starts another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from handclasp.agent import reach
from handclasp.agent.generations import replace_file
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault

declare("exec.spawned", "exec.recorded", "exec.released")

_log = logging.getLogger("handclasp.agent.exec")
RECORD = "child.json"
DIRECTORY = "HANDCLASP_DIRECTORY"
"""The variable in a child's environment that names the directory with its credentials."""
_OURS = ("HANDCLASP_", "NOTIFY_", "LISTEN_", "CREDENTIALS_", "WATCHDOG_")
"""Beginnings of variables that are the agent's own and not for a child."""

# Runs in the new process, without our modules: it holds nothing of the agent's but the end of one pipe.
_LAUNCH = """\
import ctypes, os, sys, warnings  # all of it now: as another user it may not find Python's own files
parent, user, group, groups, *command = sys.argv[1:]
what = "its user cannot be set (is the agent root?)"
try:
    if groups != "-":
        os.setgroups([int(one) for one in groups.split(",") if one])
    if group != "-":
        os.setgid(int(group))
    if user != "-":
        os.setuid(int(user))
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
    if os.getppid() != int(parent) or os.read(0, 1) != b"g":
        os._exit(125)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    what = command[0] + " cannot be started"
    os.execvp(command[0], command)
except OSError as error:
    sys.stderr.write(f"{what}: {error.strerror}\\n")
    sys.stderr.flush()
    os._exit(127 if error.errno == 2 else 126)
"""


@dataclass(frozen=True, slots=True)
class Spec:
    """What to run. ``user`` and ``group`` are numeric, -1: the agent's own. Times are seconds.

    ``restart`` is ``always``, ``on_failure`` (not after status 0) or ``never``; ``backoff`` the first and the longest pause before that.
    """

    command: tuple[str, ...]
    directory: Path
    environment: tuple[tuple[str, str], ...] = ()
    restart: str = "always"
    backoff: tuple[float, float] = (1.0, 60.0)
    user: int = -1
    group: int = -1
    stop_timeout: float = 10.0


class Record(msgspec.Struct, kw_only=True):
    """``child.json``: the process that was started last. ``started`` is the kernel's start time; with ``boot`` it tells pids apart."""

    version: int = 1
    pid: int
    started: int
    boot: str


def spawn(spec: Spec) -> subprocess.Popen[bytes]:
    """Make the process, record it, and let it become the command. Its output comes through ``stdout``, which does not block.

    Raises ``OSError`` and ``subprocess.SubprocessError``. A command that cannot be found is a process that ends with status 127.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *_account(spec), *spec.command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=inherited | dict(spec.environment),
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    fault("exec.spawned")
    try:
        os.set_blocking(process.stdout.fileno(), False)
        record = Record(pid=process.pid, started=_started(process.pid), boot=_boot())
        replace_file(spec.directory / RECORD, msgspec.json.encode(record))
        fault("exec.recorded")
        process.stdin.write(b"g")
        process.stdin.close()
    except BaseException:
        process.kill()
        process.wait()
        process.stdout.close()
        with contextlib.suppress(OSError):
            process.stdin.close()
        raise
    fault("exec.released")
    return process


def _account(spec: Spec) -> tuple[str, str, str]:
    """Return user, group and supplementary groups for the launcher; "-": as they are."""
    if spec.user in (-1, os.geteuid()) and spec.group in (-1, os.getegid()):
        return "-", "-", "-"
    import pwd

    group, groups = spec.group, []
    with contextlib.suppress(KeyError):
        entry = pwd.getpwuid(spec.user if spec.user >= 0 else os.geteuid())
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        group = entry.pw_gid if group < 0 else group
    found = sorted({*groups, *([group] if group >= 0 else [])})
    return str(spec.user) if spec.user >= 0 else "-", str(group) if group >= 0 else "-", ",".join(map(str, found))


def end_left_over(directory: Path, timeout: float) -> None:
    """End what an agent before us left running here: its whole process group, at once when it does not go within ``timeout`` seconds.

    Raises ``delivery_failed`` when it does not even go then.
    """
    try:
        with reach.file(directory / RECORD) as reached:
            if os.fstat(reached.descriptor).st_uid != os.geteuid():  # whoever wrote it would choose whom we end
                return
            record = msgspec.json.decode(reach.read_all(reached.descriptor, directory / RECORD, 4096), type=Record)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return
    if record.pid <= 1 or record.boot != _boot() or not _is_left_over(record, directory):
        return
    _log.warning("a process that an agent before this one started is still there, and is ended: %d", record.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(record.pid, number)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not _is_left_over(record, directory):
                return
            time.sleep(0.02)
    raise HandclaspError(Kind.DELIVERY_FAILED, f"process {record.pid}, which an earlier agent started, cannot be ended")


def _is_left_over(record: Record, directory: Path) -> bool:
    """Tell whether a recorded process, or another of its session, still runs."""
    started = _facts(record.pid)
    if started is not None:
        return started[1] == record.started
    # Its leader is gone. The number may be another's by now, so who has it must also have been given our directory.
    mark = f"{DIRECTORY}={directory}/".encode()
    return any(session == record.pid and mark in _environment(pid) for pid, session in _sessions())


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _sessions() -> list[tuple[int, int]]:
    """Return (pid, session) of everything that runs."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    return [(pid, facts[0]) for pid in pids if (facts := _facts(pid)) is not None]


def _facts(pid: int) -> tuple[int, int] | None:
    """Return session and start time of a process that is not yet a zombie; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *fields = stat[stat.rindex(b")") + 2 :].split()  # the name before it may hold anything; proc(5)
    return None if state in (b"Z", b"X") else (int(fields[2]), int(fields[18]))


def _started(pid: int) -> int:
    facts = _facts(pid)
    return facts[1] if facts else 0


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def kill_group(pid: int) -> None:
    """Kill a process group, if it is there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
