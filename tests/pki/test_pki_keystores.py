"""Keystores: what is written is what others read, Java and OpenSSL among them; and it does not open with another password."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import jks
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from handclasp.errors import Kind
from handclasp.pki import keys
from handclasp.pki.chains import split_pem
from handclasp.pki.keystores import jks_keystore, jks_truststore, pkcs12_keystore, pkcs12_truststore
from support.errors import refused
from support.fake_server import FakeAuthority, key_pem, pem
from support.needs import needs

PASSWORD = "correct horse"
NOW = 1_700_000_000_000
AUTHORITY, OTHER = FakeAuthority(), FakeAuthority("Other")
ANCHORS = [split_pem(pem(one.root))[0] for one in (AUTHORITY, OTHER)]


def made() -> tuple[bytes, list[bytes]]:
    """Return a private key (PEM) and its chain (DER)."""
    chain, key = AUTHORITY.credential(dns=["localhost"])
    return key, split_pem(chain.decode())


def plain(key: bytes) -> bytes:
    private = serialization.load_pem_private_key(key, None)
    return private.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def test_pkcs12_holds_key_and_chain_under_one_name() -> None:
    key, chain = made()
    found = pkcs12.load_pkcs12(pkcs12_keystore(key, chain, "web", PASSWORD), PASSWORD.encode())
    assert found.key is not None
    assert found.cert is not None
    assert found.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()) == key
    assert found.cert.friendly_name == b"web"
    der = serialization.Encoding.DER
    assert [found.cert.certificate.public_bytes(der), *(one.certificate.public_bytes(der) for one in found.additional_certs)] == chain


def test_jks_holds_key_and_chain_and_does_not_open_with_another_password() -> None:
    key, chain = made()
    data = jks_keystore(key, chain, "web", PASSWORD, now=NOW, random=os.urandom)
    entry = jks.KeyStore.loads(data, PASSWORD).private_keys["web"]
    assert entry.pkey_pkcs8 == plain(key)
    assert [certificate for _, certificate in entry.cert_chain] == chain
    assert entry.timestamp == NOW
    with pytest.raises(jks.util.KeystoreSignatureException):
        jks.KeyStore.loads(data, PASSWORD + "x")
    assert plain(key) not in data
    assert jks_keystore(key, chain, "web", PASSWORD, now=NOW, random=os.urandom) != data, "another salt each time"


def test_truststores_hold_every_anchor_old_and_new() -> None:
    found = jks.KeyStore.loads(jks_truststore(ANCHORS, PASSWORD, now=NOW), PASSWORD)
    assert sorted(entry.cert for entry in found.certs.values()) == sorted(ANCHORS)
    read = pkcs12.load_pkcs12(pkcs12_truststore(ANCHORS, PASSWORD), PASSWORD.encode())
    assert sorted(one.certificate.public_bytes(serialization.Encoding.DER) for one in read.additional_certs) == sorted(ANCHORS)


@pytest.mark.parametrize("key_type", ["p256", "p384", "ed25519", "rsa2048"])
def test_every_type_of_key_that_keystores_know(key_type: str) -> None:
    _, chain = made()
    key = keys.generate(key_type).private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    entry = jks.KeyStore.loads(jks_keystore(key, chain, "a", PASSWORD, now=NOW, random=os.urandom), PASSWORD).private_keys["a"]
    assert entry.pkey_pkcs8 == plain(key)


def test_what_cannot_be_a_keystore() -> None:
    key, chain = made()
    other = AUTHORITY.credential(dns=["localhost"])[1]
    for password in ("", "short", "with\nline", "pässword"):
        with refused(Kind.BAD_SETTING, "6 printable"):
            pkcs12_truststore(ANCHORS, password)
        with refused(Kind.BAD_SETTING):
            jks_keystore(key, chain, "a", password, now=NOW, random=os.urandom)
    for bad in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        with refused(Kind.BAD_KEY):
            jks_keystore(bad, chain, "a", PASSWORD, now=NOW, random=os.urandom)
        with refused(Kind.BAD_KEY):
            pkcs12_keystore(bad, chain, "a", PASSWORD)
    assert key_pem(AUTHORITY.key) != other


def keytool(*arguments: str) -> str:
    done = subprocess.run([needs("keytool"), *arguments], capture_output=True, text=True, timeout=60, check=False, env={"LC_ALL": "C"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("form", ["PKCS12", "JKS"])
def test_java_reads_them(tmp_path: Path, form: str) -> None:
    """``keytool`` lists the key with its chain and both anchors as trusted, and signs with the key, which needs it to be decrypted."""
    key, chain = made()
    stores = {
        "PKCS12": (pkcs12_keystore(key, chain, "web", PASSWORD), pkcs12_truststore(ANCHORS, PASSWORD)),
        "JKS": (jks_keystore(key, chain, "web", PASSWORD, now=NOW, random=os.urandom), jks_truststore(ANCHORS, PASSWORD, now=NOW)),
    }
    for name, data in zip(("key", "trust"), stores[form], strict=True):
        (tmp_path / name).write_bytes(data)
    options = ["-storetype", form, "-storepass", PASSWORD]
    listed = keytool("-list", "-v", "-keystore", str(tmp_path / "key"), *options)
    assert "Alias name: web" in listed
    assert "Entry type: PrivateKeyEntry" in listed
    assert "Certificate chain length: 2" in listed
    trusted = keytool("-list", "-keystore", str(tmp_path / "trust"), *options)
    assert trusted.count("trustedCertEntry") == 2
    assert "BEGIN NEW CERTIFICATE REQUEST" in keytool("-certreq", "-alias", "web", "-keystore", str(tmp_path / "key"), *options)


def test_openssl_3_reads_them_without_its_legacy_provider(tmp_path: Path) -> None:
    key, chain = made()
    (tmp_path / "key.p12").write_bytes(pkcs12_keystore(key, chain, "web", PASSWORD))
    command = ["openssl", "pkcs12", "-in", str(tmp_path / "key.p12"), "-noenc", "-passin", f"pass:{PASSWORD}"]
    needs("openssl")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert key.decode() in done.stdout
    assert done.stdout.count("BEGIN CERTIFICATE") == 2
