"""What a program needs to use Handclasp: settings, the API client, and TLS contexts that follow their certificates.

It is used by the command line, by the agent and by other people's programs, so it must stay light: the HTTP client is the standard
library's (``docs/decisions/http-client.md``), and nothing here may import the server's rooms. Names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handclasp.client.api import ApiClient as ApiClient
    from handclasp.client.api import Credential as Credential
    from handclasp.client.peers import peer_identity as peer_identity
    from handclasp.client.peers import require_peer as require_peer
    from handclasp.client.settings import ClientSettings as ClientSettings
    from handclasp.client.tls import TLSContext as TLSContext

_HOMES = {
    "ApiClient": "api",
    "ClientSettings": "settings",
    "Credential": "api",
    "TLSContext": "tls",
    "peer_identity": "peers",
    "require_peer": "peers",
}

__all__ = ["ApiClient", "ClientSettings", "Credential", "TLSContext", "peer_identity", "require_peer"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``--help`` must not pay for TLS."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
