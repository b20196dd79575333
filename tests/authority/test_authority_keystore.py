"""Keys at rest: encrypted, private, whole, and only opened by their passphrase."""

from __future__ import annotations

import base64
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp import faults
from handclasp.authority.files import replace
from handclasp.authority.keystore import KeyStore
from handclasp.authority.passphrase import find_passphrase, make_passphrase
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys

PASSPHRASE = b"correct horse battery staple"
POINTS = ("authority.file_written", "authority.file_named")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def plain_forms(key: keys.PrivateKey) -> list[bytes]:
    """What must never be found on disk: lines of the key's plain PEM, and stretches of its plain PKCS#8 DER."""
    lines = keys.to_pem(key).splitlines()[1:-1]
    plain = base64.b64decode(b"".join(lines))
    middle = plain[36:68]  # the private value of an elliptic curve key, the seed or factors of the others
    return [*lines, middle, middle.hex().encode(), plain[:40]]


@pytest.fixture(autouse=True)
def _wide_umask() -> Iterator[None]:
    before = os.umask(0)  # modes must not depend on it
    yield
    os.umask(before)


@pytest.mark.parametrize("key_type", ["p256", "p384", "ed25519", "rsa2048", "ml-dsa-65"])
def test_a_generated_key_signs_and_lies_encrypted_in_a_private_place(tmp_path: Path, key_type: str) -> None:
    store = KeyStore(tmp_path / "keys", PASSPHRASE)
    key = store.generate("file:root.key", key_type)
    again = store.load("file:root.key")
    keys.verify(key.public_key(), keys.sign(again, b"data"), b"data")
    assert mode(tmp_path / "keys") == 0o700
    assert [(path.name, mode(path)) for path in (tmp_path / "keys").iterdir()] == [("root.key", 0o600)]
    for path in tmp_path.rglob("*.key"):
        data = path.read_bytes()
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in data
        assert b"BEGIN PRIVATE KEY" not in data
        sealed = base64.b64decode(b"".join(data.splitlines()[1:-1]))
        assert not any(form in data or form in sealed for form in plain_forms(key))


def test_openssl_reads_a_key_file_with_the_passphrase_and_not_without(tmp_path: Path) -> None:
    KeyStore(tmp_path, PASSPHRASE).generate("file:a.key", "p256")
    for passphrase, code in ((PASSPHRASE, 0), (b"wrong", 1)):
        command = ["openssl", "pkey", "-in", str(tmp_path / "a.key"), "-passin", "stdin", "-noout", "-text"]
        assert subprocess.run(command, input=passphrase, capture_output=True, check=False).returncode == code
    shown = subprocess.run(["openssl", "asn1parse", "-in", str(tmp_path / "a.key")], capture_output=True, text=True, check=True).stdout
    assert "scrypt" in shown
    assert "aes-256-cbc" in shown


def test_the_wrong_passphrase_is_refused_with_a_hint(tmp_path: Path) -> None:
    KeyStore(tmp_path, PASSPHRASE).generate("file:a.key", "p256")
    with pytest.raises(HandclaspError) as caught:
        KeyStore(tmp_path, b"something else entirely").load("file:a.key")
    assert caught.value.kind is Kind.BAD_KEY
    assert "a.key" in caught.value.detail
    assert "passphrase" in caught.value.hint
    assert "something else" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("a key that others may read", Kind.BAD_SETTING),
        ("a key that is not encrypted", Kind.BAD_KEY),
        ("a key cut short", Kind.BAD_KEY),
        ("a key that is not there", Kind.NOT_FOUND),
        ("a directory in the place of a key", Kind.BAD_SETTING),
        ("no passphrase", Kind.BAD_SETTING),
    ],
)
def test_a_key_file_that_cannot_be_trusted_is_refused(tmp_path: Path, case: str, kind: Kind) -> None:
    KeyStore(tmp_path, PASSPHRASE).generate("file:a.key", "p256")
    path = tmp_path / "a.key"
    passphrase: bytes | None = PASSPHRASE
    match case:
        case "a key that others may read":
            path.chmod(0o640)
        case "a key that is not encrypted":
            path.write_bytes(keys.to_pem(keys.generate("p256")))
        case "a key cut short":
            path.write_bytes(path.read_bytes()[:-90])
        case "a key that is not there":
            path.unlink()
        case "a directory in the place of a key":
            path.unlink()
            path.mkdir()
        case "no passphrase":
            passphrase = None
    with pytest.raises(HandclaspError) as caught:
        KeyStore(tmp_path, passphrase).load("file:a.key")
    assert caught.value.kind is kind


@pytest.mark.parametrize(
    "uri", ["", "file:", "a.key", "file:../a.key", "file:/etc/a.key", "file:a.pem", "file:.key", "file:a/b.key", "file:a.key\n"]
)
def test_a_uri_that_leaves_the_directory_or_is_none_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        KeyStore(tmp_path, PASSPHRASE).generate(uri, "p256")
    assert caught.value.kind is Kind.BAD_SETTING
    assert list(tmp_path.iterdir()) == []


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    store = KeyStore(tmp_path, PASSPHRASE)
    store.generate("file:a.key", "p256")
    before = (tmp_path / "a.key").read_bytes()
    with pytest.raises(HandclaspError) as caught:
        store.generate("file:a.key", "p256")
    assert caught.value.kind is Kind.CONFLICT
    with pytest.raises(HandclaspError) as caught:
        store.import_key("file:a.key", keys.to_pem(keys.generate("p256")))
    assert caught.value.kind is Kind.CONFLICT
    assert (tmp_path / "a.key").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.key"]


def test_an_imported_key_is_encrypted_under_our_passphrase(tmp_path: Path) -> None:
    key = keys.generate("p384")
    store = KeyStore(tmp_path, PASSPHRASE)
    imported = store.import_key("file:a.key", keys.to_pem(key, b"theirs"), b"theirs")
    assert keys.spki_der(imported.public_key()) == keys.spki_der(key.public_key())
    assert not any(form in (tmp_path / "a.key").read_bytes() for form in plain_forms(key))
    assert keys.spki_der(KeyStore(tmp_path, PASSPHRASE).load("file:a.key").public_key()) == keys.spki_der(key.public_key())


def test_a_directory_that_was_too_wide_is_tightened(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o755)
    KeyStore(directory, PASSPHRASE).generate("file:a.key", "p256")
    assert mode(directory) == 0o700


GENERATE = """
import sys
from collections.abc import Iterator
from pathlib import Path
from handclasp.authority.keystore import KeyStore
KeyStore(Path(sys.argv[1]), b"correct horse battery staple").generate("file:a.key", "p256")
"""


@pytest.mark.parametrize("action", ["kill", "fail"])
@pytest.mark.parametrize("point", POINTS)
def test_a_writer_that_dies_leaves_the_key_whole_or_absent_and_never_in_the_clear(tmp_path: Path, point: str, action: str) -> None:
    environ = os.environ | {"HANDCLASP_FAULT": f"{point}:{action}", "PYTHONPATH": "src"}
    done = subprocess.run([sys.executable, "-c", GENERATE, str(tmp_path)], env=environ, capture_output=True, check=False)
    assert done.returncode == (-signal.SIGKILL if action == "kill" else 1)
    for path in tmp_path.iterdir():  # also what was left beside it
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()
        assert mode(path) == 0o600
    store = KeyStore(tmp_path, PASSPHRASE)
    named = (tmp_path / "a.key").exists()
    assert named == (point == "authority.file_named")
    key = store.load("file:a.key") if named else store.generate("file:a.key", "p256")
    keys.verify(key.public_key(), keys.sign(key, b"x"), b"x")
    if not named:
        assert [path.name for path in tmp_path.iterdir()] == ["a.key"]  # the next writer sweeps the leftover away


def test_every_fault_point_of_file_writing_is_killed_at() -> None:
    assert {point for point in faults.POINTS if point.startswith("authority.file")} == set(POINTS)


def test_replacing_a_file_is_one_rename_and_its_mode_is_not_the_umasks(tmp_path: Path) -> None:
    os.umask(0o077)
    path = tmp_path / "list.crl"
    replace(path, b"old", 0o644)
    with path.open("rb") as reader:
        replace(path, b"new", 0o644)
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o644
    assert list(tmp_path.iterdir()) == [path]


# --- passphrases ------------------------------------------------------------------------------------------------------------------------


def secret(path: Path, text: str, permissions: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(permissions)
    return path


def test_the_passphrase_is_looked_for_in_order_and_the_first_place_wins(tmp_path: Path) -> None:
    data = tmp_path / "data"
    explicit = secret(tmp_path / "explicit", "from the explicit file\n")
    named = secret(tmp_path / "named", "from the variable\r\n")
    secret(tmp_path / "credentials" / "handclasp-passphrase", "from the credential\n", 0o440)
    secret(data / "passphrase", "from the data directory")
    environ = {"HANDCLASP_PASSPHRASE_FILE": str(named), "CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    assert find_passphrase(data, explicit, environ) == b"from the explicit file"
    assert find_passphrase(data, None, environ) == b"from the variable"
    del environ["HANDCLASP_PASSPHRASE_FILE"]
    assert find_passphrase(data, None, environ) == b"from the credential"
    assert find_passphrase(data, None, {}) == b"from the data directory"


@pytest.mark.parametrize(
    ("text", "permissions"),
    [("short", 0o600), ("", 0o600), ("x" * 2000, 0o600), ("long enough to be used", 0o644), ("long enough to be used", 0o620)],
)
def test_a_passphrase_that_protects_nothing_is_refused(tmp_path: Path, text: str, permissions: int) -> None:
    with pytest.raises(HandclaspError) as caught:
        find_passphrase(tmp_path, secret(tmp_path / "p", text, permissions), {})
    assert caught.value.kind is Kind.BAD_SETTING
    assert "long enough" not in str(caught.value)


def test_a_named_place_that_is_not_there_does_not_fall_back(tmp_path: Path) -> None:
    secret(tmp_path / "passphrase", "from the data directory")
    with pytest.raises(HandclaspError) as caught:
        find_passphrase(tmp_path, None, {"HANDCLASP_PASSPHRASE_FILE": str(tmp_path / "absent")})
    assert caught.value.kind is Kind.BAD_SETTING


def test_no_passphrase_anywhere_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HandclaspError) as caught:
        find_passphrase(tmp_path, None, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert "HANDCLASP_PASSPHRASE_FILE" in caught.value.hint


def test_making_a_passphrase_twice_gives_the_same_one_in_a_private_file(tmp_path: Path) -> None:
    made = make_passphrase(tmp_path / "data", os.urandom)
    assert make_passphrase(tmp_path / "data", os.urandom) == made == find_passphrase(tmp_path / "data", None, {})
    assert len(made) == 43
    assert mode(tmp_path / "data" / "passphrase") == 0o600
    assert mode(tmp_path / "data") == 0o700


@given(text=st.text(max_size=80))
def test_a_key_uri_is_a_key_uri_or_a_domain_error(text: str) -> None:
    with pytest.raises(HandclaspError):
        KeyStore(Path("/nonexistent"), PASSPHRASE).load("file:" + text.replace("\0", ""))
