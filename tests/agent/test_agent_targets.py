"""Kinds of target made of files: keystores, orders and owners; whose directory it is; and what their configuration may say."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jks
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12
from hypothesis import given
from hypothesis import strategies as st

from handclasp.agent.config import Files, Look, Reload, Target, parse_config
from handclasp.agent.config.read import SECTIONS, function
from handclasp.agent.config.targets import KINDS
from handclasp.agent.content import Content
from handclasp.agent.deliver import deliver
from handclasp.agent.targets.base import Around, Call
from handclasp.agent.targets.keystore import Keystore
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.chains import split_pem
from support.contents import content
from support.errors import allowing, refused
from support.fake_server import FakeAuthority

AUTHORITY = FakeAuthority()
WEB = "spiffe://example.org/prod/web"


def never(_seconds: float) -> bool:
    return False


def run(place: Files | Keystore, what: Content, *, identity: str = WEB, confirmed: str = "") -> str:
    return deliver(Target(place.name, place), what, confirmed, identity=identity, wait=never)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("form", "ending"), [("pkcs12", "p12"), ("jks", "jks")])
def test_keystores_change_together_under_a_password_that_stays(tmp_path: Path, form: str, ending: str) -> None:
    place, first = Keystore(tmp_path / "d", format=form, alias="web", mode=0o640), content(AUTHORITY)
    name = run(place, first)
    password = (tmp_path / "d/password").read_text()
    assert (len(password), mode(tmp_path / "d/password")) == (32, 0o640)
    current = tmp_path / "d/current"
    assert (mode(current / f"keystore.{ending}"), mode(current / f"truststore.{ending}")) == (0o640, 0o644)
    for what in (first, content(AUTHORITY)):
        name = run(place, what, confirmed=name)
        data = (current / f"keystore.{ending}").read_bytes()
        leaf = split_pem(what.certificate.decode())[0]
        if form == "jks":
            assert jks.KeyStore.loads(data, password).private_keys["web"].cert_chain[0][1] == leaf
        else:
            found = pkcs12.load_pkcs12(data, password.encode()).cert
            assert found is not None
            assert found.certificate.public_bytes(Encoding.DER) == leaf
    assert name == "00000002", "the same content is not written twice"
    assert (tmp_path / "d/password").read_text() == password


def test_a_password_that_is_there_is_read_and_one_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    secret, link = tmp_path / "secret", tmp_path / "etc/store.p12"
    secret.write_text("correct horse\r\nanother line\n")
    place = Keystore(tmp_path / "d", (("keystore.p12", link),), password_file=secret)
    run(place, content(AUTHORITY))
    assert pkcs12.load_pkcs12(link.read_bytes(), b"correct horse").key is not None
    assert not (tmp_path / "d/password").exists()
    before = link.read_bytes()
    for bad, words in (("", "no password"), ("short", "6 printable")):
        secret.write_text(bad)
        with refused(Kind.BAD_SETTING, words):
            run(place, content(AUTHORITY))
    assert link.read_bytes() == before


def test_targets_that_share_a_password_make_one(tmp_path: Path) -> None:
    places = [Keystore(tmp_path / str(number), password_file=tmp_path / "shared") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(Keystore.password, places))) == 1


def test_what_an_interruption_left_of_a_password_goes(tmp_path: Path) -> None:
    (tmp_path / ".password-0123456789abcdef").write_text("half")
    (tmp_path / "..identity-0123456789abcdef").write_text("half")
    run(Keystore(tmp_path), content(AUTHORITY))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".identity", "current", "generations", "password"]


def test_the_root_is_in_the_keystore_only_where_it_is_asked_for(tmp_path: Path) -> None:
    for include, length in ((False, 2), (True, 3)):
        place = Keystore(tmp_path / str(length), format="jks", include_root=include)
        run(place, content(AUTHORITY))
        store = jks.KeyStore.load(str(tmp_path / str(length) / "current/keystore.jks"), (place.directory / "password").read_text())
        assert len(store.private_keys["handclasp"].cert_chain) == length


def test_the_orders_of_a_combined_file(tmp_path: Path) -> None:
    what = content(AUTHORITY)
    first = Files(tmp_path, combine="key-first").render(what)["combined.pem"].data
    last = Files(tmp_path, combine="certificate-first").render(what)["combined.pem"].data
    assert (first, last) == (what.key + what.certificate + what.chain, what.certificate + what.chain + what.key)
    assert "combined.pem" not in Files(tmp_path).render(what)


def test_as_many_generations_are_kept_as_are_asked_for(tmp_path: Path) -> None:
    for keep in (1, 5):
        place, name = Files(tmp_path / str(keep), keep=keep), ""
        for _ in range(7):
            name = run(place, content(AUTHORITY), confirmed=name)
        left = sorted(path.name for path in (place.directory / "generations").iterdir())
        # The one before is the way back, until the next delivery.
        assert left == [f"{number:08d}" for number in range(8 - max(keep, 2), 8)]


def test_a_directory_is_one_identitys(tmp_path: Path) -> None:
    what = content(AUTHORITY)
    run(Files(tmp_path), what)
    with refused(Kind.DELIVERY_FAILED, f"is that of {WEB}"):
        run(Files(tmp_path), content(AUTHORITY), identity="spiffe://example.org/prod/other")
    assert (tmp_path / "current/cert.pem").read_bytes() == what.certificate + what.chain
    (tmp_path / ".identity").unlink()
    run(Files(tmp_path), content(AUTHORITY), identity="spiffe://example.org/prod/other")


def test_whatever_goes_wrong_the_old_generation_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is one of the things that can go wrong between the flip and the end."""
    old = content(AUTHORITY)
    confirmed = run(Files(tmp_path), old)
    monkeypatch.setattr("handclasp.agent.deliver.look", lambda *_, **__: {}["a bug"])
    target = Target("t", Files(tmp_path), look=Look("127.0.0.1", 1, "localhost"))
    with refused(Kind.DELIVERY_FAILED, "KeyError: 'a bug'", "previous certificate is back"):
        deliver(target, content(AUTHORITY), confirmed, identity=WEB, wait=never)
    assert (tmp_path / "current/cert.pem").read_bytes() == old.certificate + old.chain


def test_a_kind_that_is_not_made_of_files_delivers_by_itself() -> None:
    seen: list[tuple[Content, str, Around]] = []

    class Elsewhere:
        kind, name, crl = "elsewhere", "elsewhere:x", False

        def digest(self, content: Content, /) -> str:
            return content.sha256

        def deliver(self, content: Content, confirmed: str, around: Around, /) -> str:
            seen.append((content, confirmed, around))
            return "7"

    what = content(AUTHORITY)
    assert deliver(Target("x", Elsewhere(), timeout=5), what, "6", identity=WEB, wait=never) == "7"
    assert seen == [(what, "6", Around(WEB, never, 5))]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_key_and_password_belong_to_who_is_to_read_them(tmp_path: Path) -> None:
    place = Keystore(tmp_path, owner=65534, group=65533, mode=0o640)
    run(place, content(AUTHORITY))
    for path in (tmp_path / "current/keystore.p12", tmp_path / "password"):
        assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (65534, 65533, 0o640)


# --- configuration ------------------------------------------------------------------------------------------------------------------------

FULL = """\
identities:
  - dns: [a.example.org]
    targets:
      - type: pkcs12
        directory: /srv/a
        paths: {keystore: /etc/a.p12}
        alias: a
        password_file: /etc/a.password
        keep: 5
        reload: {systemd: billing, action: restart}
        look: {connect: "unix:/run/a.sock", starttls: smtp}
      - directory: /srv/b
        combine: key-first
        reload:
          http:
            url: http://localhost:2019/load?x=1
            method: PUT
            expect: [200, 204]
            headers: {Cache-Control: must-revalidate}
            body_file: b.json
      - directory: /srv/c
        reload: {http: {url: "http://[::1]/x", socket: /run/c.sock, expect: 202}}
        look: {connect: "127.0.0.1:389", starttls: ldap, server_name: ldap.example.org}
"""


def test_everything(tmp_path: Path) -> None:
    first, second, third = parse_config(FULL, "agent.yaml", tmp_path).identities[0].targets
    assert first.place == Keystore(
        Path("/srv/a"), (("keystore.p12", Path("/etc/a.p12")),), keep=5, alias="a", password_file=Path("/etc/a.password")
    )
    assert first.reload == Reload(unit="billing.service", action="restart")
    assert first.look == Look("", 0, "a.example.org", "smtp", Path("/run/a.sock"))
    assert (first.name, second.name) == ("pkcs12:/srv/a", "files:/srv/b")
    headers, body = (("Cache-Control", "must-revalidate"),), tmp_path / "b.json"
    wanted = Call("localhost", 2019, "/load?x=1", method="PUT", expect=(200, 204), headers=headers, body_file=body)
    assert second.reload == Reload(http=wanted)
    assert third.reload == Reload(http=Call("::1", 80, "/x", Path("/run/c.sock"), expect=(202,)))
    assert third.look == Look("127.0.0.1", 389, "ldap.example.org", "ldap")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("type: pkcs12", "type: pkcs11", 4, "files, pkcs12, jks"),
        ("paths: {keystore", "paths: {key", 6, "key is not known"),
        ("alias: a", "alias: A", 7, "lower case"),
        ("keep: 5", "keep: 0", 9, "from 1 to 100"),
        ("systemd: billing", "systemd: --now", 10, "the name of a unit"),
        ("action: restart", "action: stop", 10, "not one of reload, restart"),
        ("systemd: billing", "command: [a]", 10, "action belongs to systemd"),
        ("{systemd: billing, action: restart}", "{}", 10, "reload is either"),
        ("{systemd: billing", "{command: [a], systemd: billing", 10, "reload is either"),
        ("starttls: smtp", "starttls: gopher", 11, "not one of none"),
        ("/srv/b", "/srv/c", 21, "/srv/c is there more than once"),
        ("/srv/b", "/srv/a", 12, "/srv/a is there more than once"),
        ("/srv/b", "/etc/a.p12", 12, "/etc/a.p12 is there more than once"),
        ("key-first", "sideways", 13, "combine"),
        ("http://localhost:2019", "http://10.0.0.1:2019", 16, "of this host"),
        ("http://localhost:2019", "https://localhost:2019", 16, "an address such as"),
        ("http://localhost:2019", "http://a@localhost:2019", 16, "an address such as"),
        ("http://localhost:2019", "http://localhost:99999", 16, "url"),
        ("method: PUT", "method: CONNECT", 17, "not one of GET"),
        ("[200, 204]", "[99]", 18, "from 100 to 599"),
        ("must-revalidate}", '"a\\nb: c"}', 19, "cannot be a header"),
        ("{Cache-Control", '{"a b"', 19, "cannot be a header"),
        ('"127.0.0.1:389"', '"127.0.0.1"', 23, "or unix:/path"),
        ('"127.0.0.1:389"', f'"{"a" * 64}:389"', 23, "not the name of a host"),
        ("ldap.example.org", ".example.org", 23, "not the name of a host"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in FULL
    with pytest.raises(HandclaspError) as caught:
        parse_config(FULL.replace(old, new), "agent.yaml", tmp_path)
    assert caught.value.kind is Kind.BAD_SETTING
    found = caught.value.detail.splitlines()
    assert any(problem.startswith(f"agent.yaml:{line}: ") and words in problem for problem in found), caught.value


def test_every_kind_and_section_has_its_reader() -> None:
    for place in (*KINDS.values(), *SECTIONS.values()):
        assert callable(function(place)), place


@given(st.data())
def test_no_mutation_crashes(data: st.DataObject) -> None:
    lines = FULL.splitlines()
    index = data.draw(st.integers(0, len(lines) - 1))
    key, colon, _ = lines[index].partition(":")
    drawn = st.sampled_from(["", "[]", "{}", "[{}]", "-1", "1.5", "true", "~", '"\\0"', "[[]]", "x: y", "'*'", "[unix:]", "http://["])
    lines[index] = key + colon + " " + data.draw(drawn | st.text(max_size=10))
    with allowing(Kind.BAD_SETTING):
        parse_config("\n".join(lines), "x", Path(os.sep))
