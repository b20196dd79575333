"""The one place where an authority's key signs certificates of workloads."""

from __future__ import annotations

from handclasp.authority import facts
from handclasp.authority.facts import Authority
from handclasp.authority.hsm import TokenEcKey, TokenRsaKey
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import ca, chains, der, keys
from handclasp.pki.plan import Plan, assemble


class Signer:
    """An issuing authority with its key. Any number of threads may use one."""

    def __init__(self, authority: Authority, key: keys.PrivateKey) -> None:
        """Raise ``bad_key`` when ``key`` is not the one in the authority's certificate."""
        self._key = key
        self._public = key.public_key()
        if self._public != facts.public_key(authority.certificate):
            raise HandclaspError(Kind.BAD_KEY, f"the key at {authority.key_uri} is not the key of authority {authority.name!r}")
        self.authority = authority
        self.issuer = ca.issuer_of(
            authority.der,
            name=authority.name,
            trust_domain=authority.trust_domain,
            dns_zones=authority.dns_zones,
            crl_base=authority.crl_base,
            crl_shards=authority.crl_shards,
            aia_url=authority.aia_url,
        )
        self.certificate = authority.der
        """DER of the issuing certificate."""
        self.chain = (authority.der, *authority.chain)
        """DER, the issuing certificate first, the root last."""
        self.chain_pem = "".join(chains.to_pem(one) for one in self.chain[:-1])
        """What goes with a leaf: the issuing certificate (and what is between it and the root), without the root."""
        self.remote = isinstance(key, TokenEcKey | TokenRsaKey)
        """Whether a signature waits for a device: then :meth:`sign` belongs in a thread and not in the event loop."""

    def sign(self, plan: Plan) -> bytes:
        """Return the DER certificate of ``plan``, which is used up by this.

        The signature is verified with the authority's public key, and the signed content is the planned content, before it is returned: a
        broken token, bad memory or a fault attack must not hand out a certificate, or (with deterministic schemes) give the key away.
        Raises ``internal`` for a plan of another authority or a used one, ``verify_failed``, and what a token raises.
        """
        if plan.issuer != self.issuer:
            raise HandclaspError(Kind.INTERNAL, f"a plan of authority {plan.issuer.name!r} was given to {self.issuer.name!r}")
        planned = plan.redeem()
        signature = keys.sign(self._key, planned)
        keys.verify(self._public, signature, planned)
        certificate = assemble(planned, self.issuer.signature_algorithm, signature)
        _, start, _ = der.read(certificate)
        if certificate[start : start + len(planned)] != plan.tbs:
            raise HandclaspError(Kind.VERIFY_FAILED, "the signed content is not the planned content")
        return certificate
