"""Private keys at rest: sealed where a key is configured, migrated both ways of a change, and a clear word where the key is missing."""

from __future__ import annotations

import base64
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.agent import run
from handclasp.agent.config import parse_config
from handclasp.agent.seal import MAGIC, Seal, SealBrokenError, read_key
from handclasp.agent.state import Kept, Obtained, StateDirectory
from handclasp.client import TLSContext
from handclasp.errors import Kind
from support.agents import WEB, prepare, running, settled
from support.contents import content
from support.errors import refused
from support.fake_server import FakeAuthority, FakeServer
from support.waiting import eventually

ONE, TWO = bytes(range(32)), bytes(range(32, 64))


@given(st.binary(max_size=300), st.binary(max_size=80))
def test_what_was_sealed_opens_and_nothing_else_does(data: bytes, other: bytes) -> None:
    sealed = Seal(ONE).close(data)
    assert Seal(ONE).open(sealed) == data
    assert Seal(TWO, ONE).open(sealed) == data
    assert Seal(ONE).is_current(sealed)
    assert not Seal(TWO, ONE).is_current(sealed)
    for key in (Seal(TWO), Seal()):
        with pytest.raises(SealBrokenError):
            key.open(sealed)
    with pytest.raises(SealBrokenError):
        Seal(ONE).open(MAGIC + other)
    with pytest.raises(SealBrokenError):
        Seal(ONE).open(sealed[:-1])


@given(st.text(max_size=20), st.text(max_size=20), st.binary(max_size=100))
def test_what_was_sealed_for_one_identity_never_opens_as_anothers(one: str, other: str, data: bytes) -> None:
    sealed = Seal(ONE).close(data, one)
    assert Seal(TWO, ONE).open(sealed, one) == data
    if one != other:
        assert not Seal(ONE).is_current(sealed, other)
        with pytest.raises(SealBrokenError):
            Seal(TWO, ONE).open(sealed, other)


def test_a_generation_that_was_moved_to_another_identity_is_not_handed_out(tmp_path: Path) -> None:
    """Who can write to a disk but not open what is on it would have one service given the credentials of another."""
    state = StateDirectory(tmp_path / "state")
    state.seal = Seal(ONE)
    high, low = state.identity("spiffe://example.org/high"), state.identity("spiffe://example.org/low")
    material = content(FakeAuthority())
    facts = Obtained(
        sha256=material.sha256, identity="spiffe://example.org/high", serial="1", authority="a", not_after=1, renew_after=1,
        renew_before=1, renew_at=1, obtained_at=1, wanted="w",
    )  # fmt: skip
    for store in (high, low):
        store.prepare()
    high.keep(facts, Kept(facts, material.key, material.certificate, material.chain, material.bundle), 2)
    shutil.copytree(high.home, low.home, symlinks=True, dirs_exist_ok=True)
    assert high.kept().key == material.key
    with pytest.raises(SealBrokenError):
        low.kept()
    with pytest.raises(SealBrokenError):
        low.check_seal()
    key = low.generations.path("00000001") / "key.pem"
    for cut in (len(MAGIC) + 3, len(MAGIC), 60):
        key.write_bytes((high.generations.path("00000001") / "key.pem").read_bytes()[:cut])
        with pytest.raises(SealBrokenError):
            low.kept()


def test_sealing_twice_is_never_the_same() -> None:
    assert Seal(ONE).close(b"key") != Seal(ONE).close(b"key")


@pytest.mark.parametrize("text", [ONE, ONE.hex().encode() + b"\n", base64.b64encode(ONE) + b"\n"])
def test_a_key_file(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "key").write_bytes(text)
    assert read_key(tmp_path / "key") == ONE


@pytest.mark.parametrize("text", [b"", b"secret passphrase", ONE[:-1], ONE.hex().encode()[:-2], b"\xff" * 33])
def test_what_is_no_key_file(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "key").write_bytes(text)
    with refused(Kind.BAD_SETTING, "does not hold a state key"):
        read_key(tmp_path / "key")
    with refused(Kind.BAD_SETTING, "cannot read"):
        read_key(tmp_path / "none")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("state_key: {}", "either a file or a credential"),
        ("state_key: {file: a, credential: b}", "credential"),
        ("state_key: {credential: a/b}", "not a path"),
        ("state_key: secret", "a mapping is expected"),
        ("state_key: {file: a, passphrase: b}", "not known here"),
        ("metrics: 0.0.0.0:9180", "an address of this host"),
        ("metrics: example.org:9180", "an address of this host"),
        ("metrics: 9180", "text is expected"),
    ],
)
def test_sections_that_cannot_be_used(section: str, words: str) -> None:
    with refused(Kind.BAD_SETTING, words):
        parse_config(f"identities: [{{dns: [a.example.org]}}]\n{section}\n", "agent.yaml", Path("/etc"))


def test_a_credential_of_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "identities: [{dns: [a.example.org]}]\nstate_key: {credential: state-key}\nmetrics: '[::1]:9180'\n"
    with refused(Kind.BAD_SETTING, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
        parse_config(text, "agent.yaml", Path("/etc"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/agent")
    config = parse_config(text, "agent.yaml", Path("/etc"))
    assert config.section("state_key").file == Path("/run/credentials/agent/state-key")
    assert config.section("metrics") == ("::1", 9180)


def keys(root: Path) -> list[bytes]:
    return [path.read_bytes() for path in key_files(root)]


def key_files(root: Path) -> list[Path]:
    return [path for path in (root / "state").rglob("key.pem") if not path.parent.is_symlink()]


def are_current(seal: Seal, root: Path) -> bool:
    return all(seal.is_current(path.read_bytes(), path.parents[2].name) for path in key_files(root))


def test_from_plain_to_sealed_to_another_key(tmp_path: Path) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        plain = config.read_text()
        with running(config) as agent:
            eventually(lambda: settled(agent.roster.everyone()[1]))
        first = TLSContext.from_directory(tmp_path / "tls").sha256
        assert all(key.startswith(b"-----BEGIN") for key in keys(tmp_path))

        (tmp_path / "one").write_bytes(ONE)
        (tmp_path / "two").write_bytes(TWO)
        config.write_text(plain + "state_key: {file: one}\n")
        with running(config) as agent:
            eventually(lambda: all(key.startswith(MAGIC) for key in keys(tmp_path)), what="every key is sealed at the start")
            eventually(lambda: settled(agent.roster.everyone()[0]))
            content = agent.roster.everyone()[1].content()
            assert content is not None
            assert content.key.startswith(b"-----BEGIN")
            agent.client.report_agent(server.reports[-1][1])  # the agent's own sealed key opens its connections

        config.write_text(plain + "state_key: {file: two, previous: one}\n")
        with running(config):
            eventually(lambda: are_current(Seal(TWO), tmp_path))
        config.write_text(plain + "state_key: {file: two}\n")
        server.ttl, server.window = 3600, (0.5, 0.6)
        kept = StateDirectory(tmp_path / "state").identity(WEB)
        state = kept.load()
        state.renew_at, state.renew_at_of, state.next_attempt = 1, first, 0
        kept.save(state)
        with running(config):
            eventually(lambda: TLSContext.from_directory(tmp_path / "tls").sha256 not in ("", first), what="renewed with its sealed key")
        assert are_current(Seal(TWO), tmp_path)
        assert server.count("/v1/certificates", "POST") == 3

        for text, words in ((plain, "no state_key is configured"), (plain + "state_key: {file: one}\n", "cannot be opened")):
            config.write_text(text)
            with refused(Kind.BAD_SETTING, words):
                run(config, tmp_path / "state")
        assert are_current(Seal(TWO), tmp_path), "nothing was thrown away"
        server.assert_content()


def test_five_hundred_keys_open_in_no_time() -> None:
    """No key derivation for each: the cost is counted in operations, not in seconds, so that a busy machine cannot fail it."""
    sealed = [Seal(ONE).close(os.urandom(240)) for _ in range(500)]
    assert len({Seal(ONE).open(one) for one in sealed}) == 500
