"""What an agent finds in files, and where it does not look."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from handclasp.agent.config import parse_config
from handclasp.agent.config.discover import DEFAULT_ALLOW
from handclasp.agent.discover import look
from handclasp.agent.discover.rules import Rules, foreign_mounts
from handclasp.agent.discover.scan import Heard, Order, Scan
from handclasp.errors import HandclaspError
from handclasp.pki import keys
from handclasp.wire.filescans import FileScan, FileSightings, whole_unit
from handclasp.wire.observations import Observed
from support.certfiles import Maker, der, key_pem, p12, pem, put

ME = "spiffe://example.org/agent/host1"
MAKER = Maker()
LEAF, KEY = MAKER.leaf()
ROOT = der(MAKER.root)


class Host:
    """A tree, and scans over it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root)) / "host"
        self.root.mkdir()
        self.memory = root / "memory"
        self.told: list[FileSightings] = []
        self.opened: list[str] = []
        self.rules = Rules(allow=(str(self.root),))

    def scan(
        self,
        name: str = "one",
        *,
        paths: Sequence[str] = (),
        rules: Rules | None = None,
        hear: Callable[[FileSightings], Heard] | None = None,
        memory: bool = True,
        **settings: int,
    ) -> dict[str, Observed]:
        """Scan, and return what was observed by path below the tree's root."""
        self.told = []

        def tell(chunk: FileSightings) -> Heard:
            self.told.append(chunk)
            return hear(chunk) if hear else Heard()

        order = Order(
            scan=FileScan(scan=name, source="s", paths=list(paths) or [str(self.root)], **settings),
            identity=ME,
            host="host1",
            allow=[],
            deny=[],
            memory=str(self.memory) if memory else "",
            busy=1,
        )
        Scan(order, rules or self.rules, tell, clock=lambda: 1000, passwords=["changeit"]).run()
        return {os.path.relpath(one.shown, self.root): one for chunk in self.told for one in chunk.observed}

    @property
    def unchanged(self) -> list[str]:
        return sorted(os.path.relpath(one.key.removeprefix(f"file:{ME}:"), self.root) for chunk in self.told for one in chunk.unchanged)

    @property
    def last(self) -> FileSightings:
        return self.told[-1]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    read = look.Looker._bytes

    def noted(self: look.Looker, file: look.File) -> bytearray | None:
        made.opened.append(os.path.relpath(file.path, made.root))
        return read(self, file)

    monkeypatch.setattr(look.Looker, "_bytes", noted)
    return made


def test_certificates_keys_and_trust_stores_are_found(host: Host) -> None:
    put(host.root / "nginx/site.conf", b"ssl_certificate tls.pem;")
    put(host.root / "nginx/tls.pem", pem(LEAF, MAKER.root))
    put(host.root / "nginx/tls.key", key_pem(KEY), 0o640)
    put(host.root / "ssl/bundle.crt", pem(MAKER.root, Maker("Two").root))
    put(host.root / "app/store.p12", p12("app", KEY, LEAF, [], "changeit"), 0o604)
    put(host.root / "app/other.p12", p12("app", KEY, LEAF, [], "nobody knows"))
    put(host.root / "app/README", b"as text:\n" + pem(LEAF))
    found = host.scan()
    assert sorted(found) == ["app/README", "app/other.p12", "app/store.p12", "nginx/tls.key", "nginx/tls.pem", "ssl/bundle.crt"]
    tls = found["nginx/tls.pem"]
    assert (tls.key, tls.kind, tls.host, tls.unit) == (f"file:{ME}:{tls.shown}", "file", "host1", f"files:{ME}:{host.root}")
    assert [(one.der, one.role, one.chain) for one in tls.certificates] == [(der(LEAF), "stored", [ROOT])]
    assert tls.private_key is None
    assert {one.role for one in found["ssl/bundle.crt"].certificates} == {"anchor"}
    key = found["nginx/tls.key"]
    assert key.private_key is not None
    assert key.private_key.spki_sha256 == keys.spki_sha256(KEY.public_key())
    assert (key.details["mode"], key.details["others_read"], key.certificates) == ("0640", True, [])
    store = found["app/store.p12"]
    assert (store.kind, store.details["format"], store.certificates[0].how) == ("keystore", "pkcs12", {"alias": "app"})
    assert found["app/other.p12"].problem
    assert found["app/other.p12"].details["locked"]
    assert (host.last.done, host.last.covered, host.last.problem) == (True, [f"files:{ME}:{host.root}"], None)


def test_no_byte_of_a_private_key_is_told(host: Host) -> None:
    import msgspec

    put(host.root / "a.pem", key_pem(KEY) + pem(LEAF))
    put(host.root / "a.p12", p12("app", KEY, LEAF, [], "changeit"))
    pkcs8 = KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    put(host.root / "key.der", pkcs8)
    assert len(host.scan()) == 3
    said = b"".join(msgspec.json.encode(chunk) for chunk in host.told)
    lines = key_pem(KEY).splitlines()[1:-1]
    assert not any(line in said for line in lines)
    assert b"PRIVATE" not in said
    number = KEY.private_numbers().private_value.to_bytes(32, "big")
    assert number in pkcs8
    assert number not in b"".join(msgspec.msgpack.encode(chunk) for chunk in host.told), "as it is, and not as base64"


def test_what_is_known_is_not_read_again_but_told_of(host: Host) -> None:
    put(host.root / "tls.pem", pem(LEAF))
    put(host.root / "words", b"nothing in here")
    first = host.scan("one")
    host.opened.clear()
    assert host.scan("two") == {}
    assert (host.opened, host.unchanged) == ([], ["tls.pem"])
    assert host.told[0].unchanged[0].digest == first["tls.pem"].details["digest"]
    (host.root / "tls.pem").chmod(0o600)
    assert host.scan("three")["tls.pem"].details["mode"] == "0600"
    put(host.root / "words", pem(LEAF))
    assert "words" in host.scan("four")
    (host.root / "words").unlink()
    assert host.scan("five") == {}
    assert (host.unchanged, host.last.covered) == (["tls.pem"], [f"files:{ME}:{host.root}"])


def test_what_the_server_does_not_know_any_more_is_told_whole(host: Host) -> None:
    put(host.root / "a.pem", pem(LEAF))
    put(host.root / "b.pem", pem(MAKER.root))
    host.scan("one")

    def hear(chunk: FileSightings) -> Heard:
        return Heard(unknown=[one.key for one in chunk.unchanged if one.key.endswith("b.pem")])

    assert list(host.scan("two", hear=hear)) == ["b.pem"]
    assert host.scan("three") == {}
    assert host.unchanged == ["a.pem", "b.pem"]


def test_an_interrupted_scan_goes_on_where_it_was(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.agent.discover.scan._CHUNK", 10)
    for number in range(30):
        put(host.root / f"{number % 3}/d{number}/tls.pem", pem(LEAF))

    class Killed(Exception):  # noqa: N818
        pass

    def hear(_chunk: FileSightings) -> Heard:
        if len(host.told) == 2:
            raise Killed
        return Heard()

    with pytest.raises(Killed):
        host.scan("one", hear=hear)
    done = {one.key for one in host.told[0].observed}
    host.opened.clear()
    rest = host.scan("one")
    assert len(done) == 10
    assert len(rest) == 20
    assert len(host.opened) == 20
    assert host.last.covered


def test_a_damaged_memory_is_none(host: Host) -> None:
    put(host.root / "a.pem", pem(LEAF))
    host.scan("one")
    host.memory.write_bytes(b"\x97\x01" + os.urandom(50))
    assert list(host.scan("two")) == ["a.pem"]


def test_links_are_not_followed_out_of_the_tree_and_loops_do_not_matter(host: Host, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/secret.pem", pem(LEAF))
    put(host.root / "a/tls.pem", pem(LEAF))
    (host.root / "out").symlink_to(tmp_path / "elsewhere")
    (host.root / "out.pem").symlink_to(tmp_path / "elsewhere/secret.pem")
    (host.root / "a/loop").symlink_to(host.root)
    (host.root / "a/self").symlink_to(".")
    (host.root / "up").symlink_to("../elsewhere")
    assert list(host.scan()) == ["a/tls.pem"]
    assert host.scan("two", paths=[str(host.root / "out")]) == {}
    assert "discover: allow" in (host.last.problem or "")


def test_sets_of_files_that_are_exchanged_at_once_have_one_place(host: Host) -> None:
    put(host.root / "ours/generations/00000007/cert.pem", pem(LEAF))
    put(host.root / "ours/generations/00000006/cert.pem", pem(LEAF))
    (host.root / "ours/current").symlink_to("generations/00000007")
    put(host.root / "mount/..2026_11_22/tls.crt", pem(LEAF))
    (host.root / "mount/..data").symlink_to("..2026_11_22")
    (host.root / "mount/tls.crt").symlink_to("..data/tls.crt")
    assert sorted(host.scan()) == ["mount/..data/tls.crt", "ours/current/cert.pem"]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*/*", ["ours/generations/00000007/cert.pem"]),
        ("mount/.*", ["mount/..1/tls.crt"]),
        ("ours/*/*", ["ours/generations/00000007/cert.pem"]),
        ("ours/generations", ["ours/generations/00000007/cert.pem"]),
        ("ours/generations/00000006", []),
        ("ours/generations/00000006/cert.pem", []),
        ("ours/current", ["ours/generations/00000007/cert.pem"]),
        ("mount", ["mount/..data/tls.crt"]),
    ],
)
def test_whoever_asks_for_older_sets_gets_those_that_count(host: Host, pattern: str, wanted: list[str]) -> None:
    put(host.root / "ours/generations/00000007/cert.pem", pem(LEAF))
    put(host.root / "ours/generations/00000006/cert.pem", pem(LEAF))
    (host.root / "ours/current").symlink_to("generations/00000007")
    put(host.root / "mount/..1/tls.crt", pem(LEAF))
    (host.root / "mount/..data").symlink_to("..1")
    assert sorted(host.scan(paths=[f"{host.root}/{pattern}"])) == wanted


def test_pipes_sockets_and_devices_hold_nobody_up(host: Host) -> None:
    os.mkfifo(host.root / "pipe.pem")
    with closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind(str(host.root / "socket.pem"))
        (host.root / "null.pem").symlink_to("/dev/zero")
        put(host.root / "z.pem", pem(LEAF))
        assert list(host.scan()) == ["z.pem"]


def test_a_file_that_changes_while_it_is_read_is_a_problem(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(host.root / "a.pem", pem(LEAF))
    more = look._more

    def meanwhile(descriptor: int, data: bytearray, most: int) -> None:
        more(descriptor, data, most)
        path.write_bytes(pem(LEAF, MAKER.root))

    monkeypatch.setattr(look, "_more", meanwhile)
    assert host.scan()["a.pem"].problem == "it changed while it was read"
    monkeypatch.setattr(look, "_more", more)
    assert host.scan("two")["a.pem"].problem is None


def test_a_file_that_vanishes_is_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(host.root / "a.pem", pem(LEAF))
    read = look.Looker._bytes

    def gone(self: look.Looker, file: look.File) -> bytearray | None:
        path.unlink(missing_ok=True)
        return read(self, file)

    monkeypatch.setattr(look.Looker, "_bytes", gone)
    assert host.scan() == {}
    assert host.last.covered


@pytest.mark.skipif(
    os.geteuid() == 0 and not shutil.which("setpriv"), reason="runs as root, and has no setpriv (util-linux) to stop being it"
)
def test_what_may_not_be_read_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host.root / "closed/a.pem", pem(LEAF))
    put(host.root / "b.pem", pem(LEAF))
    put(host.root / "b.key", key_pem(KEY))
    scandir, open_ = os.scandir, os.open
    closed = (host.root / "closed").stat().st_ino

    def refused(path: int) -> object:
        if os.fstat(path).st_ino == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    def not_opened(path: str, flags: int, *args: int, dir_fd: int | None = None) -> int:
        if path in ("b.pem", "b.key"):
            raise PermissionError(13, "Permission denied")
        return open_(path, flags, *args, dir_fd=dir_fd)

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(os, "open", not_opened)
    found = host.scan()
    assert {name: one.problem for name, one in found.items()} == {"b.pem": "the agent may not read it"}
    assert [(os.path.relpath(one.path, host.root), one.problem) for chunk in host.told for one in chunk.unread] == [
        ("closed", "permission denied")
    ]
    assert host.last.covered


def test_names_that_are_no_text(host: Host) -> None:
    import msgspec

    name = os.fsdecode(b"caf\xe9.pem")
    put(host.root / name, pem(LEAF))
    (found,) = host.scan().values()
    assert found.shown.endswith("caf\\xe9.pem")
    msgspec.json.encode(host.told)
    assert host.scan("two") == {}
    assert len(host.told[0].unchanged) == 1


def test_limits(host: Host) -> None:
    put(host.root / "a/b/c/deep.pem", pem(LEAF))
    put(host.root / "large.pem", pem(LEAF) + b" " * 5000)
    found = host.scan(max_depth=2, max_size=4000)
    assert {name: bool(one.problem) for name, one in found.items()} == {"large.pem": True}
    assert host.scan("two", max_files=1, memory=False) == {} or not host.last.covered
    assert "first 1 files" in (host.last.problem or "")


def test_rules_of_the_host_win(host: Host) -> None:
    for name in ("a", "b", "c"):
        put(host.root / name / "tls.pem", pem(LEAF))
    put(host.root / "a/skipped.pem", pem(LEAF))
    rules = Rules(allow=(f"{host.root}/a", f"{host.root}/b"), deny=(f"{host.root}/b",), excludes=("skip*",))
    assert list(host.scan(rules=rules)) == ["a/tls.pem"]
    assert not host.last.covered
    assert "looked at: " in (host.last.problem or "")
    assert list(host.scan("g", paths=[f"{host.root}/*"], rules=host.rules)) == ["a/skipped.pem", "a/tls.pem", "b/tls.pem", "c/tls.pem"]
    for path in ("/proc", "/sys/kernel", "/dev"):
        assert Rules(allow=("/",)).forbids(path)
    assert Rules().forbids("/home/me")
    assert not Rules().forbids("/etc/nginx")


def test_the_agents_own_state_is_skipped_and_nothing_is_missing_for_that(host: Host) -> None:
    put(host.root / "tls.pem", pem(LEAF))
    put(host.root / "state/agent.pem", pem(LEAF))
    rules = Rules(allow=(str(host.root),), own=f"{host.root}/state")
    assert list(host.scan(rules=rules)) == ["tls.pem"]
    assert (host.last.problem, host.last.skipped) == (None, None), "nobody named it"
    named = [str(host.root), f"{host.root}/state/agent.pem"]
    assert list(host.scan("named", paths=named, rules=rules, memory=False)) == ["tls.pem"]
    assert host.last.problem is None
    assert host.last.skipped == f"{host.root}/state/agent.pem: it is the agent's own state, which is never looked at"
    assert host.last.covered == [f"files:{ME}:{path}" for path in named], "the scan is whole"
    assert list(host.scan("glob", paths=[f"{host.root}/*"], rules=rules, memory=False)) == ["tls.pem"]
    assert (host.last.problem, host.last.skipped) == (None, None)


def test_what_is_no_longer_looked_at_is_in_another_unit(host: Host) -> None:
    """Else the unit would be listed whole without it, and it would seem gone."""
    put(host.root / "kept.pem", pem(LEAF))
    put(host.root / "left/out.pem", pem(LEAF))
    assert sorted(host.scan()) == ["kept.pem", "left/out.pem"]
    everything = f"files:{ME}:{host.root}"
    assert host.last.covered == [everything]
    allow, units = (str(host.root),), {everything}
    narrower: list[dict[str, Any]] = [
        {"rules": Rules(allow=allow, excludes=("left",))},
        {"rules": Rules(allow=allow, deny=(f"{host.root}/left",))},
        {"max_depth": 0},
    ]
    for number, less in enumerate(narrower):
        told = host.scan(f"less {number}", **less)
        assert sorted(told) == ["kept.pem"], "it is told anew, in its new unit"
        (covered,) = host.last.covered
        assert told["kept.pem"].unit == covered
        assert whole_unit(covered) == everything
        units.add(covered)
        assert host.scan(f"again {number}", **less) == {}
        assert (host.unchanged, host.last.covered) == (["kept.pem"], [covered])
    assert len(units) == 4


def test_a_file_alone_and_roots_in_each_other(host: Host) -> None:
    put(host.root / "a/tls.pem", pem(LEAF))
    put(host.root / "b.pem", pem(LEAF))
    paths = [f"{host.root}/a/tls.pem", f"{host.root}/a", f"{host.root}/b.pem", f"{host.root}/not-there"]
    assert sorted(host.scan(paths=paths)) == ["a/tls.pem", "b.pem"]
    assert len(host.told[0].observed) == 2
    assert host.last.covered == [f"files:{ME}:{path}" for path in paths]


def test_shares_and_images_of_containers_are_passed_over() -> None:
    text = (
        "22 1 0:20 / /proc rw - proc proc rw\n35 1 0:30 / /srv/my\\040share rw shared:1 - nfs4 nas:/ rw\n"
        "36 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 1 0:40 / / rw - overlay overlay rw\nnonsense\n"
    )
    assert foreign_mounts(text) == {"/proc", "/srv/my share"}
    rules = Rules(mounts=foreign_mounts(text))
    assert rules.skips("/srv/my share", "my share", "/srv")
    assert rules.skips("/var/lib/docker", "docker", "/var/lib")
    assert not rules.skips("/var/lib/docker", "docker", "/var/lib/docker")


def test_the_section(tmp_path: Path) -> None:
    def section(text: str) -> object:
        return parse_config(f"identities: [{{dns: [a.test]}}]\n{text}", "agent.yaml", tmp_path).section("discover")

    assert section("") is None
    read = section("discover: {allow: [/srv//tls/], deny: [/srv/tls/x], passwords_file: pw}")
    assert (read.allow, read.deny, read.passwords_file) == (("/srv/tls",), ("/srv/tls/x",), tmp_path / "pw")
    assert section("discover: {off: true}").off
    assert section("discover: {}").allow == DEFAULT_ALLOW
    with pytest.raises(HandclaspError, match="absolute"):
        section("discover: {allow: [srv]}")
