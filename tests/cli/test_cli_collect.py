"""``handclasp collect --once``: it ends by itself, and its exit code says whether it could do what it was asked for."""

from __future__ import annotations

from typing import Any

import pytest

from handclasp.errors import HandclaspError, Kind
from handclasp.wire.discovery import PartLease
from support.fake_api import FakeApi

LEASE = ("POST", "/v1/scans:lease")


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDCLASP_URL", "https://localhost:8443")
    monkeypatch.setenv("HANDCLASP_TOKEN", "hct_x")


@pytest.mark.usefixtures("token")
def test_nothing_to_do_is_done(api: FakeApi, run: Any) -> None:
    api.on(*LEASE, PartLease())
    result = run("collect", "--once", "--patience", "100ms", "--json")
    assert (result.exit_code, result.stdout) == (0, '{"given_up": 0}\n'), result.stderr


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize(("kind", "patience"), [(Kind.NOT_ALLOWED, "1h"), (Kind.NOT_FOUND, "1h"), (Kind.UNAVAILABLE, "100ms")])
def test_a_server_that_gives_nothing_is_said_at_the_end(api: FakeApi, run: Any, kind: Kind, patience: str) -> None:
    api.on(*LEASE, HandclaspError(kind, "this needs the scope sources:collect", hint="ask"))
    result = run("collect", "--once", "--patience", patience, "--source", "far")
    assert result.exit_code == 1
    assert f"error: this needs the scope sources:collect ({kind.value})\nhint: ask\n" in result.stderr


@pytest.mark.usefixtures("token")
def test_a_kind_that_there_is_not_is_wrong_usage(api: FakeApi, run: Any) -> None:
    result = run("collect", "--once", "--kind", "kubernets")
    assert (result.exit_code, "kubernetes" in result.stderr) == (2, True)
    assert api.asked == []
