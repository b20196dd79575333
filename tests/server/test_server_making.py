"""Settings that cannot work are said before anything is made; and the administrator can always get another token."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_server_jobs import opened, settings_for

from handclasp.access.limits import network_key
from handclasp.authority.authorities import Authorities
from handclasp.cli.main import handclasp
from handclasp.errors import Kind
from handclasp.server.local import create_admin_token
from handclasp.server.run import DataLock, name_in_certificate
from handclasp.server.settings import Settings
from handclasp.server.setup import admin_token_file, initialise
from support.errors import refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("key_type", "rsa1024"),
        ("rate_principal", "0"),
        ("rate_refused", "0"),
        ("issuing_lifetime", "4000d"),
        ("dns_zone", "*.example.org"),
        ("trust_domain", "Example Org"),
        ("bundle_refresh_hint", "500ms"),
        ("jwt_key_period", "30m"),
        ("web_name", "web.example.org"),
        ("web_key", "web.key"),
        ("web_name", "*.example.org"),
    ],
)
def test_a_setting_that_cannot_work_is_named(name: str, value: str) -> None:
    with refused(Kind.BAD_SETTING, name):
        Settings.load({name: value}, {})


@pytest.mark.parametrize("bad", [{"dns_zone": ("not a zone",)}, {"key_type": "rot13"}, {"issuing_lifetime": 1e12}])
def test_nothing_is_made_from_settings_that_cannot_work(tmp_path: Path, bad: dict[str, Any]) -> None:
    with refused(Kind.BAD_SETTING, next(iter(bad))):
        asyncio.run(initialise(settings_for(tmp_path, **bad)))
    assert not (tmp_path / "data").exists()
    assert asyncio.run(initialise(settings_for(tmp_path)))


def test_an_installation_that_was_begun_is_not_finished_for_another_trust_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:

        async def fail(*_: Any, **__: Any) -> None:
            raise OSError("the machine stops here")

        broken.setattr(Authorities, "create_issuing", fail)
        with pytest.raises(OSError, match="stops here"):
            asyncio.run(initialise(settings_for(tmp_path)))
    with refused(Kind.BAD_SETTING, "example.org", "example.net"):
        asyncio.run(initialise(Settings(data=tmp_path / "data", trust_domain="example.net")))

    async def run() -> None:
        assert await initialise(Settings(data=tmp_path / "data"))  # no trust domain said: the one that was begun
        async with opened(settings_for(tmp_path)) as (instance, _):
            assert instance.authorities.trust_domains == ["example.org"]
            assert instance.log_signer.vkey.name == "example.org/log"

    asyncio.run(run())


def test_another_admin_token_is_made_here_and_logged(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with refused(Kind.BAD_SETTING, "initialised"):
        asyncio.run(create_admin_token(settings))
    asyncio.run(initialise(settings))
    before = admin_token_file(settings).read_text()
    result = CliRunner(catch_exceptions=False).invoke(handclasp, ["--json", "init", "--new-admin-token", "--data", str(settings.data)])
    assert result.exit_code == 0, result.output
    file = Path(json.loads(result.stdout)["admin_token_file"])
    assert file == admin_token_file(settings)
    assert file.stat().st_mode & 0o777 == 0o600
    after = file.read_text()
    assert after != before

    async def run() -> None:
        async with opened(settings) as (instance, _):
            for token in (before, after):
                assert (await instance.services.tokens.authenticate(token.strip())).scopes == {"admin"}
            entries = [json.loads(entry) for entry in await instance.store.entries(0, 100)]
            made = [entry for entry in entries if entry["type"] == "token.created"]
            assert [entry["who"]["kind"] for entry in made] == ["local", "local"]

    asyncio.run(run())
    with DataLock(settings), refused(Kind.CONFLICT):
        asyncio.run(create_admin_token(settings))


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_refusals_are_counted_by_what_one_host_has(address: str, key: str) -> None:
    assert network_key(address) == key


@pytest.mark.parametrize(
    ("listens", "names", "shown"),
    [
        ("https://127.0.0.1:8443", ("host", "localhost", "127.0.0.1", "::1"), "https://127.0.0.1:8443"),
        ("https://[::1]:8443", ("localhost", "::1"), "https://[::1]:8443"),
        ("https://127.0.0.1:8443", ("ca.example.org",), "https://ca.example.org:8443"),
        ("https://127.0.0.1:8443", ("2001:db8::1", "ca.example.org"), "https://[2001:db8::1]:8443"),
    ],
)
def test_the_address_that_is_told_is_one_that_the_certificate_has(listens: str, names: tuple[str, ...], shown: str) -> None:
    assert name_in_certificate(listens, names) == shown
