"""The ways into the console, and out: by token, by client certificate, by an OIDC provider; in a browser."""

from __future__ import annotations

import time
from typing import Any

import pytest

from support.console_browser import Place, visiting


def test_a_token_opens_the_door_and_is_in_no_address(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.go("tokens?state=active")
        assert "/console/sign-in?next=" in page.url
        page.fill("input[name=token]", "hct_aaaaaaaaaaaaaaaa_" + "x" * 43)
        page.get_by_role("button", name="Sign in").click()
        assert page.get_by_role("alert").inner_text().startswith("no such token")
        page.fill("input[name=token]", place.live.admin_token)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/console/tokens?state=active")
        assert not any("hct_" in url for url in visitor.requested)
        [cookie] = [one for one in visitor.context.cookies() if one["name"] == "__Host-handclasp"]
        assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"], cookie["path"]) == (True, True, "Strict", "/")
        page.get_by_role("button", name="Sign out").click()
        assert page.get_by_role("status").inner_text() == "You are signed out."
        visitor.context.add_cookies([cookie])  # what was copied before is worth nothing now
        visitor.go("tokens")
        assert "/console/sign-in" in page.url


def test_a_token_without_scopes_is_turned_away(browser: Any, place: Place) -> None:
    token = place.live.issuing_token("spiffe://example.org/prod/x")
    with visiting(browser, place.live) as visitor:
        page = visitor.go("sign-in")
        page.fill("input[name=token]", token)
        page.get_by_role("button", name="Sign in").click()
        assert "does not use the API" in page.get_by_role("alert").inner_text()


def test_who_may_see_little_begins_with_what_they_may_see(browser: Any, place: Place) -> None:
    token = place.live.token("tokens:read", "log:read")
    with visiting(browser, place.live) as visitor:
        page = visitor.go("sign-in")
        page.fill("input[name=token]", token)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/console/tokens")
        assert page.locator("nav li").all_inner_texts() == ["Tokens", "Log"]
        visitor.go("policy", status=403)
        assert "this needs the scope policy:read" in page.inner_text("main")


def test_revoking_a_token_ends_its_sessions(browser: Any, place: Place) -> None:
    made = place.live.create_token("inventory:read", "certificates:read")
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in(made["token"])
        assert page.page.locator(".person").inner_text().split() == ["test", "auditor"]
        with place.live.client(place.live.admin_token) as admin:
            admin("POST", f"/v1/tokens/{made['id']}:revoke").ok()
        visitor.go("")
        assert "/console/sign-in" in visitor.page.url
        assert "Your session has ended" in visitor.page.inner_text("main")


@pytest.mark.parametrize(("person", "role"), [("operator", "operator"), ("payments", "team: payments"), ("nobody", "")])
def test_a_client_certificate_opens_the_door(browser: Any, place: Place, person: str, role: str) -> None:
    holder = place.people[person]
    shown = {"origin": place.url, "certPath": str(holder.cert_file), "keyPath": str(holder.key_file)}
    with visiting(browser, place.live, client_certificates=[shown]) as visitor:
        page = visitor.go("sign-in")
        assert f"spiffe://example.org/person/{person}" in page.inner_text("main")
        page.get_by_role("button", name="Sign in with this certificate").click()
        if role:
            page.wait_for_url("**/console/")
            assert page.locator(".person .tag").inner_text() == role
        else:
            assert "you are known, and have no role here" in page.get_by_role("alert").inner_text()


def test_a_provider_opens_the_door(browser: Any, place: Place) -> None:
    place.provider.claims, place.provider.spoil = {"sub": "u-1", "email": "alice@example.org", "groups": ["other", "platform"]}, {}
    with visiting(browser, place.live, check=False) as visitor:
        page = visitor.go("sign-in")
        page.get_by_role("link", name="Go on to 127.0.0.1").click()
        page.wait_for_url("**/console/")
        assert page.locator(".person").inner_text().split() == ["alice@example.org", "operator"]
        assert visitor.said == []
        names = {one["name"] for one in visitor.context.cookies()}
        assert "__Host-handclasp" in names
        assert "__Host-handclasp-signin" not in names
    with visiting(browser, place.live, check=False, java_script_enabled=False) as visitor:
        page = visitor.go("sign-in")
        page.get_by_role("link", name="Go on to 127.0.0.1").click()
        page.wait_for_url("**/console/")


SPOILT = {
    "state": ({"state": "x" * 43}, "in this browser"),
    "nonce": ({"nonce": "x" * 43}, "its nonce is not ours"),
    "audience": ({"aud": "another"}, "it is for another audience"),
    "azp": ({"azp": "another"}, "made for another client"),
    "issuer": ({"iss": "http://127.0.0.1:1"}, "its issuer is not in the policy"),
    "expired": ({"exp": int(time.time()) - 3600}, "it has expired"),
    "role": ({"groups": ["other"]}, "you are known, and have no role here"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_provider_s_answer_is_looked_at(browser: Any, place: Place, what: str) -> None:
    place.provider.claims = {"sub": "u-1", "email": "alice@example.org", "groups": ["platform"]}
    place.provider.spoil, words = SPOILT[what]
    with visiting(browser, place.live, check=False) as visitor:
        page = visitor.go("sign-in")
        page.get_by_role("link", name="Go on to 127.0.0.1").click()
        assert words in page.get_by_role("alert").inner_text()
        visitor.go("")
        assert "/console/sign-in" in page.url


def test_an_answer_serves_once_and_in_its_own_browser_only(browser: Any, place: Place) -> None:
    place.provider.spoil = {}
    with visiting(browser, place.live, check=False) as visitor, visiting(browser, place.live, check=False) as other:
        answers: list[str] = []
        visitor.page.on("request", lambda request: answers.append(request.url) if "/callback?" in request.url else None)
        visitor.go("sign-in").get_by_role("link", name="Go on to 127.0.0.1").click()
        visitor.page.wait_for_url("**/console/")
        page = other.page
        page.goto(answers[0])  # somebody else's answer: a sign-in that was not begun here
        assert "in this browser" in page.get_by_role("alert").inner_text()
        challenges = {asked["code_challenge"] for asked in place.provider.asked}
        assert len(challenges) == len(place.provider.asked)
