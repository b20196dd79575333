"""Real services under their presets: certificates change under constant traffic, and nobody notices; what fails leaves them as they were.

Here the deliveries are made one after the other; in ``tests/whole`` an agent makes them when it thinks that they are due.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from handclasp.agent.config import Target, parse_config
from handclasp.agent.deliver import deliver
from support.contents import content
from support.fake_server import FakeAuthority
from support.services import Apache, Envoy, HAProxy, MariaDB, Nginx, PostgreSQL, Redis, Service, Traffic, Visitor
from support.waiting import eventually

WEB = "spiffe://example.org/prod/web"


def nap(seconds: float) -> bool:
    """Wait, but not as long as an agent would: only whether it looks again matters here."""
    time.sleep(min(seconds, 0.05))
    return False


class Delivered:
    """A service that runs, and its target."""

    def __init__(self, service: Service, authority: FakeAuthority) -> None:
        text = json.dumps({"identities": [{"identity": WEB, "dns": ["localhost"], "targets": [service.target()]}]})
        self.service, self.authority = service, authority
        self.target = parse_config(text, "agent.yaml", service.home).identities[0].targets[0]
        first = replace(self.target, validate=(), reload=None, look=None)
        self.confirmed = deliver(first, content(authority), "", identity=WEB, wait=nap)

    def rotate(self, target: Target | None = None) -> str:
        """Deliver a new certificate, and return its fingerprint."""
        new = content(self.authority)
        self.confirmed = deliver(target or self.target, new, self.confirmed, identity=WEB, wait=nap)
        return new.sha256


@contextmanager
def running(kind: type[Service], home: Path) -> Iterator[tuple[Delivered, Visitor]]:
    authority = FakeAuthority()
    delivered, visitor = Delivered(kind(home / "service"), authority), Visitor.of(authority, home / "visitor")
    with delivered.service.running(visitor):
        yield delivered, visitor


@pytest.mark.parametrize(
    ("kind", "times"),
    [(Nginx, 20), (HAProxy, 20), (PostgreSQL, 20), (Redis, 20), (MariaDB, 20), (Apache, 20), (Envoy, 20)],
    ids=lambda one: getattr(one, "preset", None),
)
def test_certificates_rotate_under_traffic_and_no_request_fails(tmp_path: Path, kind: type[Service], times: int) -> None:
    with running(kind, tmp_path) as (delivered, visitor):
        with Traffic(delivered.service, visitor) as traffic:
            for _ in range(times):
                sha256, before = delivered.rotate(), traffic.requests
                # For a moment after a reload old workers may still answer beside the new ones.
                eventually(lambda sha256=sha256: delivered.service.serves() == sha256, what="it serves the new one")
                eventually(lambda before=before: traffic.requests > before + 1, what="requests between two rotations")
        assert traffic.failures == []
        assert delivered.target.preset == kind.preset
