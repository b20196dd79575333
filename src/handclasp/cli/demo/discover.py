"""Discovery in the demo: its own service is found again by a scan of its port, its own files by its agents."""

from __future__ import annotations

from pathlib import Path

from handclasp.cli import terminal
from handclasp.client.api import ApiClient
from handclasp.errors import HandclaspError
from handclasp.wire.discovery import RunRequest, Scan, Source, SourceRequest, SourceScope

NETWORK, FILES = "demo-network", "demo-files"


def begin(client: ApiClient, port: int, home: Path) -> None:
    """Add a source for the port of the service, and one for the files of the demo, and begin a scan of each."""
    terminal.say("discovering what is there: the service's port, and the agents' files")
    requests = (
        SourceRequest(name=NETWORK, kind="network", scope=SourceScope(allow=["127.0.0.1"]), settings={"ports": [str(port)]}, every="1m"),
        SourceRequest(name=FILES, kind="files", settings={"paths": [str(home)]}),
    )
    for request in requests:
        client.call("POST", "/v1/sources", body=request, response=Source)
        try:
            client.call("POST", f"/v1/sources/{request.name}:run", body=RunRequest(), response=Scan)
        except HandclaspError:
            continue  # its schedule has begun one already


def found(client: ApiClient) -> dict[str, int]:
    """Return at how many places each source has found certificates so far."""
    places = {}
    for name in (NETWORK, FILES):
        source = client.call("GET", f"/v1/sources/{name}", response=Source)
        places[name.removeprefix("demo-")] = source.locations or 0
    return places
