"""Paths: what verifies, what does not and why; PEM; and the verdicts of other verifiers on what we issue."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from hypothesis import given
from hypothesis import strategies as st

from handclasp.clock import to_datetime
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import bundles, ca, chains, keys
from handclasp.pki.names import Names
from handclasp.pki.profiles import BUILT_IN, Profile
from support.authorities import NOW, YEAR, authority, csr_of, key_of, make_authority, plan_of, serial
from support.errors import allowing, refused
from support.needs import needs

_NAMES = Names("spiffe://example.org/prod/web", ("web.example.org",), ("10.0.0.1",))
_OPEN = Profile("open")


def _leaf(made, names=_NAMES, **options) -> bytes:
    return made.sign(plan_of(names, made=made, profile=_OPEN, **options))


@pytest.mark.parametrize("key_type", keys.KEY_TYPES)
def test_a_chain_of_each_key_type_verifies_to_root_and_to_the_issuing_authority(key_type):
    made = authority(key_type)
    leaf = _leaf(made, csr=csr_of(key_type))
    for purpose in ("client_auth", "server_auth", None):
        chains.verify_chain(leaf, [made.certificate], [made.root], NOW, purpose=purpose)
    chains.verify_chain(leaf, [], [made.certificate], NOW)
    chains.verify_chain(made.certificate, [], [made.root], NOW)
    with refused(Kind.VERIFY_FAILED, "no issuer"):
        chains.verify_chain(leaf, [], [made.root], NOW)
    with refused(Kind.VERIFY_FAILED, "no issuer"):
        chains.verify_chain(leaf, [made.certificate], [], NOW)


@pytest.mark.parametrize("key_type", ["p256", "p384", "ed25519", "rsa2048", "rsa3072", "rsa4096"])
def test_openssl_verifies_what_is_issued(key_type, tmp_path):
    needs("openssl")
    made = make_authority(key_type, dns_zones=("example.org",), now=_wall())
    for number, names in enumerate((_NAMES, Names(dns=("web.example.org",)), Names(email=("a@example.org",)))):
        leaf = _leaf(made, names, csr=csr_of(key_type), now=_wall())
        files = {"root": made.root, "issuing": made.certificate, f"leaf{number}": leaf}
        for name, data in files.items():
            (tmp_path / name).write_text(chains.to_pem(data))
        for purpose in ("sslclient", "sslserver"):
            command = [
                "openssl",
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-CAfile",
                "root",
                "-untrusted",
                "issuing",
                f"leaf{number}",
            ]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


def _wall() -> int:
    return int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)


@pytest.mark.parametrize("key_type", [key_type for key_type in keys.KEY_TYPES if key_type != "ed25519"])
def test_cryptography_verifies_what_is_issued(key_type):
    made = make_authority(key_type, dns_zones=("example.org",))
    leaf = x509.load_der_x509_certificate(_leaf(made, csr=csr_of(key_type)))
    store = verification.Store([x509.load_der_x509_certificate(made.root)])
    middle = [x509.load_der_x509_certificate(made.certificate)]
    builder = verification.PolicyBuilder().store(store).time(to_datetime(NOW).replace(tzinfo=None))
    subjects = builder.build_client_verifier().verify(leaf, middle).subjects
    assert x509.UniformResourceIdentifier("spiffe://example.org/prod/web") in (subjects or [])
    builder.build_server_verifier(x509.DNSName("web.example.org")).verify(leaf, middle)
    builder.build_server_verifier(x509.IPAddress(ipaddress.ip_address("10.0.0.1"))).verify(leaf, middle)
    with pytest.raises(verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("other.example.org")).verify(leaf, middle)


def test_dates_are_checked_at_every_step():
    made = make_authority(lifetime=7200)
    leaf = _leaf(made)
    path = ([made.certificate], [made.root])
    end = plan_of(made=made).not_after
    chains.verify_chain(leaf, *path, end)
    for now in (end + 1000, NOW - 61_000):
        with refused(Kind.VERIFY_FAILED, "not valid"):
            chains.verify_chain(leaf, *path, now)
    short = make_authority(lifetime=30)
    leaf = _leaf(short, ttl=25)
    with refused(Kind.VERIFY_FAILED, "not valid"):
        chains.verify_chain(leaf, [short.certificate], [short.root], short.issuer.not_after + 1000)


def test_a_forged_signature_a_foreign_root_and_a_wrong_purpose_are_refused():
    made = authority()
    leaf = _leaf(made)
    forged = bytearray(leaf)
    forged[leaf.find(b"prod/web")] ^= 1
    with refused(Kind.VERIFY_FAILED, "signature"):
        chains.verify_chain(bytes(forged), [made.certificate], [made.root], NOW)
    other = make_authority("p384")
    with refused(Kind.VERIFY_FAILED, "no issuer"):
        chains.verify_chain(leaf, [made.certificate], [other.root], NOW)
    client = made.sign(plan_of(profile=BUILT_IN["probe"]))
    chains.verify_chain(client, [made.certificate], [made.root], NOW, purpose="client_auth")
    with refused(Kind.VERIFY_FAILED, "server_auth"):
        chains.verify_chain(client, [made.certificate], [made.root], NOW, purpose="server_auth")


def _issue(subject: str, issuer: x509.Certificate | None, key, signer, extensions, *, name: x509.Name | None = None) -> bytes:
    """Make any certificate, also ones that we never would."""
    own = name or x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(issuer.subject if issuer else own)
        .public_key(key.public_key())
        .serial_number(serial())
        .not_valid_before(to_datetime(NOW - 1000))
        .not_valid_after(to_datetime(NOW + 10**9))
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(signer, keys.signing_hash(signer)).public_bytes(Encoding.DER)


_CA = (x509.BasicConstraints(True, None), True)


def _constrained(permitted=None, excluded=None, *, san) -> None:
    """Verify a leaf with ``san`` under a CA with name constraints."""
    root_key, leaf_key = key_of("p256", 1), key_of("p256", 2)
    root = _issue("root", None, root_key, root_key, [_CA, (x509.NameConstraints(permitted, excluded), True)])
    leaf = _issue("leaf", chains.load(root), leaf_key, root_key, [(x509.SubjectAlternativeName(san), False)])
    chains.verify_chain(leaf, [], [root], NOW)


_D, _U, _I = x509.DNSName, x509.UniformResourceIdentifier, x509.IPAddress
_NET = _I(ipaddress.ip_network("10.0.0.0/8"))
_SPIFFE = _U("spiffe://example.org/web")


@pytest.mark.parametrize(
    ("case", "permitted", "excluded", "san", "fine"),
    [
        ("a name in the zone", [_D("example.org")], None, [_D("a.example.org")], True),
        ("the zone itself", [_D("example.org")], None, [_D("example.org")], True),
        ("a name that only ends alike", [_D("example.org")], None, [_D("badexample.org")], False),
        ("one name outside", [_D("example.org")], None, [_D("a.example.org"), _D("a.test")], False),
        ("one of two zones", [_D("example.org"), _D("b.test")], None, [_D("a.b.test")], True),
        ("upper case", [_D("EXAMPLE.org")], None, [_D("a.Example.ORG")], True),
        ("a wildcard in the zone", [_D("example.org")], None, [_D("*.example.org")], True),
        ("DNS zones say nothing of URIs", [_D("example.org")], None, [_SPIFFE], True),
        ("an excluded name", None, [_D("secret.example.org")], [_D("a.secret.example.org")], False),
        ("beside an excluded name", None, [_D("secret.example.org")], [_D("a.example.org")], True),
        ("a wildcard over an excluded name", None, [_D("secret.example.org")], [_D("*.example.org")], False),
        ("an address in the network", [_NET], None, [_I(ipaddress.ip_address("10.9.8.7"))], True),
        ("an address outside", [_NET], None, [_I(ipaddress.ip_address("11.0.0.1"))], False),
        ("an IPv6 address under IPv4 rules", [_NET], None, [_I(ipaddress.ip_address("::1"))], False),
        ("the trust domain", [_U("example.org")], None, [_SPIFFE], True),
        ("another trust domain", [_U("example.net")], None, [_SPIFFE], False),
        ("a trust domain below", [_U(".example.org")], None, [_U("spiffe://a.example.org/x")], True),
        ("a domain is not below itself", [_U(".example.org")], None, [_SPIFFE], False),
        ("an excluded trust domain", None, [_U("example.org")], [_SPIFFE], False),
        ("a kind of constraint we do not know", [x509.DirectoryName(x509.Name([]))], None, [_SPIFFE], False),
    ],
)
def test_name_constraints(case, permitted, excluded, san, fine):
    if fine:
        _constrained(permitted, excluded, san=san)
    else:
        with refused(Kind.VERIFY_FAILED):
            _constrained(permitted, excluded, san=san)


def test_what_is_no_authority_cannot_issue():
    root_key, key, leaf_key = key_of("p256", 1), key_of("p256", 2), key_of("p256", 3)
    root = _issue("root", None, root_key, root_key, [(x509.BasicConstraints(True, 0), True)])
    cases = [
        ("not a certificate authority", [(x509.BasicConstraints(False, None), True)]),
        ("not a certificate authority", []),
        ("allows 0", [_CA]),
    ]
    for words, extensions in cases:
        middle = _issue("middle", chains.load(root), key, root_key, extensions)
        leaf = _issue("leaf", chains.load(middle), leaf_key, key, [])
        with refused(Kind.VERIFY_FAILED, words):
            chains.verify_chain(leaf, [middle], [root], NOW)
    crl_only = x509.KeyUsage(False, False, False, False, False, False, True, False, False)
    anchor = _issue("a", None, root_key, root_key, [_CA, (crl_only, True)])
    with refused(Kind.VERIFY_FAILED, "may not sign"):
        chains.verify_chain(_issue("leaf", chains.load(anchor), leaf_key, root_key, []), [], [anchor], NOW)
    unknown = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True)
    anchor = _issue("a", None, root_key, root_key, [_CA])
    with refused(Kind.VERIFY_FAILED, "unknown critical"):
        chains.verify_chain(_issue("leaf", chains.load(anchor), leaf_key, root_key, [unknown]), [], [anchor], NOW)


def test_a_second_certificate_of_the_same_authority_is_found_and_loops_end():
    """The same name and key may have several certificates; an expired or looping one must not hide the good one."""
    root_key, key, leaf_key = key_of("p256", 1), key_of("p256", 2), key_of("p256", 3)
    root = _issue("root", None, root_key, root_key, [_CA])
    good = _issue("middle", chains.load(root), key, root_key, [_CA])
    wrong_key = _issue("middle", chains.load(root), key_of("p256", 4), root_key, [_CA])
    loop = _issue("root", chains.load(good), root_key, key, [_CA])
    leaf = _issue("leaf", chains.load(good), leaf_key, key, [])
    chains.verify_chain(leaf, [wrong_key, loop, good], [root], NOW)
    with refused(Kind.VERIFY_FAILED):
        chains.verify_chain(leaf, [wrong_key, loop, good], [], NOW)
    many = [_issue("middle", chains.load(root), key_of("p256", 4), root_key, [_CA]) for _ in range(chains.MAX_CANDIDATES + 1)]
    with refused(Kind.VERIFY_FAILED, "too many"):
        chains.verify_chain(leaf, [*many, good], [root], NOW)


def test_pem_round_trips_and_agrees_with_cryptography():
    made = authority()
    pem = bundles.pem_bundle([made.certificate, made.root])
    assert chains.split_pem(pem) == [made.certificate, made.root]
    assert chains.split_pem("# comment\n" + pem.replace("\n", "\r\n") + "\ntail") == [made.certificate, made.root]
    assert chains.to_pem(made.root) == x509.load_der_x509_certificate(made.root).public_bytes(Encoding.PEM).decode()
    assert len(chains.fingerprint(made.root)) == 32
    key = keys.to_pem(made.key).decode()
    assert chains.split_pem(key + pem) == [made.certificate, made.root]


def test_broken_pem_is_bad_certificate():
    pem = chains.to_pem(authority().root)
    for text in (
        "",
        "x",
        pem[:-30],
        pem.replace("M", "*", 1),
        pem + pem[:200],
        pem.replace("MI", "AA"),
        keys.to_pem(key_of("p256")).decode(),
    ):
        with refused(Kind.BAD_CERTIFICATE):
            chains.split_pem(text)
    for data in (b"", b"\x30\x00", authority().root + b"\x00", authority().root[:-1]):
        with refused(Kind.BAD_CERTIFICATE):
            chains.load(data)


@given(st.integers(0, 2000), st.integers(1, 255), st.sampled_from(["leaf", "middle"]))
def test_no_changed_certificate_verifies_and_only_our_errors_escape(at, change, which):
    made = authority()
    leaf = bytearray(_leaf(made))
    middle = bytearray(made.certificate)
    target = leaf if which == "leaf" else middle
    target[at % len(target)] ^= change
    with pytest.raises(HandclaspError) as caught:
        chains.verify_chain(bytes(leaf), [bytes(middle)], [made.root], NOW)
    assert caught.value.kind in (Kind.VERIFY_FAILED, Kind.BAD_CERTIFICATE)


@given(st.binary(max_size=300), st.text(max_size=200))
def test_random_input_raises_only_our_errors(data, text):
    with allowing(Kind.BAD_CERTIFICATE):
        chains.load(data)
    with allowing(Kind.BAD_CERTIFICATE):
        chains.split_pem(text)
    with allowing(Kind.BAD_CERTIFICATE):
        chains.split_pem("-----BEGIN CERTIFICATE-----\n" + text + "\n-----END CERTIFICATE-----\n")


def test_authorities_are_unique_and_self_checked():
    key = key_of("p256", 1)
    make = lambda k, **o: ca.self_signed_root(k, **{"common_name": "Root", "now": NOW, "lifetime": YEAR, "serial": serial(), **o})  # noqa: E731
    one, two = chains.load(make(key)), chains.load(make(key_of("p256", 2)))
    assert one.subject != two.subject
    assert chains.key_id(one) == keys.key_id(keys.spki_der(key.public_key()))
    for options in ({"common_name": ""}, {"common_name": "x" * 60}, {"common_name": "a\nb"}, {"trust_domain": "A/b"}):
        with refused(Kind.BAD_NAME):
            make(key, **options)
    with refused(Kind.LIFETIME_NOT_ALLOWED):
        make(key, lifetime=-100.0)
    root = make(key, trust_domain="example.org")
    sign = lambda **o: ca.sign_issuing(  # noqa: E731
        o.pop("key", key),
        o.pop("root", root),
        o.pop("request", key_of("p256", 3).public_key()),
        **{"subject": "Issuing", "now": NOW, "lifetime": YEAR, "serial": serial(), **o},
    )
    with refused(Kind.BAD_KEY):
        sign(key=key_of("p256", 2))
    with refused(Kind.CONFLICT, "levels"):
        sign(pathlen=1)
    with refused(Kind.CONFLICT, "not a certificate authority"):
        made = authority()
        sign(key=key_of("p256"), root=_leaf(made))
    with refused(Kind.BAD_NAME):
        sign(dns_zones=("*.example.org",))
    with refused(Kind.BAD_CSR):
        sign(request=b"no")
    request = ca.ca_request(key_of("p256", 3), "Issuing A")
    issued = chains.load(sign(request=request, dns_zones=("example.org",), uri_constraint="example.org", lifetime=100 * YEAR))
    assert issued.not_valid_after_utc == chains.load(root).not_valid_after_utc
    constraints = issued.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert constraints.value.permitted_subtrees == [x509.DNSName("example.org"), x509.UniformResourceIdentifier("example.org")]
    assert issued.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)


def test_an_issuer_is_what_the_certificate_says():
    made = make_authority(dns_zones=("example.org",))
    certificate = chains.load(made.certificate)
    assert made.issuer.subject_der == certificate.subject.public_bytes()
    assert made.issuer.key_id == chains.key_id(certificate)
    assert to_datetime(made.issuer.not_after) == certificate.not_valid_after_utc
    with refused(Kind.BAD_CERTIFICATE):
        ca.issuer_of(_leaf(made), name="x", trust_domain="example.org")
