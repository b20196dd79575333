"""One server for all tests of a test process: starting one takes longer than most tests do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.live import Client, Live, serving
from support.logs import cosigner
from support.oidc import Issuer


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server. Tests share it, so each has identities of its own and counts nothing that others make.

    Limits are beyond what tests reach. It knows a witness that does not answer, so that cosignatures can be handed in.
    """
    limits = ("--rate-refused", "100000", "--rate-principal", "1000000")
    witness = ("--witness", f"{cosigner().vkey} http://127.0.0.1:9/witness")
    with serving(tmp_path_factory.mktemp("live"), *limits, *witness, "--oidc-allow-http") as running:
        yield running


@pytest.fixture
def admin(live: Live) -> Iterator[Client]:
    """The administrator's client."""
    with live.client(live.admin_token) as client:
        yield client


@pytest.fixture
def nobody(live: Live) -> Iterator[Client]:
    """A client without any credential."""
    with live.client() as client:
        yield client


@pytest.fixture(scope="session")
def issuer() -> Iterator[Issuer]:
    """An OIDC issuer."""
    running = Issuer()
    yield running
    running.close()
