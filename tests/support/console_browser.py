"""A browser at the console: signs in, and notices what went wrong on the pages that it was shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.console_oidc import Provider
from support.console_world import World
from support.live import Holder, Live

PEOPLE = {"admin": "admin", "operator": "operator", "auditor": "auditor", "payments": "team:payments"}
"""Whose certificates have which role."""


@dataclass
class Place:
    """The server, what is on it, and people with certificates."""

    live: Live
    world: World
    provider: Provider
    people: dict[str, Holder]

    @property
    def url(self) -> str:
        return str(self.live.facts["https"])


AXE = Path(__file__).parents[2] / ".make" / "assets" / "axe.js"
"""Placed by ``make assets``."""
RULES = {
    "all": "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']",
    "contrast": "{type: 'rule', values: ['color-contrast', 'link-in-text-block']}",
    "size": "{type: 'rule', values: ['target-size', 'color-contrast']}",
}
"""What is looked for: everything once, and again what is another in the dark or in a narrow window."""
EXPECTED = "the server responded with a status of"
"""What the browser says of an answer that is an error; the test asked for it."""


class Visitor:
    """One tab, signed in or not."""

    def __init__(self, live: Live, context: Any) -> None:
        self.live = live
        self.url = str(live.facts["https"])
        self.context = context
        self.page = context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text) if EXPECTED not in message.text else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.requested: set[str] = set()
        self.page.on("request", lambda request: self.requested.add(request.url))

    def go(self, path: str = "", status: int = 200) -> Any:
        """Open a page of the console, which must answer so."""
        answer = self.page.goto(f"{self.url}/console/{path}")
        assert answer.status == status, f"{path}: {answer.status} {self.page.inner_text('main')}"
        return self.page

    def sign_in(self, token: str | None = None) -> Visitor:
        """Sign in with a token, by default the admin's, through the form."""
        self.go("sign-in")
        self.page.fill("input[name=token]", token or self.live.admin_token)
        self.page.locator("input[name=token]").press("Enter")
        self.page.wait_for_url("**/console/")
        return self

    def check(self) -> None:
        """Fail if a page wrote to the browser's console, broke its content policy, or asked anybody else for anything."""
        assert self.said == []
        assert [url for url in self.requested if not url.startswith(self.url)] == []

    def is_wide(self) -> bool:
        """Tell whether the page scrolls sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def violations(self, rules: str = "all") -> list[str]:
        """Return what axe has against the page, by WCAG 2.x A and AA. It is put in by the test, past the page's policy."""
        if not AXE.exists():
            return []
        if not self.page.evaluate("!!window.axe"):
            self.page.evaluate(AXE.read_text())
        shown = "v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html).join(' | ')"
        found = self.page.evaluate(f"axe.run(document, {{runOnly: {RULES[rules]}}}).then(r => r.violations.map({shown}))")
        return list(found)


@contextmanager
def visiting(browser: Any, live: Live, *, check: bool = True, **options: Any) -> Iterator[Visitor]:
    """Open a tab; at the end, unless ``check`` is off, no page may have complained."""
    context = browser.new_context(ignore_https_errors=True, **({"viewport": {"width": 1280, "height": 900}} | options))
    context.set_default_timeout(15_000)
    try:
        visitor = Visitor(live, context)
        yield visitor
        if check:
            visitor.check()
    finally:
        context.close()
