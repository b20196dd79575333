"""The one table of pages."""

from __future__ import annotations

from handclasp.console.app import Page
from handclasp.console.pages import discovery, find, inventory, log, new_source, overview, owners, rules, trust

PAGES: tuple[Page, ...] = (
    *overview.PAGES,
    *find.PAGES,
    *inventory.PAGES,
    *discovery.PAGES,
    *new_source.PAGES,
    *owners.PAGES,
    *rules.PAGES,
    *trust.PAGES,
    *log.PAGES,
)
"""Every page but the doors, which need more than the API."""
