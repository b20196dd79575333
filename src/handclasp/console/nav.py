"""The menu: what pages there are, in the order in which somebody looks for them."""

from __future__ import annotations

NAV: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("See", (("Overview", "/console/"), ("Timeline", "/console/timeline"))),
    (
        "Inventory",
        (
            ("Identities", "/console/identities"),
            ("Certificates", "/console/certificates"),
            ("Locations", "/console/locations"),
            ("Saved views", "/console/views"),
        ),
    ),
    ("Discovery", (("Sources", "/console/sources"), ("Agents", "/console/agents"))),
    ("Ownership", (("Owners", "/console/owners"), ("Triage", "/console/triage"))),
    (
        "Issuance",
        (
            ("Tokens", "/console/tokens"),
            ("Policy", "/console/policy"),
            ("Profiles", "/console/profiles"),
            ("Rotations", "/console/rotations"),
        ),
    ),
    ("Trust", (("Authorities", "/console/authorities"), ("Log", "/console/log"))),
)
"""Groups of (name, address)."""

_ALIASES = {
    "/console/identity": "/console/identities",
    "/console/owner": "/console/owners",
    "/console/agent": "/console/agents",
    "/console/scans": "/console/sources",
    "/console/ownership": "/console/owners",
}


def section_of(path: str) -> str:
    """Return the address in the menu that a page belongs to; empty for none."""
    addresses = [address for _, items in NAV for _, address in items]
    if path in addresses:
        return path
    parent = "/".join(path.split("/")[:3])
    return _ALIASES.get(parent, parent if parent in addresses else "")
