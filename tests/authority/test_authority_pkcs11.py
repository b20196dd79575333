"""Keys on a PKCS#11 token (SoftHSM2): used like any other key, by one thread, and never to be had."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from handclasp.authority import hsm
from handclasp.authority.keystore import KeyStore
from handclasp.authority.pkcs11_uri import Pkcs11Uri, parse_pkcs11_uri
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Token root")])


@pytest.fixture
def store(softhsm: Any, tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path, None, environ=softhsm.environ)


def made(store: KeyStore, softhsm: Any, key_type: str, request: pytest.FixtureRequest) -> Any:
    return store.generate(softhsm.uri(f"k-{abs(hash(request.node.nodeid)):x}"), key_type)


@pytest.mark.parametrize("key_type", ["p256", "p384", "rsa2048"])
def test_a_token_key_signs_certificates_lists_requests_and_data(
    store: KeyStore, softhsm: Any, key_type: str, request: pytest.FixtureRequest
) -> None:
    key = made(store, softhsm, key_type, request)
    public = key.public_key()
    assert keys.key_type_of(public) == key_type
    keys.verify(public, keys.sign(key, b"data"), b"data")
    digest = keys.signing_hash(key)
    builder = x509.CertificateBuilder(NAME, NAME, public, 7, NOW, NOW + timedelta(days=1))
    certificate = builder.sign(key, digest)
    certificate.verify_directly_issued_by(certificate)
    revoked = x509.CertificateRevocationListBuilder(NAME, NOW, NOW + timedelta(days=1)).sign(key, digest)
    assert revoked.is_signature_valid(public)
    assert x509.CertificateSigningRequestBuilder(NAME).sign(key, digest).is_signature_valid


def test_the_private_half_cannot_be_had(store: KeyStore, softhsm: Any, request: pytest.FixtureRequest) -> None:
    key = made(store, softhsm, "p256", request)
    with pytest.raises(UnsupportedAlgorithm):
        keys.to_pem(key)
    for refused in (key.private_numbers, lambda: key.exchange(ec.ECDH(), key.public_key())):
        with pytest.raises(UnsupportedAlgorithm):
            refused()
    assert copy.copy(key) is key is copy.deepcopy(key)
    assert (key.curve.name, key.key_size) == ("secp256r1", 256)
    pkcs11 = pytest.importorskip("pkcs11")
    handle = key._handle
    handle.sign(b"x" * 32, "ECDSA")
    attributes = handle._token.call(
        lambda _: [handle._object[getattr(pkcs11.Attribute, name)] for name in ("SENSITIVE", "EXTRACTABLE", "PRIVATE")]
    )
    assert attributes == [True, False, True]


def test_an_rsa_token_key_refuses_what_we_never_use(store: KeyStore, softhsm: Any, request: pytest.FixtureRequest) -> None:
    key = made(store, softhsm, "rsa2048", request)
    with pytest.raises(UnsupportedAlgorithm):
        key.sign(b"x", padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    with pytest.raises(UnsupportedAlgorithm):
        key.sign(b"x", padding.PKCS1v15(), hashes.SHA1())
    with pytest.raises(UnsupportedAlgorithm):
        key.decrypt(b"x", padding.PKCS1v15())


def test_many_threads_sign_with_one_session(store: KeyStore, softhsm: Any, request: pytest.FixtureRequest) -> None:
    key = made(store, softhsm, "p256", request)
    other = store.generate(softhsm.uri("other-token", token="handclasp-other"), "p256")
    with ThreadPoolExecutor(8) as pool:
        work = [(one, str(number).encode()) for number in range(100) for one in (key, other)]
        for (one, data), signature in zip(work, pool.map(lambda item: keys.sign(*item), work), strict=True):
            keys.verify(one.public_key(), signature, data)


# python-pkcs11 ends its unfinished search when the object is collected, and complains that the session is gone.
@pytest.mark.filterwarnings("ignore:Exception ignored in. .pkcs11:pytest.PytestUnraisableExceptionWarning")
def test_a_session_that_was_lost_is_opened_again(store: KeyStore, softhsm: Any, request: pytest.FixtureRequest) -> None:
    key = made(store, softhsm, "p256", request)
    token = key._handle._token
    before = token.generation
    token.call(lambda session: session.close())  # as when the token was pulled or restarted
    keys.verify(key.public_key(), keys.sign(key, b"data"), b"data")
    assert token.generation == before + 1


def test_two_stores_find_the_same_key_also_by_its_id(softhsm: Any, tmp_path: Path) -> None:
    uri = f"pkcs11:token=handclasp-test;object=shared;id=%01%FE?module-path={softhsm.module}"
    environ = {"HANDCLASP_PKCS11_PIN": softhsm.environ["HANDCLASP_PKCS11_PIN"]}
    key = KeyStore(tmp_path, None, environ=environ).generate(uri, "p256")
    for other in (uri, f"pkcs11:token=handclasp-test;id=%01%fe?module-path={softhsm.module}", softhsm.uri("shared")):
        found = KeyStore(tmp_path, None, module=softhsm.module, environ=environ).load(other)
        assert keys.spki_der(found.public_key()) == keys.spki_der(key.public_key())


@pytest.mark.parametrize(
    ("case", "uri", "environ", "kind"),
    [
        ("a key that is not there", "pkcs11:token=handclasp-test;object=absent", {}, Kind.NOT_FOUND),
        ("a token that is not there", "pkcs11:token=absent;object=a", {}, Kind.BAD_SETTING),
        ("no library", "pkcs11:token=t;object=a", {"HANDCLASP_PKCS11_MODULE": ""}, Kind.BAD_SETTING),
        ("a library without a path", "pkcs11:token=t;object=a", {"HANDCLASP_PKCS11_MODULE": "libsofthsm2.so"}, Kind.BAD_SETTING),
        ("a library that is none", "pkcs11:token=t;object=a", {"HANDCLASP_PKCS11_MODULE": "/etc/passwd"}, Kind.BAD_SETTING),
        ("no PIN", "pkcs11:token=handclasp-test;object=a", {"HANDCLASP_PKCS11_PIN": ""}, Kind.BAD_SETTING),
        ("a PIN from a program", "pkcs11:token=handclasp-test;object=a?pin-source=%7Cid", {}, Kind.BAD_SETTING),
        ("a PIN file that is not there", "pkcs11:token=handclasp-test;object=a?pin-source=file:/nonexistent", {}, Kind.BAD_SETTING),
    ],
)
def test_what_cannot_be_opened_is_said(softhsm: Any, tmp_path: Path, case: str, uri: str, environ: dict[str, str], kind: Kind) -> None:
    with pytest.raises(HandclaspError) as caught:
        KeyStore(tmp_path, None, environ=softhsm.environ | environ).load(uri)
    assert caught.value.kind is kind


def test_a_wrong_pin_is_tried_once(softhsm: Any, tmp_path: Path) -> None:
    store = KeyStore(tmp_path, None, environ=softhsm.environ | {"HANDCLASP_PKCS11_PIN": "000000"})
    uri = softhsm.uri("a", token="handclasp-other", pin=False)
    for _ in range(2):
        token = hsm.open_token(parse_pkcs11_uri(uri), module="", environ=softhsm.environ | {"HANDCLASP_PKCS11_PIN": "000000"})
        with pytest.raises(HandclaspError) as caught:
            store.load(uri)
        assert caught.value.kind in (Kind.BAD_SETTING, Kind.NOT_FOUND)  # logged in by another test: then the PIN is not asked for
        assert "000000" not in str(caught.value)
        assert token.generation <= 1


def test_a_key_is_not_made_twice_nor_imported(store: KeyStore, softhsm: Any) -> None:
    store.generate(softhsm.uri("once"), "p256")
    with pytest.raises(HandclaspError) as caught:
        store.generate(softhsm.uri("once"), "p256")
    assert caught.value.kind is Kind.CONFLICT
    with pytest.raises(HandclaspError) as caught:
        store.import_key(softhsm.uri("imported"), keys.to_pem(keys.generate("p256")))
    assert caught.value.kind is Kind.BAD_SETTING
    with pytest.raises(HandclaspError) as caught:
        store.generate(softhsm.uri("pq"), "ml-dsa-65")
    assert caught.value.kind is Kind.BAD_KEY


# --- URIs (RFC 7512) --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pkcs11:token=T;object=O", Pkcs11Uri(token="T", object="O")),
        ("pkcs11:object=O;token=My%20token;type=private", Pkcs11Uri(token="My token", object="O")),
        ("pkcs11:serial=01;id=%00%ff", Pkcs11Uri(serial="01", id=b"\0\xff")),
        (
            "pkcs11:slot-id=5;object=O?module-path=/l.so&pin-source=file:/p",
            Pkcs11Uri(slot_id=5, object="O", module_path="/l.so", pin_source="file:/p"),
        ),
        ("pkcs11:token=%C3%A9;object=O;model=M;manufacturer=X", Pkcs11Uri(token="é", object="O", model="M", manufacturer="X")),
    ],
)
def test_uris_that_are_understood(text: str, expected: Pkcs11Uri) -> None:
    assert parse_pkcs11_uri(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "pkcs11:", "pkcs11:token=T", "pkcs11:object=O", "PKCS11:token=T;object=O", "pkcs11:token=T;object=O;type=cert",
        "pkcs11:token=T;token=U;object=O", "pkcs11:token=T;object=O;x-vendor=1", "pkcs11:token=T;object=O?x=1", "pkcs11:token=T;object=",
        "pkcs11:token=%ZZ;object=O", "pkcs11:token=%FF;object=O", "pkcs11:token=a%0Ab;object=O", "pkcs11:slot-id=x;object=O",
        "pkcs11:token=T;object=O ", "pkcs11:token=é;object=O", "pkcs11:token=" + "T" * 3000,
    ],
)  # fmt: skip
def test_uris_that_are_refused(text: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        parse_pkcs11_uri(text)
    assert caught.value.kind is Kind.BAD_SETTING


def test_a_pin_in_the_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(HandclaspError) as caught:
        parse_pkcs11_uri("pkcs11:token=T;object=O?pin-value=987654")
    assert "987654" not in str(caught.value)


@given(st.text() | st.from_regex(r"pkcs11:((token|object|id|slot-id|serial)=[a-z0-9%;?&=]{0,9}[;?&]?){0,5}", fullmatch=True))
def test_any_text_is_a_uri_or_a_domain_error(text: str) -> None:
    try:
        parse_pkcs11_uri(text)
    except HandclaspError as error:
        assert error.kind is Kind.BAD_SETTING  # noqa: PT017


def test_a_public_key_is_read_as_it_is_on_the_token(store: KeyStore, softhsm: Any, request: pytest.FixtureRequest) -> None:
    key = made(store, softhsm, "p384", request)
    spki = keys.spki_der(key.public_key())
    assert serialization.load_der_public_key(spki) == key.public_key()
