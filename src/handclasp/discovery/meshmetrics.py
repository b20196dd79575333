"""What meshes say of their certificates in metrics: expiry, without the certificate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from urllib.parse import urlsplit

from handclasp.access.egress import check_url
from handclasp.discovery.promtext import samples
from handclasp.discovery.source import Observed
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind

MAX_SHOWN = 150
MAX_ANSWER = 16 * 1024 * 1024  # bytes; a proxy with many clusters has some megabytes of metrics


def check_urls(urls: Iterable[str]) -> None:
    """Raise ``bad_setting`` for what is no address that may be asked."""
    for url in urls:
        try:
            check_url(url, insecure=True)
        except HandclaspError as error:
            raise HandclaspError(Kind.BAD_SETTING, f"{url[:200]!r}: {error.detail}") from error


async def metrics_of(urls: list[str], wanted: Collection[str], cluster: str, tools: Tools, *, mesh: str) -> AsyncIterator[Observed]:
    """Yield one location for each address: no certificate, the metrics in its details."""
    for url in urls:
        parts = urlsplit(url)
        details, problem = {}, None
        try:
            async with tools.http(f"{parts.scheme}://{parts.netloc}", plain=True, max_answer=MAX_ANSWER) as http:
                path = (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")
                answer = await http.get(path, headers={"accept": "text/plain"})
            if answer.status == 200:
                found = await asyncio.to_thread(samples, answer.body.decode("utf-8", "replace"), wanted)
                details = {sample.shown[:500]: sample.value for sample in found[:MAX_SHOWN]}
            else:
                problem = f"it answers {answer.status}"
        except HandclaspError as error:
            problem = error.detail
        yield Observed(
            key=f"mesh:{cluster}/metrics/{parts.netloc}{parts.path}",
            kind="mesh",
            shown=f"{cluster}: metrics of {parts.netloc}",
            unit=f"{cluster}/metrics",
            host=parts.hostname,
            at=tools.clock(),
            details={"mesh": mesh, "metrics": details},
            facts={"cluster": cluster},
            problem=problem,
        )
