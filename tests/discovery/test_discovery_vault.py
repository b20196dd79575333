"""What Vault and OpenBao have issued, read from one that checks what it is asked."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from handclasp.discovery import vault
from handclasp.discovery.source import Count, Failed, Scope
from handclasp.discovery.vault import VAULT, VaultSettings, _after, _strings
from handclasp.errors import HandclaspError, Kind
from support.certfiles import Maker, der, pem
from support.sources import covered, last_place, observed, read, tools
from support.vault import TOKEN, FakeVault

MAKER = Maker()
LEAVES = [MAKER.leaf(f"{number}.elsewhere.test")[0] for number in range(7)]


def stored(number: int) -> str:
    return f"{number * 37 % 256:02x}-{number:02x}-7e"


def fill(server: FakeVault) -> None:
    server.certs = {stored(number): pem(leaf).decode() for number, leaf in enumerate(LEAVES)}
    server.issuers = {"one": (pem(MAKER.root).decode(), [pem(MAKER.root).decode()])}


@pytest.mark.parametrize("paged", [True, False], ids=["openbao", "vault"])
@pytest.mark.parametrize("page", [2, 7, 1000])
def test_everything_that_was_issued(paged: bool, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "PAGE", page)
    with FakeVault(paged=paged, namespace="team") as server:
        fill(server)
        server.revoked = {stored(3): 1_700_000_000}
        settings = VaultSettings(url=server.url, namespace="team")
        items = read(VAULT, settings, tools())
        found = observed(items)
        prefix = f"vault:{server.url.removeprefix('http://')}/team/pki/"
        serials = [stored(number).replace("-", ":") for number in range(7)]
        assert set(found) == {prefix + "issuer/one", *(prefix + serial for serial in serials)}
        assert [(one.der, one.role) for one in found[prefix + serials[0]].certificates] == [(der(LEAVES[0]), "listed")]
        assert found[prefix + serials[3]].details["revoked_at"] == "1700000000"
        assert "revoked_at" not in found[prefix + serials[2]].details
        assert [(one.role, one.chain) for one in found[prefix + "issuer/one"].certificates] == [("anchor", [])]
        assert covered(items) == [prefix + "issuer"]
        assert sum(path.startswith("cert/") for path in server.asked) == 7


def test_what_is_known_is_not_fetched_again_and_what_is_not_listed_goes() -> None:
    with FakeVault() as server:
        fill(server)
        first = observed(read(VAULT, VaultSettings(url=server.url), tools()))
        keys = [key for key in first if "/issuer/" not in key]
        server.asked.clear()
        del server.certs[stored(5)]
        server.revoked = {stored(1): 1_700_000_000}
        items = read(VAULT, VaultSettings(url=server.url), tools(known=keys))
        assert [path for path in server.asked if path.startswith("cert/")] == ["cert/" + stored(1).replace("-", "%3A")]
        found = observed(items)
        gone = next(key for key in keys if key.endswith(stored(5).replace("-", ":")))
        assert (found[gone].certificates, found[gone].problem) == ([], None)
        assert sum(one.read for one in items if isinstance(one, Count)) == 5


def test_a_successor_goes_on_at_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "PAGE", 3)
    with FakeVault() as server:
        fill(server)
        items = read(VAULT, VaultSettings(url=server.url), tools(), most=9)
        place, before = last_place(items), observed(items)
        rest = observed(read(VAULT, VaultSettings(url=server.url), tools(), place))
        assert 0 < len(rest) < 7
        assert len({*before, *rest}) == 8


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with FakeVault() as server:
        fill(server)
        server.garbage = {"cert/" + stored(0).replace("-", "%3A"): b'{"data": {"certificate": "nothing"}}', "issuers": b"{}"}
        items = read(VAULT, VaultSettings(url=server.url), tools())
        assert [one.problem for one in observed(items).values() if one.problem] == ["what it gives is not a certificate"]
        assert [one.what for one in items if isinstance(one, Failed)] == ["issuers of pki"]
        server.denied = {"certs"}
        with pytest.raises(HandclaspError) as caught:
            read(VAULT, VaultSettings(url=server.url), tools())
        assert caught.value.kind is Kind.NOT_ALLOWED
        (tmp_path / "token").write_text(TOKEN)
        with pytest.raises(HandclaspError, match="https"):  # a token is not sent in clear
            read(VAULT, VaultSettings(url=server.url, token_file="token"), tools(secrets=tmp_path))


def test_settings() -> None:
    for mount in ("/pki", "a/../b", "a b"):
        with pytest.raises(HandclaspError):
            VAULT.check(VaultSettings(url="https://v", mounts=[mount]), Scope())
    with pytest.raises(HandclaspError, match="scope"):
        VAULT.check(VaultSettings(url="https://v"), Scope(deny=["pki"]))


def test_an_empty_mount() -> None:
    with FakeVault() as server:
        assert not observed(read(VAULT, VaultSettings(url=server.url), tools()))


def test_a_list_of_many_is_the_same_list() -> None:
    keys = [f"{number:040x}" for number in range(60_000)]
    raw = msgspec.json.encode(keys)
    assert _strings(raw) == keys
    assert _strings(b"[]") == []
    shuffled = keys[::2] + keys[1::2]
    assert _after(shuffled, "") == (keys, False)
    assert _after(shuffled, keys[100]) == (keys[101:], True)
    for broken in (b"{}", b"[1]", b'["a"', raw[:-1], raw[:-1] + b",]", b'["a" "b"]'):
        with pytest.raises(HandclaspError) as caught:
            _strings(broken)
        assert caught.value.kind is Kind.UNAVAILABLE


def test_a_token_goes_to_the_vault_that_its_keeper_named_alone(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    settings = VaultSettings(url="https://vault.example.org.attacker.example:8200", token_file="token")
    for allowed in (
        None,
        "",
        "vault.example.org:8200",
        "vault.example.org.attacker.example",
        "# vault.example.org.attacker.example:8200",
        "\xff",
    ):
        if allowed is not None:
            (tmp_path / "token.hosts").write_text(allowed, encoding="latin-1")
        with pytest.raises(HandclaspError, match="may not be sent to") as caught:
            read(VAULT, settings, tools(secrets=tmp_path))
        assert caught.value.kind is Kind.BAD_SETTING
        assert TOKEN not in str(caught.value)


def test_what_is_no_address_is_among_no_hosts(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token.hosts").write_text("vault.example.org:port\n")
    with pytest.raises(HandclaspError, match="may not be sent to"):
        tools(secrets=tmp_path).token("token", "https://[vault")
