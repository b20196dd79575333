"""Source kind ``spire``: registration entries, agents and bundles of a SPIRE server, through its admin API.

SPIRE keeps no certificates: those of workloads are nowhere listed, and of an agent's it knows serial number and end. So entries and agents
are places with details and no certificate: who is expected to have which identity, by which selectors and under which agent. Bundles, its
own and the federated ones, have the anchors of each trust domain.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any, TypeVar

from cryptography import x509
from google.protobuf.message import DecodeError, Message
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.protocol import H2Protocol
from msgspec import Meta, Struct

from handclasp.clock import rfc3339
from handclasp.discovery.source import Count, Failed, Part, Place, Reading, Runs, Scope
from handclasp.discovery.tools import Tools, reason
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains
from handclasp.pki.names import check_spiffe_id, trust_domain_of
from handclasp.proto import spire_pb2 as pb
from handclasp.wire.observations import Covered, Observed, Seen

PAGE = 500
TIMEOUT = 30.0  # seconds for one page
MAX_PAGES = 100_000
_LATEST = 253_402_300_799  # seconds: the last of the year 9999
_NOT_WHOLE = "!"
"""Before a place: something until there could not be read."""
_SERVER = "/spire/server"
_LABEL = re.compile(r"(?:pod-label|label):([^:]{1,256}):(.{0,256})", re.DOTALL)
_KINDS = {
    Status.PERMISSION_DENIED: Kind.NOT_ALLOWED,
    Status.UNAUTHENTICATED: Kind.NOT_ALLOWED,
    Status.DEADLINE_EXCEEDED: Kind.TIMEOUT,
}
M = TypeVar("M", bound=Message)


class SpireSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where, and as whom: by its socket, or by mutual TLS."""

    socket: Annotated[str, Meta(max_length=1024)] = ""
    """The server's private socket, such as /tmp/spire-server/private/api.sock, in a directory that is allowed for files of sources."""
    address: Annotated[str, Meta(max_length=512)] = ""
    """Instead: HOST:PORT of the server, for an SVID that is an admin's."""
    certificate_file: str = ""
    """The admin's X509-SVID with its chain, PEM."""
    key_file: str = ""
    """Its private key, PEM."""
    ca_file: str = ""
    """The trust bundle to know the server by, PEM."""
    server_id: Annotated[str, Meta(max_length=2048)] = ""
    """SPIFFE ID of the server; without it /spire/server in the trust domain of the admin's SVID."""


class Spire:
    """The kind."""

    name = "spire"
    summary = "registration entries, agents and bundles of a SPIRE server; the scope's entries are SPIFFE IDs, with * in them"
    privilege = (
        "Either the server's private socket, which is admin for whoever can open it: run a collector on that host as a user who can. Or an "
        "X509-SVID whose registration entry has admin: true (or is among the server's admin_ids). SPIRE has no role that only reads; asked "
        "are ListEntries, ListAgents, GetBundle and ListFederatedBundles alone, and none of them gives a key."
    )
    Settings: type[Struct] = SpireSettings
    runs: Runs = "collector"

    def check(self, settings: SpireSettings, scope: Scope) -> None:  # noqa: ARG002
        """Raise ``bad_setting``."""
        if bool(settings.socket) == bool(settings.address):
            raise HandclaspError(Kind.BAD_SETTING, "spire: set one of socket and address")
        if settings.address:
            _host_and_port(settings.address)
            if not (settings.certificate_file and settings.key_file and settings.ca_file):
                raise HandclaspError(Kind.BAD_SETTING, "spire: an address needs certificate_file, key_file and ca_file")
        if settings.server_id:
            check_spiffe_id(settings.server_id)

    async def plan(self, settings: SpireSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002
        """Yield bundles, agents and entries."""
        for what in ("bundles", "agents", "entries"):
            yield Part({"read": what})

    async def read(self, settings: SpireSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        """Read one of them page by page; ``place`` is the token of the next page."""
        async with _connected(settings, tools) as channel:
            server = _Server(channel, tools)
            await server.begin()
            async for one in server.read(part.spec["read"], place):
                yield one


SPIRE = Spire()


class _Server:
    """One server, while it is read."""

    def __init__(self, channel: Channel, tools: Tools) -> None:
        self._channel, self._tools = channel, tools
        self._own = pb.Bundle()
        self._prefix = ""

    async def begin(self) -> None:
        """Find out whose server it is."""
        self._own = await self._call("bundle.v1.Bundle/GetBundle", pb.GetBundleRequest(), pb.Bundle)
        if not self._own.trust_domain:
            raise HandclaspError(Kind.UNAVAILABLE, "its bundle names no trust domain")
        self._prefix = f"spire:{self._own.trust_domain[:255]}/"

    async def read(self, what: str, place: str) -> AsyncIterator[Reading]:
        """Yield everything of one sort, from a page on; then that it was listed whole, if nothing failed, before a restart or after."""
        whole, place = not place.startswith(_NOT_WHOLE), place.removeprefix(_NOT_WHOLE)
        if what == "bundles" and not place:
            yield self._bundle(self._own)
        async for items, token in self._pages(what, place):
            yield Count(total=len(items))
            for item in items:
                one = self._item(what, item)
                whole = whole and not isinstance(one, Failed)
                yield one
            if token:
                yield Place(token if whole else _NOT_WHOLE + token)
            if self._tools.stop.is_set():
                return
        if whole:
            yield Covered(unit=self._unit(what), began_at=self._tools.began_at)

    def _unit(self, what: str) -> str:
        return self._prefix + what + ("" if what == "bundles" else self._tools.scope.mark)

    async def _pages(self, what: str, token: str) -> AsyncIterator[tuple[list[Any], str]]:
        begun_with = token
        for _ in range(MAX_PAGES):
            try:
                items, following = await self._page(what, token)
            except HandclaspError as error:
                if error.kind is Kind.BAD_REQUEST and token and token == begun_with:
                    token, begun_with = "", ""  # it does not know the place any more: once more from the beginning
                    continue
                raise
            yield items, following
            if not following:
                return
            if following == token:
                raise HandclaspError(Kind.UNAVAILABLE, f"the list of {what} does not go on")
            token = following
        raise HandclaspError(Kind.UNAVAILABLE, f"the list of {what} does not end")

    async def _page(self, what: str, token: str) -> tuple[list[Any], str]:
        if what == "entries":
            entries = await self._call(
                "entry.v1.Entry/ListEntries", pb.ListEntriesRequest(page_size=PAGE, page_token=token), pb.ListEntriesResponse
            )
            return list(entries.entries), entries.next_page_token
        if what == "agents":
            agents = await self._call(
                "agent.v1.Agent/ListAgents", pb.ListAgentsRequest(page_size=PAGE, page_token=token), pb.ListAgentsResponse
            )
            return list(agents.agents), agents.next_page_token
        bundles = await self._call(
            "bundle.v1.Bundle/ListFederatedBundles",
            pb.ListFederatedBundlesRequest(page_size=PAGE, page_token=token),
            pb.ListFederatedBundlesResponse,
        )
        return list(bundles.bundles), bundles.next_page_token

    async def _call(self, method: str, request: Message, answer: type[M]) -> M:
        call: UnaryUnaryMethod[Any, M] = UnaryUnaryMethod(self._channel, f"/spire.api.server.{method}", type(request), answer)
        try:
            return await call(request, timeout=TIMEOUT)
        except GRPCError as error:
            if error.status is Status.INVALID_ARGUMENT:
                raise HandclaspError(Kind.BAD_REQUEST, f"{method}: it does not take what was asked") from error
            name = error.status.name.lower().replace("_", " ")
            raise HandclaspError(_KINDS.get(error.status, Kind.UNAVAILABLE), f"{method}: {name}") from error
        except TimeoutError as error:
            raise HandclaspError(Kind.TIMEOUT, f"{method}: no answer within {TIMEOUT:g} s") from error
        except (StreamTerminatedError, ProtocolError, DecodeError, UnicodeDecodeError) as error:
            raise HandclaspError(Kind.UNAVAILABLE, f"{method}: what comes is not its answer") from error
        except OSError as error:
            raise HandclaspError(Kind.UNAVAILABLE, f"it cannot be reached: {reason(error)}") from error

    # --- what is read -----------------------------------------------------------------------------------------------------------------

    def _item(self, what: str, item: Any) -> Reading:
        if what == "bundles":
            return self._bundle(item)
        identity = _id(item.spiffe_id if what == "entries" else item.id)
        if not self._tools.scope.admits(identity):
            return Count(read=1)
        try:
            check_spiffe_id(identity)
            return self._entry(item, identity) if what == "entries" else self._agent(item, identity)
        except (HandclaspError, ValueError, OverflowError) as error:
            words = error.detail if isinstance(error, HandclaspError) else "a time in it is none"
            return Failed(f"{what} {item.id[:200] if what == 'entries' else identity[:200]}", words[:500])

    def _entry(self, entry: pb.Entry, identity: str) -> Observed:
        details = {
            "spiffe_id": identity,
            "parent_id": _id(entry.parent_id),
            "selectors": _selectors(entry.selectors),
            "ttl": entry.x509_svid_ttl,
            "dns_names": list(entry.dns_names)[:100],
            "federates_with": list(entry.federates_with)[:100],
            "admin": entry.admin,
            "downstream": entry.downstream,
            "expires_at": _time(entry.expires_at),
            "created_at": _time(entry.created_at),
            "hint": entry.hint[:200],
        }
        return self._observed(f"entry/{entry.id}", "entries", f"{identity} (entry)", details, facts=_facts(entry.selectors))

    def _agent(self, agent: pb.Agent, identity: str) -> Observed:
        details = {
            "spiffe_id": identity,
            "attestation": agent.attestation_type[:200],
            "serial": _serial(agent.x509svid_serial_number),
            "not_after": _time(agent.x509svid_expires_at),
            "selectors": _selectors(agent.selectors),
            "banned": agent.banned,
            "can_reattest": agent.can_reattest,
            "version": agent.agent_version[:100],
        }
        return self._observed(f"agent/{identity}", "agents", f"{identity} (agent)", details)

    def _bundle(self, bundle: pb.Bundle) -> Observed:
        authorities = {one.asn1: one.tainted for one in bundle.x509_authorities if one.asn1}
        anchors = [Seen(der=der[:262_144], role="anchor", how={"tainted": True} if tainted else {}) for der, tainted in authorities.items()]
        details = {
            "trust_domain": bundle.trust_domain[:255],
            "jwt_keys": [key.key_id[:200] for key in bundle.jwt_authorities][:100],
            "sequence": bundle.sequence_number,
            "refresh_hint": bundle.refresh_hint,
        }
        problem = None if len(anchors) <= 10_000 else "it has more than 10,000 authorities"
        shown = f"bundle of {bundle.trust_domain[:255]}"
        return self._observed(f"bundle/{bundle.trust_domain[:255]}", "bundles", shown, details, anchors[:10_000], problem=problem)

    def _observed(
        self,
        name: str,
        unit: str,
        shown: str,
        details: dict[str, Any],
        certificates: list[Seen] | None = None,
        *,
        facts: dict[str, Any] | None = None,
        problem: str | None = None,
    ) -> Observed:
        return Observed(
            key=f"{self._prefix}{name}"[:4096], kind="mesh", shown=shown[:4096], unit=self._unit(unit), at=self._tools.clock(),
            certificates=certificates or [], facts=facts or {}, problem=problem,
            details={"mesh": "spire", **{key: value for key, value in details.items() if value not in ("", [], 0, False, None)}},
        )  # fmt: skip


def _id(one: pb.SpiffeId) -> str:
    return f"spiffe://{one.trust_domain}{one.path}"[:4096]


def _selectors(selectors: Iterable[pb.Selector]) -> list[str]:
    return sorted(f"{one.type}:{one.value}"[:500] for one in selectors)[:200]


def _facts(selectors: Iterable[pb.Selector]) -> dict[str, Any]:
    """Return what selectors say about whose the workload is: its namespace and labels."""
    facts: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for one in selectors:
        found = _LABEL.fullmatch(one.value)
        if found is not None and one.type in ("k8s", "docker") and len(labels) < 50:
            labels[found[1]] = found[2]
        elif one.type == "k8s" and one.value.startswith("ns:"):
            facts["namespace"] = one.value[3:256]
        elif one.type == "k8s" and one.value.startswith("sa:"):
            facts["service_account"] = one.value[3:256]
    return facts | ({"workload_labels": labels} if labels else {})


def _serial(text: str) -> str:
    """Return a serial number, which SPIRE writes in decimal, in hexadecimal as it is shown everywhere here."""
    return f"{int(text):x}" if text.isascii() and text.isdigit() and len(text) <= 60 else ""


def _time(seconds: int) -> str | None:
    if seconds > _LATEST:
        raise ValueError("later than the year 9999")
    return rfc3339(seconds * 1000) if seconds > 0 else None


# --- the connection ---------------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _connected(settings: SpireSettings, tools: Tools) -> AsyncIterator[Channel]:
    channel = Channel(path=str(tools.file(settings.socket))) if settings.socket else await _over_tls(settings, tools)
    try:
        yield channel
    finally:
        channel.close()


async def _over_tls(settings: SpireSettings, tools: Tools) -> Channel:
    host, port = _host_and_port(settings.address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # it is known by its SPIFFE ID, which is looked at before anything is sent
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=tools.secret(settings.ca_file).decode("ascii"))
        # Without the password OpenSSL would ask for the one of an encrypted key at the terminal.
        context.load_cert_chain(tools.file(settings.certificate_file), tools.file(settings.key_file), password="")
        expected = settings.server_id or _server_of(tools.secret(settings.certificate_file))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; UnicodeDecodeError a ValueError
        raise HandclaspError(Kind.BAD_SETTING, f"spire: the files for TLS cannot be used: {reason(error)}") from error
    address = (await tools.resolve(host, port))[0]
    return _TlsChannel(address, port, context, expected)


def _server_of(pem: bytes) -> str:
    own = _uri(x509.load_pem_x509_certificate(pem))
    return f"spiffe://{trust_domain_of(check_spiffe_id(own))}{_SERVER}"


def _uri(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        return ""
    return found[0] if len(found) == 1 else ""


class _TlsChannel(Channel):
    """A channel to one address, over TLS with a server that has the SPIFFE ID expected."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext, expected: str) -> None:
        super().__init__(address, port, ssl=context)
        self._address, self._at, self._context, self._expected = address, port, context, expected
        self._transport: asyncio.Transport | None = None

    def close(self) -> None:
        """Close it at once: nobody waits for the server's end of TLS."""
        super().close()
        if self._transport is not None:
            self._transport.abort()

    async def _create_connection(self) -> H2Protocol:
        async with asyncio.timeout(TIMEOUT):
            transport, protocol = await asyncio.get_running_loop().create_connection(
                self._protocol_factory, self._address, self._at, ssl=self._context, server_hostname=""
            )
        self._transport = transport
        try:
            peer = transport.get_extra_info("ssl_object").getpeercert(True)
            found = _uri(x509.load_der_x509_certificate(peer))
        except chains.UNREADABLE:
            found = ""
        if found != self._expected:
            transport.abort()
            raise HandclaspError(Kind.VERIFY_FAILED, f"the server is {found[:200] or 'no SPIFFE ID'}, and not {self._expected}")
        return protocol


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise HandclaspError(Kind.BAD_SETTING, f"spire: {text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)
