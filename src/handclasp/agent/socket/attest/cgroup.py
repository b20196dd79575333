"""Which unit, container and pod a process belongs to, from ``/proc/PID/cgroup`` (cgroups(7)). Pure.

What stands furthest to the left was made by whoever started the workload; what stands behind it may have been made by the workload itself,
which can name its own groups after somebody else's container. So the first match of a path counts and never a later one, hierarchies
(version 1 has several) that say different things are believed in nothing, and below a unit or a user's session no container is believed:
the groups there belong to whoever runs in them (``systemd-run --user --scope --unit docker-ID`` is enough).

Forms read: ``/kubepods/burstable/podUID/ID`` (cgroupfs), ``…/kubepods-burstable-podUID_.slice/cri-containerd-ID.scope`` (systemd),
``/docker/ID``, ``/system.slice/docker-ID.scope``, ``libpod-ID.scope``, and the same below a path that begins with ``..`` (a namespace).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from handclasp.errors import HandclaspError, Kind

_POD = re.compile(r"(?:[a-z0-9-]*-)?pod([0-9a-f]{8}([-_])[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?")
_CONTAINER = re.compile(r"(?:(?:[a-z][a-z0-9]*-)*(?P<scope>[0-9a-f]{64})\.scope|(?P<plain>[0-9a-f]{64}))")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}\.(?:service|scope|socket|mount|swap)")
# Groups that can be delegated to who runs in them: units (Delegate=, each user's manager), users' sessions, unprivileged LXC containers.
_DELEGATED = re.compile(r".*\.(?:service|scope|socket|mount|swap)|user|user(?:-.*)?\.slice|lxc(?:[./].*)?")
_LINE = re.compile(r"\d{1,10}:[^:\n]*:(/[^\n]*)")
_MAX_LINES = 64
_MAX_PARTS = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands; empty strings for what it is not in."""

    unit: str = ""
    container: str = ""
    """Container id, 64 hex digits."""
    pod: str = ""
    """Pod uid in its usual form."""


def read_cgroup(data: bytes) -> Place:
    """Return the place. Raises ``bad_request`` for hierarchies that name different containers or pods."""
    paths = _paths(data)
    containers = {found for path in paths if any(found := _container(path))}
    if len(containers) > 1 and len({container for _, container in containers}) > 1:
        raise HandclaspError(Kind.BAD_REQUEST, "the control groups of the process name more than one container")
    pods = {pod for pod, _ in containers if pod}
    if len(pods) > 1:
        raise HandclaspError(Kind.BAD_REQUEST, "the control groups of the process name more than one pod")
    container = next((container for _, container in containers), "")
    return Place(_unit(data), container, next(iter(pods), ""))


def _paths(data: bytes) -> list[list[str]]:
    lines = data.decode("utf-8", "replace").split("\n")[:_MAX_LINES]
    return [match[1].split("/")[1 : _MAX_PARTS + 1] for line in lines if (match := _LINE.fullmatch(line))]


def _container(parts: list[str]) -> tuple[str, str]:
    """Pod uid and container id of one path: the first container, and the pod when it stands directly above it."""
    for index, part in enumerate(parts):
        match = _CONTAINER.fullmatch(part)
        if match:
            above = _POD.fullmatch(parts[index - 1]) if index else None
            return (_uid(above[1]) if above else "", match["scope"] or match["plain"])
        if _DELEGATED.fullmatch(part):
            return "", ""  # whatever stands behind it may have been made by who runs there
        if _POD.fullmatch(part) and index + 1 < len(parts) and not _CONTAINER.fullmatch(parts[index + 1]):
            return "", ""  # something stands where the container should be: not a form that we know
    return "", ""


def _uid(text: str) -> str:
    digits = text.replace("_", "").replace("-", "")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])) if len(text) > 32 else text


def _unit(data: bytes) -> str:
    """The systemd unit: the first part that is no slice, as systemd itself finds it (``cg_path_decode_unit``).

    A unit of a user's own manager stands behind ``user@UID.service`` and does not count: its user could name it as he likes.
    """
    lines = data.decode("utf-8", "replace").split("\n")[:_MAX_LINES]
    named = [line for line in lines if ":name=systemd:" in line] or [line for line in lines if line.startswith("0::")]
    for line in named:
        match = _LINE.fullmatch(line)
        parts = match[1].split("/")[1 : _MAX_PARTS + 1] if match else []
        rest = next((part for part in parts if not part.endswith(".slice")), "")
        if _UNIT.fullmatch(rest):
            return rest
    return ""
