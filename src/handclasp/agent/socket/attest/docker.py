"""The Docker container of a process.

    docker:label:KEY:VALUE  docker:image:nginx:1.29  docker:image_id:sha256:…  docker:name:web

The container's id comes from the control group, the rest from the Docker API on its Unix socket (``GET /containers/ID/json``). Environment
variables are left out: they are where people put secrets, and selectors are shown and logged.
"""

from __future__ import annotations

from typing import Any

from handclasp.agent.socket.attest.base import UnixConnection, clean, get_json, inside, word
from handclasp.agent.socket.attest.cgroup import read_cgroup
from handclasp.agent.socket.proc import Process
from handclasp.errors import HandclaspError, Kind

_MOST = 4 * 1024 * 1024
_SECONDS = 5.0


class DockerAttestor:
    """Asks the daemon behind ``socket_path``; Podman's compatible socket serves too."""

    name = "docker"

    def __init__(self, socket_path: str = "/var/run/docker.sock", *, seconds: float = _SECONDS) -> None:
        self._socket, self._seconds = socket_path, seconds

    def selectors(self, process: Process, wanted: frozenset[str] | None) -> list[str]:  # noqa: ARG002  (one answer has everything)
        """Return what the daemon says of the container; nothing for a process in none."""
        place = read_cgroup(process.read("cgroup"))
        if not place.container or place.pod:
            return []
        try:
            connection = UnixConnection(self._socket, self._seconds)
            answer = get_json(connection, f"/containers/{place.container}/json", {}, most=_MOST, seconds=self._seconds)
        except HandclaspError as error:
            if error.kind is Kind.NOT_FOUND:
                return []  # a container of somebody else's
            raise HandclaspError(error.kind, f"Docker at {self._socket}: {error.detail}") from error
        if word(inside(answer, "Id")) != place.container:
            raise HandclaspError(Kind.UNAVAILABLE, f"Docker at {self._socket} answers with another container")
        return clean(_selectors(answer))


def _selectors(answer: Any) -> list[str]:
    found = []
    labels = inside(answer, "Config", "Labels")
    for name, value in labels.items() if isinstance(labels, dict) else ():
        if isinstance(value, str) and ":" not in name:  # with a colon in the name, two labels could make one selector
            found.append(f"docker:label:{name}:{value}")
    for selector, path in (("image", ("Config", "Image")), ("image_id", ("Image",)), ("name", ("Name",))):
        value = word(inside(answer, *path)).removeprefix("/")
        if value:
            found.append(f"docker:{selector}:{value}")
    return found
