"""An existing certificate as evidence: of a device's own authority, of another PKI, of a TPM's attestation service.

The certificate alone proves nothing, since everybody may have seen it: its key signs a challenge of this server together with the request
that is to be certified.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from handclasp import wire
from handclasp.access.enrolment import EnrolmentRule, X509Takes
from handclasp.access.evidence.challenge import Challenges
from handclasp.access.evidence.proven import Proven, facts_of, refused
from handclasp.clock import from_datetime
from handclasp.errors import HandclaspError
from handclasp.pki import chains, keys, names
from handclasp.pki.possession import enrolment_text

MAX_CHAIN = 8
_NAMES = {
    "common_name": NameOID.COMMON_NAME,
    "organization": NameOID.ORGANIZATION_NAME,
    "organizational_unit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "serial_number": NameOID.SERIAL_NUMBER,
}


def read(evidence: wire.Evidence, csr_sha256: bytes, challenges: Challenges) -> Shown:
    """Return the certificate whose key signed. Raises ``not_authenticated`` with what is wrong, before any authority is looked at."""
    once = challenges.check(evidence.challenge)
    try:
        chain = chains.split_pem(evidence.chain)
        leaf = chains.load(chain[0])
        public_key = leaf.public_key()
        keys.check_quality(public_key)
        keys.key_type_of(public_key)
    except HandclaspError as error:
        raise refused(error.detail) from error
    except chains.UNREADABLE as error:
        raise refused("its certificate's key cannot be used") from error
    if len(chain) > MAX_CHAIN:
        raise refused(f"its chain has more than {MAX_CHAIN} certificates")
    try:
        signature = base64.b64decode(evidence.signature, validate=True)
        keys.verify(public_key, signature, enrolment_text(evidence.challenge, csr_sha256))  # type: ignore[arg-type]  # key_type_of refused others
    except (binascii.Error, ValueError) as error:
        raise refused("its signature is not base64") from error
    except HandclaspError as error:
        raise refused("the signature over challenge and request is not by the certificate's key") from error
    _check_use(leaf)
    return Shown(leaf, chain, once)


class Shown:
    """A certificate that is shown by who holds its key."""

    def __init__(self, leaf: x509.Certificate, chain: list[bytes], once: Any) -> None:
        self.leaf, self.chain, self.once = leaf, chain, once
        self._found: dict[tuple[bytes, ...], bytes | HandclaspError] = {}

    def prove(self, rule: EnrolmentRule, now: int) -> Proven:
        """Return what it proves to one rule: that it leads to one of the rule's authorities. Raises ``not_authenticated``."""
        assert isinstance(rule.takes, X509Takes)
        anchor = self._anchor(rule.takes, now)
        attributes = {name: _attribute(self.leaf, oid) for name, oid in _NAMES.items()}
        listed = _dns(self.leaf)
        facts = facts_of(
            (
                *attributes.items(),
                ("serial", f"{self.leaf.serial_number:x}"),
                ("fingerprint", chains.fingerprint(self.chain[0]).hex()),
                ("anchor", chains.fingerprint(anchor).hex()),
                ("dns", rule.takes.dns_of(listed)),
            )
        )
        ends = from_datetime(self.leaf.not_valid_after_utc)
        return Proven(f"{facts['anchor'][:16]} {self._words(listed)}", facts, ends, (self.once,))

    def _anchor(self, takes: X509Takes, now: int) -> bytes:
        found = self._found.get(takes.anchors)
        if found is None:
            found = self._found[takes.anchors] = self._find_anchor(takes.anchors, now)
        if isinstance(found, HandclaspError):
            raise found
        return found

    def _find_anchor(self, anchors: tuple[bytes, ...], now: int) -> bytes | HandclaspError:
        # All of them at once first: a search has a budget, and who is nobody yet must not be given one for each authority of the policy.
        try:
            chains.verify_chain(self.chain[0], self.chain[1:], anchors, now)
        except HandclaspError as error:
            return refused(error.detail)
        for anchor in anchors:
            with contextlib.suppress(HandclaspError):
                chains.verify_chain(self.chain[0], self.chain[1:], [anchor], now)
                return anchor
        return refused("too many certificates look like the issuer")

    def _words(self, listed: list[str]) -> str:
        """Who the certificate is for, whatever its key and serial are this time; one that names nobody is known by itself."""
        words = self.leaf.subject.rfc4514_string()
        named = ",".join(filter(None, (words, *(f"DNS:{name}" for name in sorted(listed)))))
        return named if 0 < len(named) <= 500 and named.isprintable() else chains.fingerprint(self.chain[0]).hex()


def _check_use(leaf: x509.Certificate) -> None:
    """The key must be one for signatures of an end entity that shows who it is (RFC 5280 4.2.1.3, 4.2.1.12)."""
    for item in leaf.extensions:
        value = item.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise refused("its certificate is an authority's")
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            raise refused("its certificate's key is not for signatures")
        if isinstance(value, x509.ExtendedKeyUsage) and not {*value} & {
            ExtendedKeyUsageOID.CLIENT_AUTH,
            ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
        }:
            raise refused("its certificate is not for clients")


def _attribute(leaf: x509.Certificate, oid: x509.ObjectIdentifier) -> str | None:
    """Return the only value of an attribute of the subject; two are a choice, which nobody makes here."""
    values = leaf.subject.get_attributes_for_oid(oid)
    value = values[0].value if len(values) == 1 else None
    return value if isinstance(value, str) else None


def _dns(leaf: x509.Certificate) -> list[str]:
    """Return the DNS names that are names of one host; others of the certificate count for nothing."""
    found = []
    for item in leaf.extensions:
        if isinstance(item.value, x509.SubjectAlternativeName):
            for name in item.value.get_values_for_type(x509.DNSName):
                try:
                    found.append(names.check_dns(name, wildcard=False))
                except HandclaspError:
                    continue
    return found
