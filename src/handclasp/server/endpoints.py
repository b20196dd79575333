"""Fetching bundles from the bundle endpoints of others, by both profiles of SPIFFE Federation (section 5.2)."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from handclasp.client.material import load_trust, read_file
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains
from handclasp.pki.bundles import pem_bundle, uris_of
from handclasp.server.fetch import Fetcher
from handclasp.trust.federation import Endpoint


class EndpointFetcher:
    """Asks bundle endpoints; see :data:`handclasp.trust.federation.Fetch`. For one event loop."""

    def __init__(self, fetcher: Fetcher, *, ca_file: Path | None = None, local: bool = False) -> None:
        """``ca_file``: trusted for ``https_web`` besides the system's authorities, read for each fetch. ``local``: loopback is allowed."""
        self._fetcher = fetcher
        self._ca_file = ca_file
        self._local = local

    async def __call__(self, endpoint: Endpoint) -> bytes:
        """Return the body of the endpoint's answer; see :data:`handclasp.trust.federation.Fetch`."""
        if endpoint.endpoint_id is None:
            trust = await asyncio.to_thread(self._web_trust)  # reading the system's authorities takes as long as ten issuances
            return await self._fetcher.get_from(endpoint.url, trust, local=self._local)
        expected = endpoint.endpoint_id
        return await self._fetcher.get_from(
            endpoint.url, spiffe_trust(endpoint.anchors), lambda der: check_endpoint(der, expected), local=self._local
        )

    def _web_trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self._ca_file is not None:
            load_trust(context, read_file(self._ca_file))
        return context


def spiffe_trust(anchors: tuple[bytes, ...]) -> ssl.SSLContext:
    """Return what verifies a server's chain against a trust domain's anchors alone; its name is for :func:`check_endpoint`.

    No hostname is checked (SPIFFE Federation 5.2.2: the SPIFFE ID says who it is, wherever it is).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    load_trust(context, pem_bundle(anchors).encode())
    return context


def check_endpoint(der: bytes, endpoint_id: str) -> None:
    """Raise ``verify_failed`` unless a certificate, whose chain is verified, is the X.509-SVID of ``endpoint_id`` (X509-SVID section 5)."""
    names = uris_of(chains.load(der))
    if names != [endpoint_id]:  # exactly one URI: a second one could be anybody's
        shown = ", ".join(names)[:300] or "no SPIFFE ID"
        raise HandclaspError(Kind.VERIFY_FAILED, f"the endpoint shows {shown}, and not {endpoint_id}")
