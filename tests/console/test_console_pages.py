"""Every page in a browser: it works, is quiet on the browser's console, fits 400 px, is accessible, and needs no script."""

from __future__ import annotations

from typing import Any

import pytest

from support.console_browser import AXE, Place, visiting
from support.console_world import LONG, MARKUP, World


def paths(world: World) -> list[str]:
    """Every page, with something on it."""
    return [
        "", "timeline", "timeline?span=year", "identities", "identities?q=payments", "identities?q=no-such",
        f"identity?name={world.identity}", "identity?name=dns:partner.example.com", "certificates", "certificates?standing=foreign",
        "certificates?q=no-such", f"certificates/{world.issued}", f"certificates/{world.unissued}", f"certificates/{world.hostile}",
        "identity?name=dns:" + LONG,
        "locations", "locations?state=failed", f"locations/{world.location}", "views", "sources", "sources/edge", "sources/lemur",
        "sources/agents", "sources/new", "sources/new?kind=files", f"identity/history?name={world.identity}",
        f"scans/{world.scan}", "agents", f"agent?name={world.agent}", "owners", "owner?name=payments", "owner?name=platform", "ownership",
        "triage", "triage?queue=decision", "triage?queue=confirmation", "triage?queue=found", "triage?queue=found&standing=foreign",
        "tokens", f"tokens/{world.token}", "tokens/new?name=web&allow=spiffe://example.org/prod/web", "policy", "profiles",
        "profiles/workload", "authorities", "authorities/issuing", "rotations", f"rotations/{world.rotation}", "log",
        "log?type=certificate.revoked", "log/3", "find", "find?for=payments",
    ]  # fmt: skip


WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}


@pytest.mark.parametrize("half", [0, 1])
def test_every_page_is_accessible_and_fits(browser: Any, place: Place, half: int) -> None:
    problems = []
    with visiting(browser, place.live, color_scheme="light", reduced_motion="reduce") as visitor:
        visitor.sign_in()
        for path in paths(place.world)[half::2]:
            page = visitor.go(path)
            if visitor.is_wide():
                problems.append(f"{path}: wider than 1280")
            problems += [f"{path}: {one}" for one in visitor.violations("all")]
            page.emulate_media(color_scheme="dark")
            problems += [f"{path}, dark: {one}" for one in visitor.violations("contrast")]
            page.set_viewport_size(NARROW)
            if visitor.is_wide():
                problems.append(f"{path}: wider than 400")
            problems += [f"{path}, narrow: {one}" for one in visitor.violations("size")]
            page.set_viewport_size(WIDE)
            page.emulate_media(color_scheme="light")
    assert problems == []


def test_every_page_works_without_scripts(browser: Any, place: Place) -> None:
    with visiting(browser, place.live, java_script_enabled=False) as visitor:
        page = visitor.go("sign-in")
        page.fill("input[name=token]", place.live.admin_token)
        page.locator("input[name=token]").press("Enter")
        page.wait_for_url("**/console/")
        for path in paths(place.world):
            visitor.go(path)
            assert page.locator("h1").inner_text()
        visitor.go("certificates")  # a search, and the next page
        page.fill("input[name=q]", "payments")
        page.get_by_role("button", name="Search").click()
        assert "q=payments" in page.url
        assert page.locator("table.list tbody tr").count() > 3
        page.get_by_role("button", name="Dark").click()  # the colours are kept
        assert page.locator("html").get_attribute("data-theme") == "dark"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 21, 27)"


def test_pictures_are_drawn_and_nothing_inline_is_needed(browser: Any, place: Place) -> None:
    if not AXE.exists():
        pytest.skip("the browser libraries are not placed: run make assets (it needs a network)")
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go("timeline")
        assert page.locator("[data-chart] canvas").count() == 2
        page.hover("[data-chart] >> nth=1")
        assert page.locator("[style]").evaluate_all("all => all.filter(one => !one.closest('[data-chart]')).length") == 0
        page = visitor.go(f"identity?name={place.world.identity}")
        assert page.locator("svg.line-of rect.bar").count() >= 5


def test_hostile_names_are_text(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        visitor.sign_in()
        shown = 0
        for path in (f"certificates/{place.world.hostile}", "certificates", "triage?queue=found&standing=foreign", "locations"):
            page = visitor.go(path)
            assert page.evaluate("window.hacked") is None
            assert page.locator("main script, main img").count() == 0
            shown += "onerror=window.hacked" in page.inner_text("main")
        assert shown == 4
        page = visitor.go("certificates?q=" + MARKUP.replace("<", "%3C"))
        assert page.input_value("input[name=q]") == MARKUP
        visitor.go(f"certificates?sort={MARKUP}", status=400)
        assert visitor.page.evaluate("window.hacked") is None


def test_it_can_be_used_with_the_keyboard(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go("identities")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page = visitor.go(f"certificates/{place.world.issued}")
        page.locator("summary", has_text="Revoke").focus()
        page.keyboard.press("Enter")
        assert page.get_by_label("Reason, for the log").is_visible()
        page.keyboard.press("Escape")
        assert not page.get_by_label("Reason, for the log").is_visible()
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_searching_changes_the_list_in_place(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go("identities")
        if not page.evaluate("!!window.htmx"):
            pytest.skip("the browser libraries are not placed: run make assets (it needs a network)")
        page.evaluate("window.same = true")
        page.locator("input[name=q]").press_sequentially("ledger")
        page.wait_for_url("**q=ledger**")
        page.locator("#list:not(:has(tbody tr + tr))").wait_for()
        assert page.evaluate("window.same") is True
        assert page.evaluate("document.activeElement.name") == "q"
        page.go_back()
        page.locator("tbody tr + tr").first.wait_for()


def test_narrow_windows_have_a_menu(browser: Any, place: Place) -> None:
    with visiting(browser, place.live, viewport={"width": 400, "height": 800}) as visitor:
        page = visitor.sign_in().go("")
        assert not page.get_by_role("link", name="Tokens").is_visible()
        page.get_by_role("link", name="Menu", exact=True).click()
        page.get_by_role("link", name="Tokens").click()
        assert page.locator("h1").inner_text() == "Tokens"
