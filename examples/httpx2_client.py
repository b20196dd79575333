"""An httpx2 client whose certificate and trust follow the agent's files.

    python examples/httpx2_client.py /etc/myapp/tls https://web.example.org/ spiffe://example.org/prod/web

The context is passed once. Connections that are open stay open; each new one uses the certificate of that moment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import httpx2

from handclasp.client import TLSContext


def make_client(directory: str, peers: Sequence[str]) -> httpx2.Client:
    """Return a client that shows the certificate in ``directory`` and talks to servers whose identity is in ``peers``."""
    tls = TLSContext.from_directory(directory)
    return httpx2.Client(verify=tls.client_context(peers=peers))


def main() -> None:
    """Ask once and print the answer."""
    directory, url, *peers = sys.argv[1:]
    with make_client(directory, peers) as client:
        print(client.get(url).text)


if __name__ == "__main__":
    main()
