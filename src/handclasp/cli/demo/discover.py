"""Discovery in the demo: its own service is found again by a scan of its port, its own files by its agents.

A certificate lives for seconds here, and the shortest time between two scans is a minute: so the demo asks for the scans itself, often
enough that what is shown is what is there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from handclasp.cli import terminal
from handclasp.client.api import ApiClient
from handclasp.errors import HandclaspError
from handclasp.wire.discovery import RunRequest, Scan, Source, SourceRequest, SourceScope

NETWORK = "demo-network"
FILES = {"web": "web-files", "caller": "caller-files"}
"""By agent, the source of its files. Each looks at its own: all of them are on one machine here."""


def begin(client: ApiClient, port: int, paths: Mapping[str, list[Path]]) -> None:
    """Add a source for the port of the service, and one for the files that each agent delivers to."""
    terminal.say("discovering what is there: the service's port, and the agents' files")
    requests = [SourceRequest(name=NETWORK, kind="network", scope=SourceScope(allow=["127.0.0.1"]), settings={"ports": [str(port)]})]
    for agent, name in FILES.items():
        settings = {"paths": [str(path) for path in paths[agent]]}
        requests.append(SourceRequest(name=name, kind="files", scope=SourceScope(allow=[agent]), settings=settings))
    for request in requests:
        client.call("POST", "/v1/sources", body=request, response=Source)


@contextmanager
def scanning(server: Mapping[str, str], token: str, every: float) -> Iterator[None]:
    """Scan every so many seconds while the body runs: less than what is left of a certificate when its successor is there."""
    stop = threading.Event()

    def scan() -> None:
        with ApiClient(server["https"], ca=server["ca_file"], token=token) as client:
            while True:
                for name in (NETWORK, *FILES.values()):
                    if stop.is_set():
                        return
                    _run(client, name)
                if stop.wait(every):
                    return

    thread = threading.Thread(target=scan, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(15)


def _run(client: ApiClient, name: str) -> None:
    try:
        client.call("POST", f"/v1/sources/{name}:run", body=RunRequest(), response=Scan)
    except HandclaspError:
        return  # the last one goes on still


def found(client: ApiClient) -> dict[str, int]:
    """Return at how many places certificates were found so far: ports, and files."""
    places = {name: client.call("GET", f"/v1/sources/{name}", response=Source).locations or 0 for name in (NETWORK, *FILES.values())}
    return {"network": places[NETWORK], "files": sum(places[name] for name in FILES.values())}
