"""The source ``import``: a name under which people hand in files (``handclasp source import``). It reads nothing by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

from msgspec import Struct

from handclasp.discovery.source import Part, Reading, Runs, Scope
from handclasp.discovery.tools import Tools


class ImportSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Nothing to be set."""


class ImportKind:
    """Takes what people hand in."""

    name = "import"
    summary = "files that people hand in: PEM bundles, CSV, exports of Lemur; the scope has no entries"
    privilege = (
        "None: the files are read by the command line, as the person who runs it; that person's token needs inventory:write. "
        "Private keys are never sent."
    )
    Settings = ImportSettings
    runs: Runs = "server"

    def check(self, settings: ImportSettings, scope: Scope) -> None:
        """See :class:`handclasp.discovery.source.SourceKind`."""

    async def plan(self, settings: ImportSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002  (the contract)
        """Yield nothing."""
        nothing: tuple[Part, ...] = ()
        for part in nothing:
            yield part

    async def read(self, settings: ImportSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:  # noqa: ARG002
        """Yield nothing."""
        nothing: tuple[Reading, ...] = ()
        for item in nothing:
            yield item


IMPORT = ImportKind()
