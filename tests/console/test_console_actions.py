"""Every action, done in a browser by who may do it, and what came of it."""

from __future__ import annotations

from typing import Any

import pytest

from support.console_browser import Place, Visitor, visiting

pytestmark = pytest.mark.usefixtures("browser")


def act(visitor: Visitor, title: str, button: str, reason: str = "because of a test", **fields: str) -> str:
    """Open an action, fill it in, send it; return what the next page says."""
    page = visitor.page
    box = page.locator("details.act", has=page.locator("summary", has_text=title)).first
    box.locator("summary").click()
    for name, value in fields.items():
        field = box.locator(f"[name={name}]").first
        if field.evaluate("one => one.tagName") == "SELECT":
            field.select_option(value)
        elif field.get_attribute("type") == "radio":
            box.locator(f"[name={name}][value={value}]").check()
        else:
            field.fill(value)
    if reason:
        box.locator("[name=reason]").fill(reason)
    box.get_by_role("button", name=button).click()
    return str(page.locator(".said").first.inner_text())


def newest(place: Place, type_: str) -> dict[str, Any]:
    """Return the newest entry of a type."""
    with place.live.client(place.live.admin_token) as client:
        entry: dict[str, Any] = client.get("/v1/log/entries", type=type_, limit=1)["items"][0]["entry"]
        return entry


@pytest.mark.parametrize("scripts", [True, False])
def test_a_certificate_is_revoked(browser: Any, place: Place, scripts: bool) -> None:
    issued = place.live.holder(f"spiffe://example.org/test/revoked-{scripts}".lower())
    with visiting(browser, place.live, java_script_enabled=scripts) as visitor:
        page = visitor.sign_in().go(f"certificates/{issued.sha256}")
        assert "Revoked 1 certificate" in act(visitor, "Revoke", "Revoke this certificate", why="superseded")
        assert page.locator(".lead .tag", has_text="revoked").count() == 1
        assert page.locator("summary", has_text="Revoke").count() == 0
    entry = newest(place, "certificate.revoked")
    assert (entry["what"]["sha256"], entry["why"]["reason"]) == (issued.sha256, "superseded")
    assert "comment" in entry["personal"]


def test_a_found_certificate_is_claimed_and_dismissed(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        visitor.sign_in().go(f"certificates/{place.world.foreign}")
        assert "claimed" in act(visitor, "Decide", "Put this on record", decision="claimed")
        assert "dismissed" in act(visitor, "Decide", "Put this on record", decision="dismissed")
        visitor.go("certificates?triage=dismissed")
        assert visitor.page.locator("table.list tbody tr").count() == 1
    assert newest(place, "certificate.triaged")["who"]["kind"] == "console"


def test_an_identity_is_renewed_and_assigned(browser: Any, place: Place) -> None:
    name = "spiffe://example.org/prod/reports/nightly"
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go(f"identity?name={name}")
        assert "Assigned to platform" in act(visitor, "Assign", "Say whose it is", owner="platform", tier="2")
        assert page.locator(".lead").inner_text().count("platform") == 1
        visitor.go("identity?name=spiffe://example.org/staging/shop/web")
        assert "1 certificate will be replaced" in act(visitor, "Renew now", "Have it replaced", within="5m")
        assert "because of a test" in page.inner_text("main")
        visitor.go("triage?queue=owner")
        row = page.locator("tr", has_text="dns:partner.example.com")
        row.locator("summary").click()
        row.locator("[name=owner]").fill("shop")
        row.locator("[name=reason]").fill("they run it")
        row.get_by_role("button", name="Assign").click()
        assert "Assigned to shop" in page.locator(".said").inner_text()
        assert page.locator("tr", has_text="dns:partner.example.com").count() == 0
    assert newest(place, "identity.assigned")["who"]["kind"] == "console"


def test_a_team_acts_on_its_own_alone(browser: Any, place: Place) -> None:
    holder = place.people["payments"]
    shown = {"origin": place.url, "certPath": str(holder.cert_file), "keyPath": str(holder.key_file)}
    with visiting(browser, place.live, client_certificates=[shown]) as visitor:
        visitor.go("sign-in").get_by_role("button", name="Sign in with this certificate").click()
        page = visitor.go("identity?name=spiffe://example.org/staging/payments/api")
        assert "1 certificate will be replaced" in act(visitor, "Renew now", "Have it replaced", within="5m")
        assert page.locator("h1").inner_text() == "spiffe://example.org/staging/payments/api"
        visitor.go("identity?name=spiffe://example.org/prod/shop/cart")
        assert page.locator("details.act").count() == 0
        visitor.go(f"certificates/{place.world.revocable}")
        assert "Revoked 1" in act(visitor, "Revoke", "Revoke this certificate")
        visitor.go("tokens")
        assert page.get_by_role("link", name="New token").count() == 0


@pytest.mark.parametrize("scripts", [True, False])
def test_a_token_is_made_shown_once_and_revoked(browser: Any, place: Place, scripts: bool) -> None:
    with visiting(browser, place.live, java_script_enabled=scripts) as visitor:
        page = visitor.sign_in().go("tokens/new")
        page.fill("[name=name]", "from-console")
        page.fill("[name=allow]", "spiffe://example.org/prod/new")
        page.locator("[name=profiles][value=workload]").check()
        if scripts and page.evaluate("!!window.htmx"):
            page.locator("#list code", has_text="--profile").wait_for()
        elif not scripts:
            page.get_by_role("button", name="Show the command").click()
        command = "handclasp token create from-console --allow spiffe://example.org/prod/new --profile workload --uses 1 --expires 10m"
        if not scripts or page.evaluate("!!window.htmx"):
            assert page.locator("#list code").inner_text() == command
        page.get_by_role("button", name="Make the token").click()
        page.wait_for_selector("text=Copy it before you leave this page.")
        token = page.locator("code").first.inner_text()
        assert token.startswith("hct_")
        assert page.locator("code").last.inner_text() == command
        page.get_by_role("link", name="The token's page").click()
        assert token not in page.content()
        assert page.locator("h1").inner_text() == "from-console"
        assert "Revoked." in act(visitor, "Revoke", "Revoke this token", reason="")
        assert page.locator(".lead .tag").inner_text() == "revoked"


def test_a_policy_is_compared_and_put_in_force(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go("policy")
        text = page.input_value("[name=text]")
        page.fill("[name=text]", text.replace("24h", "12h"))
        page.get_by_role("button", name="Compare").click()
        assert "shop-agents" in page.locator("table.list").inner_text()
        page.get_by_role("button", name="Put it in force").click()
        assert page.get_by_role("status").inner_text().startswith("In force; log entry")
        page.fill("[name=text]", "version: [")
        page.get_by_role("button", name="Compare").click()
        assert page.get_by_role("alert").is_visible()
        assert page.input_value("[name=text]") == "version: [", "what was typed is kept"


def test_a_search_is_saved_and_forgotten(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go("certificates?standing=foreign")
        assert "Saved as <b>foreign</b>" in act(visitor, "Save this search", "Save", reason="", name="<b>foreign</b>")
        page.get_by_role("link", name="<b>foreign</b>").click()
        assert "standing=foreign" in page.url
        visitor.go("views")
        page.get_by_role("button", name="Remove <b>foreign</b>").click()
        assert page.get_by_role("link", name="<b>foreign</b>").count() == 0


def test_a_source_is_read_now(browser: Any, place: Place) -> None:
    with place.live.client(place.live.admin_token) as admin:
        host, port = place.live.https
        scope = {"allow": [host], "loopback": True}
        request = {"name": "own", "kind": "network", "scope": scope, "settings": {"ports": [str(port)]}}
        answer = admin("POST", "/v1/sources", request)
        assert answer.status == 201, answer.text
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go("sources/own")
        page.get_by_role("button", name="Run now").click()
        page.wait_for_url("**/console/scans/*")
        for _ in range(100):
            if page.locator(".progress .tag").inner_text() not in ("planning", "running"):
                break
            page.wait_for_timeout(200)
        assert page.locator(".progress .tag").inner_text() == "done", page.inner_text("main")
        assert "1 of 1 places read" in page.inner_text(".progress")
        assert page.get_by_role("button", name="Stop").count() == 0, "what came by itself took its button away, too"
        visitor.go("locations?source=own")
        assert page.locator("table.list tbody tr").count() == 1


@pytest.mark.parametrize("scripts", [True, False])
def test_a_source_is_added_by_a_form(browser: Any, place: Place, scripts: bool) -> None:
    name = f"office-{scripts}".lower()
    with visiting(browser, place.live, java_script_enabled=scripts) as visitor:
        page = visitor.sign_in().go("sources")
        page.get_by_role("link", name="New source").click()
        page.fill("input[name=name]", name)
        page.fill("textarea[name=allow]", "10.0.0.0/24\nno network/at all")
        page.fill("input[name=every]", "")
        if scripts and page.evaluate("!!window.htmx"):
            page.locator("code", has_text=f"handclasp source add network {name} --allow 10.0.0.0/24").wait_for()
        page.get_by_role("button", name="Add the source").click()
        assert "is not an address or a network" in page.locator(".said.bad").inner_text()
        assert page.input_value("input[name=name]") == name, "what was typed is kept"
        page.fill("textarea[name=allow]", "10.0.0.0/24")
        page.get_by_role("button", name="Add the source").click()
        assert "Added" in page.locator(".said").inner_text()
        assert page.locator("h1").inner_text() == name
        assert page.get_by_role("button", name="Run now").is_visible()
        assert "10.0.0.0/24" in page.inner_text("main")
    assert newest(place, "source.added")["what"]["source"] == name


def test_a_token_that_is_refused_loses_nothing_that_was_typed(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go("tokens/new")
        page.fill("input[name=name]", "kept")
        page.fill("textarea[name=allow]", "spiffe://example.org/prod/kept")
        page.fill("input[name=expires]", "soon")
        page.get_by_role("button", name="Make the token").click()
        assert page.locator(".said.bad").inner_text()
        assert page.input_value("textarea[name=allow]") == "spiffe://example.org/prod/kept"


def test_the_whole_history_of_an_identity_is_a_page_away(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go(f"identity?name={place.world.identity}")
        page.get_by_role("link", name="All its certificates in the log").click()
        assert page.locator("tbody tr", has_text="certificate.renewed").count() >= 2
        assert page.locator("tbody tr", has_text="certificate.issued").count() == 1
        visitor.go(f"identity?name={place.world.identity}")
        page.get_by_role("link", name="All decisions about it").click()
        assert "subject=" in page.url
        assert page.locator("h1").inner_text() == "Log"
