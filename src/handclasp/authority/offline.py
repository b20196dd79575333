"""Authorities made with files only: a root that lives on a machine without a network, and the files that go between it and the server.

``DIR/root.key`` (encrypted), ``root.crt`` and ``root.crl`` are the root; a request comes in, a certificate and the root's CRL go out.
No store and no log here: what was made is logged when it is imported (:mod:`handclasp.authority.authorities`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from handclasp.authority import facts
from handclasp.authority.files import PUBLIC, private_directory, read_small, replace, write_new
from handclasp.authority.keyfile import load_key_file, write_key_file
from handclasp.clock import from_datetime
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import ca, chains, crl, keys
from handclasp.pki.names import check_trust_domain

ROOT_LIFETIME = 10 * 365 * 86400.0
ISSUING_LIFETIME = 365 * 86400.0
BACKDATE = 3600.0  # seconds; hosts whose clock is behind must still accept a new authority
OFFLINE_CRL_VALIDITY = 180 * 86400.0  # seconds; someone has to walk to the machine before it ends


@dataclass(frozen=True, slots=True)
class RootFiles:
    """Where an offline root lies."""

    directory: Path

    @property
    def key(self) -> Path:
        """The encrypted private key; the one file that never leaves."""
        return self.directory / "root.key"

    @property
    def certificate(self) -> Path:
        """The root's certificate, PEM."""
        return self.directory / "root.crt"

    @property
    def crl(self) -> Path:
        """The newest CRL, PEM; it is also the memory of what was revoked and of the CRL number, so keep it."""
        return self.directory / "root.crl"


def root_create(
    directory: Path, *, trust_domain: str, passphrase: bytes, now: int, key_type: str = "p256", lifetime: float = ROOT_LIFETIME
) -> RootFiles:
    """Make a root in ``directory`` (0700): key, certificate, first CRL. Durable on return; ``lifetime`` in seconds.

    An attempt that stopped half-way is continued with the key it had made. Raises ``conflict`` when there is a root already.
    """
    check_trust_domain(trust_domain)
    files = RootFiles(private_directory(directory))
    if files.certificate.exists():
        raise HandclaspError(Kind.CONFLICT, f"{files.certificate} exists already", hint="choose another directory; nothing was overwritten")
    if not files.key.exists():
        write_key_file(files.key, keys.generate(key_type), passphrase)
    key = load_key_file(files.key, passphrase)
    name = ca_name(trust_domain, "root")
    der = ca.self_signed_root(
        key, common_name=name, trust_domain=trust_domain, now=now, lifetime=lifetime, serial=new_serial(), backdate=BACKDATE
    )
    write_new(files.certificate, chains.to_pem(der).encode(), PUBLIC)
    root_crl(files, passphrase=passphrase, now=now)
    return files


def sign_issuing(
    files: RootFiles,
    request: Path,
    out: Path,
    *,
    passphrase: bytes,
    now: int,
    lifetime: float = ISSUING_LIFETIME,
    dns_zones: Sequence[str] = (),
    uri_constraint: bool = False,
    base_url: str = "",
    root_name: str = "root",
    trust_domain: str = "",
) -> None:
    """Sign the request of an issuing authority (path length 0), write its certificate to ``out`` (PEM), and renew ``root.crl``.

    ``base_url`` and ``root_name`` give the address of the root's CRL and certificate: the server's public HTTP address and the name under
    which the root is imported there. ``trust_domain`` is read from the root where it is not given. Of the request only the key is used.
    Raises ``bad_csr``, ``bad_proof_of_possession``, ``bad_key`` (passphrase), ``conflict`` when ``out`` exists, ``bad_setting``.
    """
    root = facts.load_certificate(read_small(files.certificate, what="root certificate"))
    facts.check_root(root, now)
    trust_domain = check_trust_domain(trust_domain or trust_domain_of_root(root))
    crl_base = facts.crl_base_of(base_url, root_name)
    der = ca.sign_issuing(
        load_key_file(files.key, passphrase),
        root,
        read_small(request, what="request"),
        subject=ca_name(trust_domain, "issuing"),
        trust_domain=trust_domain,
        dns_zones=dns_zones,
        uri_constraint=trust_domain if uri_constraint else None,
        now=now,
        lifetime=lifetime,
        serial=new_serial(),
        crl_url=f"{crl_base}/0.crl" if crl_base else "",
        aia=facts.certificate_url(crl_base),
        backdate=BACKDATE,
    )
    write_new(out, chains.to_pem(der).encode(), PUBLIC)
    root_crl(files, passphrase=passphrase, now=now)


def root_crl(
    files: RootFiles, *, passphrase: bytes, now: int, revoke: Mapping[Path, int] | None = None, validity: float = OFFLINE_CRL_VALIDITY
) -> None:
    """Write a new ``root.crl`` (PEM): what the last one held, and the certificates in ``revoke`` with their reason (RFC 5280 number).

    Replaced in one rename; its number is above the last one's. ``validity`` in seconds. Raises ``bad_certificate`` for a certificate that
    this root did not sign, ``verify_failed`` when the last CRL is not this root's.
    """
    root = facts.load_certificate(read_small(files.certificate, what="root certificate"))
    entries: list[crl.Revoked] = []
    number = 0
    if files.crl.exists():
        entries, number = read_entries(crl_der(read_small(files.crl, what="CRL")), root)
    for path, reason in (revoke or {}).items():
        certificate = chains.load(facts.load_certificate(read_small(path, what="certificate")))
        if certificate.issuer != chains.load(root).subject:
            raise HandclaspError(Kind.BAD_CERTIFICATE, f"the certificate in {path} was not signed by this root")
        entries.append(crl.Revoked(certificate.serial_number, now, reason))
    key = load_key_file(files.key, passphrase)
    end = now + int(validity * 1000)
    # No distribution point in a root's CRL: it covers everything that the root signed, whatever address its certificates name.
    der = crl.build_crl(root, key, entries, next_number(number, now), now - int(ca.BACKDATE * 1000), end)
    replace(files.crl, crl_pem(der).encode(), PUBLIC)


def request_pem(key: keys.PrivateKey, trust_domain: str) -> bytes:
    """Return the PEM request of an issuing authority to be, for :func:`sign_issuing` on the machine that has the root."""
    der = ca.ca_request(key, ca_name(trust_domain, "issuing"))
    return x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)


def ca_name(trust_domain: str, kind: str) -> str:
    """Return the common name of a new authority, to which ``pki.ca`` adds digits of its key identifier: no two are the same."""
    return f"{trust_domain[: 54 - len(kind)]} {kind}"


def new_serial() -> int:
    """Return a serial for an authority's certificate: 127 random bits, positive (RFC 5280 4.1.2.2)."""
    return secrets.randbits(127) | 1


def next_number(last: int, now: int) -> int:
    """Return the number of the next CRL: above the last, and above every number of before, even when ``last`` came from an old backup."""
    return max(last + 1, now // 1000)


def read_entries(der: bytes, issuer: bytes) -> tuple[list[crl.Revoked], int]:
    """Return what a CRL of ``issuer`` holds, and its number. Raises ``verify_failed`` when that issuer did not sign it."""
    crl.verify_crl(der, issuer)
    entries = []
    for one in x509.load_der_x509_crl(der):
        try:
            name = one.extensions.get_extension_for_class(x509.CRLReason).value.reason.name
        except x509.ExtensionNotFound:
            name = "unspecified"
        entries.append(crl.Revoked(one.serial_number, from_datetime(one.revocation_date_utc), crl.REASONS.get(name, 0)))
    return entries, crl.read_crl(der).number or 0


def crl_pem(der: bytes) -> str:
    """Return a DER CRL as PEM."""
    return x509.load_der_x509_crl(der).public_bytes(Encoding.PEM).decode()


def crl_der(data: bytes) -> bytes:
    """Return the DER of a CRL in PEM or DER; raise ``bad_certificate`` when it is not one."""
    if data.lstrip().startswith(b"-----BEGIN"):
        try:
            data = x509.load_pem_x509_crl(data).public_bytes(Encoding.DER)
        except ValueError as error:
            raise HandclaspError(Kind.BAD_CERTIFICATE, "this is not a revocation list") from error
    crl.read_crl(data)
    return data


def trust_domain_of_root(root: bytes) -> str:
    """Return the trust domain that a root made by us names as its organization; empty where it names none."""
    found = chains.load(root).subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else ""
