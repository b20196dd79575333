"""The source ``consul``: one mesh each."""

from __future__ import annotations

from collections.abc import AsyncIterator

from msgspec import Struct

from handclasp.discovery.consul.proxies import read_proxies
from handclasp.discovery.consul.server import Server
from handclasp.discovery.consul.settings import ConsulSettings, proxies_of
from handclasp.discovery.source import Part, Reading, Runs, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind


class Consul:
    """The kind."""

    name = "consul"
    summary = "roots of a Consul mesh, and what its Envoy proxies hold; the scope's entries are names of proxies"
    privilege = (
        'Nothing for the roots, which are open to everybody who reaches the server; a token with operator = "read" for the settings of the '
        'CA, and with service_prefix "" { policy = "read" intentions = "read" } for intentions; without it these are said to fail. Envoys '
        "are read at their admin address, which has to be reachable from where this runs (admin_bind, on a network for this alone): it is "
        "not protected by itself. The address that gives certificates of services with their keys is never asked."
    )
    Settings: type[Struct] = ConsulSettings
    runs: Runs = "server"

    def check(self, settings: ConsulSettings, scope: Scope) -> None:
        """Raise ``bad_setting``."""
        if not settings.url and not settings.envoys:
            raise HandclaspError(Kind.BAD_SETTING, "consul: nothing is to be read", hint="set url, envoys or both")
        if settings.url and not settings.url.startswith(("https://", "http://")):
            raise HandclaspError(Kind.BAD_SETTING, "consul: url is written https://HOST:8501")
        if settings.token_file and not settings.url.startswith("https://") and not scope.loopback:
            raise HandclaspError(Kind.BAD_SETTING, "consul: a token is sent over https:// alone")
        if bool(settings.certificate_file) != bool(settings.key_file):
            raise HandclaspError(Kind.BAD_SETTING, "consul: certificate_file and key_file belong together")
        names = [name for name, _ in proxies_of(settings)]
        if len(set(names)) != len(names):
            raise HandclaspError(Kind.BAD_SETTING, "consul: two proxies have the same name", hint="write NAME=URL")
        if any(not url.startswith(("https://", "http://")) for _, url in proxies_of(settings)):
            raise HandclaspError(Kind.BAD_SETTING, "consul: a proxy is written NAME=http://HOST:19000")

    async def plan(self, settings: ConsulSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002
        """Yield the server, and the proxies."""
        if settings.url:
            yield Part({"read": "server"})
        if settings.envoys:
            yield Part({"read": "proxies"})

    async def read(self, settings: ConsulSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        """Read the server, which is a handful of requests; or the proxies after the one that ``place`` names."""
        if part.spec["read"] == "server":
            async for one in Server(settings, tools).read():
                yield one
            return
        async for one in read_proxies(settings, place, tools):
            yield one


CONSUL = Consul()
