"""The systemd unit of a process, from its control group: ``systemd:id:nginx.service``. Units of a user's own manager do not count."""

from __future__ import annotations

from handclasp.agent.socket.attest.cgroup import read_cgroup
from handclasp.agent.socket.proc import Process


class SystemdAttestor:
    """Reads ``/proc/PID/cgroup``; systemd is not asked, so the agent needs no bus."""

    name = "systemd"

    def selectors(self, process: Process, wanted: frozenset[str] | None) -> list[str]:  # noqa: ARG002  (it costs nothing)
        """Return the unit, or nothing for a process outside of any."""
        unit = read_cgroup(process.read("cgroup")).unit
        return [f"systemd:id:{unit}"] if unit else []
