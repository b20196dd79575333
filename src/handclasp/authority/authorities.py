"""The authorities of an installation: loading them, finding the right one, making, importing and retiring them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import func, insert, select, update

from handclasp.authority import facts
from handclasp.authority.facts import Authority
from handclasp.authority.keystore import KeyStore
from handclasp.authority.offline import BACKDATE, ISSUING_LIFETIME, ROOT_LIFETIME, ca_name, new_serial, request_pem
from handclasp.authority.signer import Signer
from handclasp.clock import Clock, from_datetime, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import Entry, make_entry
from handclasp.pki import ca, chains, keys
from handclasp.pki.bundles import pem_bundle
from handclasp.pki.names import check_trust_domain
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

CRL_SHARDS = 16

By = Mapping[str, str]
"""Who does it, as written in the log."""


class Authorities:
    """Every authority of one installation, as of the last :meth:`load`. Look-ups are in memory, changes are durable on return.

    Not for more than one event loop. Other processes see changes through the store's generation: call :meth:`refresh` now and then.
    """

    def __init__(self, store: Store, keystore: KeyStore, clock: Clock, *, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._store = store
        self._keystore = keystore
        self._clock = clock
        self._random = random
        self._all: dict[str, Authority] = {}
        self._signers: dict[str, Signer] = {}
        self._keys: dict[str, keys.PrivateKey] = {}
        self._bundles: dict[str, str] = {}
        self._generation = -1

    # --- looking up ---------------------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read every authority and open the keys of the active issuing ones. Raises what the key store raises, naming the authority."""
        generation = self._store.generation
        rows = await self._store.rows(select(tables.authority).order_by(tables.authority.c.id))
        found = {row.name: facts.from_row(row) for row in rows}
        signers = {}
        for name, authority in found.items():
            if authority.is_root or authority.state != "active" or authority.key_uri is None:
                continue
            known = self._signers.get(name)
            signers[name] = known if known is not None and known.authority == authority else Signer(authority, self._key(authority.key_uri))
        self._all, self._signers, self._generation = found, signers, generation
        self._bundles.clear()

    async def refresh(self) -> bool:
        """Load again if anything may have changed in any process; return whether it did. A few nanoseconds when not."""
        if self._generation == self._store.generation:
            return False
        await self.load()
        return True

    def all(self) -> list[Authority]:
        """Every authority, oldest first, retired ones too."""
        return list(self._all.values())

    def find(self, name: str) -> Authority:
        """Return an authority by name, whatever its state. Raises ``unknown_authority``."""
        if name not in self._all:
            raise HandclaspError(Kind.UNKNOWN_AUTHORITY, f"there is no authority {name!r}", hint="`handclasp ca list` shows them")
        return self._all[name]

    def known(self, certificate: bytes) -> Authority | None:
        """Return the authority that has this certificate (PEM or DER), or None. Raises ``bad_certificate``."""
        der = facts.load_certificate(certificate)
        return next((one for one in self._all.values() if one.der == der), None)

    def get(self, name: str = "", trust_domain: str = "") -> Signer:
        """Return the signer of an active issuing authority: ``name``, or (when empty) the default one of ``trust_domain``.

        The default is the oldest active authority that has not ended, of the trust domain or (when that is empty too) of the first one:
        a new authority takes over when the old one is retired or ends, never by merely being there. Raises ``unknown_authority``.
        """
        if name:
            signer = self._signers.get(name)
            if signer is None:
                state = f"is {self._all[name].state}, or has no key here" if name in self._all else "does not exist"
                raise HandclaspError(Kind.UNKNOWN_AUTHORITY, f"issuing authority {name!r} {state}", hint="`handclasp ca list` shows them")
            return signer
        wanted = trust_domain or next(iter(self.trust_domains), "")
        now = self._clock()
        for signer in self._signers.values():
            if signer.authority.trust_domain == wanted and signer.authority.not_after > now:
                return signer
        where = f"trust domain {wanted}" if wanted else "this installation"
        raise HandclaspError(Kind.UNKNOWN_AUTHORITY, f"{where} has no active issuing authority", hint="`handclasp ca list` shows them")

    @property
    def trust_domains(self) -> list[str]:
        """The trust domains served, in the order in which they were set up."""
        return list(dict.fromkeys(one.trust_domain for one in self._all.values()))

    def anchors(self, trust_domain: str) -> list[bytes]:
        """Return the DER of the roots to trust for a trust domain: not retired, not ended. Raises ``not_found`` for an unknown domain."""
        if trust_domain not in self.trust_domains:
            raise HandclaspError(Kind.NOT_FOUND, f"trust domain {trust_domain!r} is not served here")
        now = self._clock()
        roots = (one for one in self._all.values() if one.is_root and one.trust_domain == trust_domain)
        return [one.der for one in roots if one.state == "active" and one.not_after > now]

    def bundle_pem(self, trust_domain: str) -> str:
        """Return the anchors of a trust domain as PEM, as of the last :meth:`load`. Raises ``not_found`` for an unknown domain."""
        text = self._bundles.get(trust_domain)
        if text is None:
            text = self._bundles[trust_domain] = pem_bundle(self.anchors(trust_domain))
        return text

    def bundle_sequence(self, trust_domain: str) -> int:
        """Return a number that rises whenever an anchor comes or goes, the same in every process (SPIFFE bundle ``spiffe_sequence``)."""
        now = self._clock()
        roots = (one for one in self._all.values() if one.is_root and one.trust_domain == trust_domain)
        return sum(1 if one.state == "active" and one.not_after > now else 2 for one in roots)

    def issuing(self, trust_domain: str = "") -> list[Authority]:
        """Return the issuing authorities (of one trust domain, or all) whose certificates may still be alive, retired ones too."""
        now = self._clock()
        wanted = (one for one in self._all.values() if not one.is_root and trust_domain in ("", one.trust_domain))
        return [one for one in wanted if one.not_after > now]

    def crl_key(self, authority: Authority) -> keys.PrivateKey | None:
        """Return the key that signs this authority's CRLs (also when it is retired); None when the key is not here."""
        return None if authority.key_uri is None else self._key(authority.key_uri)

    def _key(self, uri: str) -> keys.PrivateKey:
        if uri not in self._keys:
            self._keys[uri] = self._keystore.load(uri)
        return self._keys[uri]

    # --- making -------------------------------------------------------------------------------------------------------------------------

    async def create_root(
        self,
        name: str,
        trust_domain: str,
        *,
        by: By,
        key_type: str = "p256",
        key_uri: str = "",
        lifetime: float = ROOT_LIFETIME,
        base_url: str = "",
    ) -> Authority:
        """Make a root for ``trust_domain`` with its key in the key store, and record it. ``lifetime`` in seconds.

        ``base_url`` is the public address of the HTTP listener, empty when certificates shall name no CRL. ``key_uri`` empty: a new
        encrypted file. A key that is at ``key_uri`` already is used (so that an interrupted call can be repeated) unless an authority
        has it. Raises ``conflict`` for a name or key that is taken, ``bad_name``, ``bad_setting``.
        """
        self._check_new(name)
        check_trust_domain(trust_domain)
        crl_base = facts.crl_base_of(base_url, name)
        uri, key = self._key_for(name, key_type, key_uri)
        der = ca.self_signed_root(
            key,
            common_name=ca_name(trust_domain, "root"),
            trust_domain=trust_domain,
            now=self._clock(),
            lifetime=lifetime,
            serial=new_serial(),
            backdate=BACKDATE,
        )
        return await self._record(name, trust_domain, der, (), uri, crl_base, 1, by)

    async def create_issuing(
        self,
        name: str,
        root_name: str,
        *,
        by: By,
        key_type: str = "p256",
        key_uri: str = "",
        lifetime: float = ISSUING_LIFETIME,
        dns_zones: Sequence[str] = (),
        uri_constraint: bool = False,
        crl_shards: int = CRL_SHARDS,
        base_url: str = "",
    ) -> Authority:
        """Make an issuing authority under a root whose key is here: path length 0, names constrained to ``dns_zones`` where given.

        ``uri_constraint`` also constrains URIs to the trust domain; `cryptography`'s verifier refuses such chains, so it is off unless
        asked for. Otherwise as :meth:`create_root`; also raises ``conflict`` when the root's key is elsewhere or the root ends.
        """
        self._check_new(name)
        root = self.find(root_name)
        root_key = self.crl_key(root)
        if not root.is_root or root.state != "active":
            raise HandclaspError(Kind.CONFLICT, f"authority {root_name!r} is not an active root")
        if root_key is None:
            hint = "use `handclasp ca request`, sign that where the key is, then `handclasp ca import`"
            raise HandclaspError(Kind.CONFLICT, f"the key of root {root_name!r} is not here", hint=hint)
        crl_base = facts.crl_base_of(base_url, name)
        check_shards(crl_shards)
        uri, key = self._key_for(name, key_type, key_uri)
        der = ca.sign_issuing(
            root_key,
            root.der,
            key.public_key(),
            subject=ca_name(root.trust_domain, "issuing"),
            trust_domain=root.trust_domain,
            dns_zones=dns_zones,
            uri_constraint=root.trust_domain if uri_constraint else None,
            now=self._clock(),
            lifetime=lifetime,
            serial=new_serial(),
            crl_url=root.crl_url(0),
            aia=root.aia_url,
            backdate=BACKDATE,
        )
        return await self._record(name, root.trust_domain, der, (root.der,), uri, crl_base, crl_shards, by)

    def request(self, name: str, trust_domain: str, *, key_type: str = "p256", key_uri: str = "") -> bytes:
        """Make (or find) the key of an issuing authority to be, and return a PEM request for whoever has the root's key.

        Nothing is recorded but the key; asking again gives a request for the same key. Raises as :meth:`create_root`.
        """
        self._check_new(name)
        check_trust_domain(trust_domain)
        _, key = self._key_for(name, key_type, key_uri or f"file:{name}.key")
        return request_pem(key, trust_domain)

    async def import_root(
        self, name: str, trust_domain: str, certificate: bytes, *, by: By, base_url: str = "", key_uri: str | None = None
    ) -> Authority:
        """Record a root made elsewhere (PEM or DER); its key stays there unless ``key_uri`` names it. Raises ``bad_certificate``."""
        self._check_new(name)
        check_trust_domain(trust_domain)
        root = facts.load_certificate(certificate)
        facts.check_root(root, self._clock())
        if key_uri is not None:
            self._check_key(key_uri, root)
        return await self._record(name, trust_domain, root, (), key_uri, facts.crl_base_of(base_url, name), 1, by)

    async def import_issuing(
        self,
        name: str,
        root_name: str,
        certificate: bytes,
        *,
        by: By,
        between: Sequence[bytes] = (),
        key_uri: str = "",
        crl_shards: int = CRL_SHARDS,
        base_url: str = "",
    ) -> Authority:
        """Record an issuing authority signed elsewhere; its root is known here, its key is the one :meth:`request` made (or ``key_uri``).

        ``between`` holds the certificates between it and the root, nearest first. Everything is checked: signatures, path length 0, dates,
        and that the key is this certificate's. Raises ``bad_certificate``, ``bad_key``, ``conflict``, ``unknown_authority``.
        """
        self._check_new(name)
        root = self.find(root_name)
        if not root.is_root or root.state != "active":
            raise HandclaspError(Kind.CONFLICT, f"authority {root_name!r} is not an active root")
        check_shards(crl_shards)
        issuing = facts.load_certificate(certificate)
        above = [*(facts.load_certificate(one) for one in between), root.der]
        facts.check_issuing(issuing, above, self._clock())
        uri = key_uri or f"file:{name}.key"
        self._check_key(uri, issuing)
        return await self._record(name, root.trust_domain, issuing, above, uri, facts.crl_base_of(base_url, name), crl_shards, by)

    async def retire(self, name: str, *, by: By) -> int:
        """End an authority: an issuing one signs no more certificates (its CRLs go on), a root leaves the bundles.

        Durable on return, which is the place of the log entry.

        Raises ``conflict`` for a root under which an issuing authority is active or a certificate alive: its holders would be cut off.
        """
        authority = self.find(name)
        if authority.state == "retired":
            raise HandclaspError(Kind.CONFLICT, f"authority {name!r} is retired already")
        if authority.is_root:
            await self._check_unused(authority)
        table = tables.authority
        change = Change(
            update(table).where(table.c.id == authority.id, table.c.state == "active").values(state="retired"),
            expect=1,
            conflict=HandclaspError(Kind.CONFLICT, f"authority {name!r} is retired already"),
        )
        entry = self._entry("authority.retired", authority.name, {"kind": authority.kind, "sha256": authority.sha256.hex()}, by)
        index = await self._store.ledger.commit(Write([entry], [change], bump=True))
        await self.load()
        return index

    # --- parts --------------------------------------------------------------------------------------------------------------------------

    def _check_new(self, name: str) -> None:
        if not facts.NAME.fullmatch(name):
            raise HandclaspError(
                Kind.BAD_SETTING, f"{name[:80]!r} is not a name for an authority", hint="letters, digits, '.', '_' and '-'"
            )
        if name in self._all:
            raise HandclaspError(Kind.CONFLICT, f"there is an authority {name!r} already", hint="choose another name")

    def _key_for(self, name: str, key_type: str, uri: str) -> tuple[str, keys.PrivateKey]:
        if not uri:  # a name that was never used: what an interrupted attempt left behind is in nobody's way
            uri = f"file:{name}-{self._random(4).hex()}.key"
            return uri, self._keystore.generate(uri, key_type)
        try:
            key = self._keystore.load(uri)
        except HandclaspError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return uri, self._keystore.generate(uri, key_type)
        self._check_unshared(key.public_key())
        return uri, key

    def _check_key(self, uri: str, certificate: bytes) -> None:
        public = self._keystore.load(uri).public_key()
        if public != facts.public_key(chains.load(certificate)):
            hint = "name the key it was requested with (--key)"
            raise HandclaspError(Kind.BAD_KEY, f"the key at {uri} is not the key in the certificate", hint=hint)
        self._check_unshared(public)

    def _check_unshared(self, public: keys.PublicKey) -> None:
        for one in self._all.values():  # same key, same key identifier: verifiers could not tell their certificates and CRLs apart
            if facts.public_key(one.certificate) == public:
                raise HandclaspError(Kind.CONFLICT, f"authority {one.name!r} has this key", hint="each authority has a key of its own")

    async def _record(
        self, name: str, trust_domain: str, der: bytes, chain: Sequence[bytes], uri: str | None, crl_base: str, shards: int, by: By
    ) -> Authority:
        now = self._clock()
        if not crl_base:
            shards = 1  # without a distribution point in certificates and CRL, a part of the list would pass for the whole
        values = facts.row_of(
            name=name, trust_domain=trust_domain, der=der, chain=chain, key_uri=uri, crl_base=crl_base, crl_shards=shards, now=now
        )
        certificate = chains.load(der)
        what = {
            "kind": values["kind"],
            "trust_domain": trust_domain,
            "sha256": values["sha256"].hex(),
            "not_after": rfc3339(from_datetime(certificate.not_valid_after_utc)),
            "dns_zones": list(facts.dns_zones(certificate)),
            "key": "elsewhere" if uri is None else uri.partition(":")[0],
        }
        entry = self._entry("authority.created", name, what, by)
        await self._store.ledger.commit(Write([entry], [Change(insert(tables.authority).values(**values))], bump=True))
        await self.load()
        return self.find(name)

    def _entry(self, type_: str, name: str, what: Mapping[str, Any], by: By) -> Entry:
        what = {"authority": name, **what}
        return make_entry(type_, at=self._clock(), who=by, what=what, subjects=[f"authority:{name}"], random=self._random)

    async def _check_unused(self, root: Authority) -> None:
        below = [one for one in self._all.values() if not one.is_root and one.root == root.der]
        for one in below:
            if one.state == "active":
                raise HandclaspError(Kind.CONFLICT, f"issuing authority {one.name!r} is active under {root.name!r}", hint="retire it first")
        column = tables.certificate.c
        last = await self._store.row(select(func.max(column.not_after)).where(column.authority_id.in_([one.id for one in below])))
        if last is not None and last[0] is not None and last[0] > self._clock():
            words = f"certificates under root {root.name!r} live until {rfc3339(last[0])}"
            raise HandclaspError(
                Kind.CONFLICT, words, hint="without the root in the bundles their holders would be refused; retire it after that"
            )


def check_shards(count: int) -> None:
    """Raise ``bad_setting`` unless an authority may have this many CRLs."""
    if not 1 <= count <= 1024:
        raise HandclaspError(Kind.BAD_SETTING, f"an authority has 1 to 1024 CRLs, not {count}")
