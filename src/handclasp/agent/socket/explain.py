"""Which workloads an agent may serve, and what one process would get and why not: from disk and ``/proc``, without the agent."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from handclasp import wire
from handclasp.agent.config import load_config
from handclasp.agent.config.socket import SocketSettings
from handclasp.agent.loop import state_directory
from handclasp.agent.socket.attest import Attested, attest
from handclasp.agent.socket.entitled import read_workloads
from handclasp.agent.socket.match import fill, missing, unfilled
from handclasp.agent.socket.proc import Process
from handclasp.errors import HandclaspError, Kind


class Explained(msgspec.Struct, kw_only=True):
    """One workload of the policy. ``missing`` holds the selectors that the process lacks, ``unfilled`` the placeholders that it cannot
    fill; ``got`` is the identity that it gets, or None."""

    workload: str
    identity: str
    selectors: list[str]
    got: str | None = None
    missing: list[str] = msgspec.field(default_factory=list)
    unfilled: list[str] = msgspec.field(default_factory=list)


class Explanation(msgspec.Struct, kw_only=True):
    """The workloads, and what was found of the process that was asked about (``failed``: attestors that could not say)."""

    workloads: list[Explained]
    pid: int | None = None
    selectors: list[str] = msgspec.field(default_factory=list)
    failed: list[str] = msgspec.field(default_factory=list)


def explain(config_path: str | os.PathLike[str], state_dir: str | os.PathLike[str] | None = None, pid: int | None = None) -> Explanation:
    """Return the workloads that the server last gave this agent and, with ``pid``, what that process is to them. Blocks.

    Raises ``bad_setting`` for a configuration without ``socket:``, ``not_found`` when the server has not been heard of yet, or for a
    process that is not there.
    """
    config = load_config(config_path)
    settings = config.section("socket")
    if not isinstance(settings, SocketSettings):
        raise HandclaspError(Kind.BAD_SETTING, f"{os.fspath(config_path)} has no section socket", hint="docs/workload-api.md has one")
    file = state_directory(config, state_dir) / "socket" / "workloads.json"
    workloads = read_workloads(file)
    if workloads is None:
        raise HandclaspError(
            Kind.NOT_FOUND,
            f"there is no {file} that can be read",
            hint="has the agent run, and reached its server? Where it keeps its state is said by state_dir or --state-dir",
        )
    if pid is None:
        return Explanation(workloads=[_explained(workload, None) for workload in workloads])
    found = _attested(settings, pid)
    return Explanation(
        workloads=[_explained(workload, found) for workload in workloads],
        pid=pid,
        selectors=list(found.selectors),
        failed=list(found.failed),
    )


def _attested(settings: SocketSettings, pid: int) -> Attested:
    from handclasp.agent.socket.attest.table import attestors

    process = Process.of_pid(pid, root=Path(settings.proc))
    try:
        return attest(process, attestors(settings))
    finally:
        process.close()


def _explained(workload: wire.Workload, found: Attested | None) -> Explained:
    explained = Explained(workload=workload.name, identity=workload.identity, selectors=workload.selectors)
    if found is not None:
        explained.missing = missing(workload, found.selectors)
        explained.unfilled = unfilled(workload, found.selectors)
        explained.got = None if explained.missing else fill(workload.identity, found.selectors)
    return explained
