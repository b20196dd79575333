"""Who signed what was found: one of ours, or somebody else.

A name proves nothing and a key identifier is copied easily, so only a signature that an authority's key verifies counts. Both are looked at
first, because most of what is found is foreign and a verification costs as much as reading ten certificates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from handclasp.authority.facts import Authority
from handclasp.errors import HandclaspError
from handclasp.pki import chains, der, keys
from handclasp.pki.reading import Reading


@dataclass(frozen=True, slots=True)
class _Ours:
    id: int
    subject: bytes
    key_id: bytes
    certificate: x509.Certificate
    public_key: keys.PublicKey


class OurAuthorities:
    """The authorities of one installation, active and retired, as those who look at found certificates need them."""

    def __init__(self, authorities: Iterable[Authority]) -> None:
        self._all: list[_Ours] = []
        self.certificates: dict[bytes, int] = {}
        """Fingerprint of each certificate that is part of them, and the authority: theirs, and those between them and their roots."""
        listed = list(authorities)
        self.names = {one.id: one.name for one in listed}
        for one in listed:
            subject, spki = chains.subject_and_key(one.certificate)
            key = keys.public_from_spki(spki)
            self._all.append(_Ours(one.id, subject, chains.key_id(one.certificate), one.certificate, key))
            for above in one.chain:
                self.certificates.setdefault(chains.fingerprint(above), one.id)
        for one in listed:
            self.certificates[chains.fingerprint(one.der)] = one.id

    def signer_of(self, reading: Reading, data: bytes) -> int | None:
        """Return the authority whose key verifies the signature of a certificate (``data``, which says ``reading``), or None.

        Several may have the same name (an authority that was made anew), and a retired one still counts: each that fits is tried.
        """
        for one in self._all:
            if (one.subject == reading.issuer_der or one.key_id == reading.authority_key_id) and _verifies(one, data):
                return one.id
        return None

    def named(self, reading: Reading) -> int | None:
        """Return the authority that a certificate names as its issuer, for showing; whether that is true is another matter."""
        for one in self._all:
            if one.subject == reading.issuer_der and reading.authority_key_id in (b"", one.key_id):
                return one.id
        return None


def _verifies(authority: _Ours, data: bytes) -> bool:
    """Tell whether the authority's key made this signature, by the algorithm that we use with it or by another."""
    try:
        body, _, signature = der.children(data)
        keys.verify(authority.public_key, signature[der.read(signature)[1] + 1 :], body)
    except (HandclaspError, ValueError):
        pass
    else:
        return True
    try:
        chains.load(data).verify_directly_issued_by(authority.certificate)
    except (InvalidSignature, HandclaspError, *chains.UNREADABLE):
        return False
    return True
