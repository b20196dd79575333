"""How the console behaves under a hand: pages forward and back, forms pressed twice, a server that is away, keys, times, small roles."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from handclasp.console.nav import opens
from handclasp.console.render import environment
from handclasp.console.turns import turns
from handclasp.console.visit import Visit
from support.console_browser import Place, Visitor, visiting


def visit_of(query: Mapping[str, str]) -> Any:
    """A visit of a list, as far as its pages look at it."""
    made = SimpleNamespace(path="/console/list", query=dict(query))
    made.url = lambda path, **changes: Visit.url(made, path, **changes)
    return made


def followed(address: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in address.partition("?")[2].split("&") if part)


def test_pages_lead_forward_and_back_with_their_filters() -> None:
    """Ten pages forward, and the same ten back."""
    seen = []
    query = {"q": "web"}
    for number in range(10):
        here = turns(visit_of(query), f"cursor{number + 1}", 50, 50)
        seen.append((query.get("cursor"), here.words))
        assert here.after is not None
        query = followed(here.after)
        assert query["q"] == "web"
    assert seen[3] == ("cursor3", "Rows 151 to 200, and more")
    last = turns(visit_of(query), None, 7, 50)
    assert (last.words, last.after, last.first) == ("Rows 501 to 507, the last", None, "/console/list?q=web")
    for cursor, words in reversed(seen):
        before = turns(visit_of(query), "x", 50, 50).before
        assert before is not None
        query = followed(before)
        assert (query.get("cursor"), turns(visit_of(query), "x", 50, 50).words) == (cursor, words)
    assert turns(visit_of(query), "x", 50, 50).before is None


def test_an_address_does_not_grow_with_the_pages() -> None:
    query: dict[str, str] = {}
    for number in range(40):
        here = turns(visit_of(query), f"{number:02}" + "c" * 300, 50, 50)
        assert here.after is not None
        assert len(here.after) < 4000
        query = followed(here.after)
    back = 0
    while (before := turns(visit_of(query), "x", 50, 50).before) is not None:
        query = followed(before)
        back += 1
    assert 5 < back < 12
    assert turns(visit_of(query), "x", 50, 50).first == "/console/list"


@pytest.mark.parametrize(
    ("query", "shown", "words"),
    [({}, 0, "No rows"), ({}, 1, "1 row"), ({}, 50, "50 rows"), ({"cursor": "c"}, 3, "3 rows"), ({"cursor": "c", "row": "x"}, 3, "3 rows"),
     ({"cursor": "c", "row": "9" * 12}, 3, "3 rows"), ({"row": "51"}, 3, "3 rows")],
)  # fmt: skip
def test_rows_are_counted_for_people(query: dict[str, str], shown: int, words: str) -> None:
    assert turns(visit_of(query), None, shown, 50).words == words


def test_what_somebody_may_not_see_is_no_link() -> None:
    may = {"certificates:read", "log:read"}.__contains__
    for address, open_ in (
        ("/console/certificates/00?x=1", True), ("/console/log/3", True), ("/console/identity?name=x", False),
        ("/console/owner?name=x", False),
        ("/console/sources/edge", False), ("/console/scans/x", False), ("/console/find?for=x", True), ("/console/agent?name=x", False),
    ):  # fmt: skip
        assert opens(may, address) is open_, address


def test_exact_times_have_the_others_at_hand() -> None:
    made = environment().from_string("{{ x|when(0, true) }} {{ x|when(0) }}").render(x="1970-01-02T00:00:00Z")
    shown = re.findall(r'title="([^"]*)">([^<]*)<', made)
    assert shown == [("in 1 d", "1970-01-02 00:00:00 UTC"), ("1970-01-02 00:00:00 UTC", "in 1 d")]


@pytest.mark.parametrize(("known", "begins"), [(0, True), (1, True), (2, False)])
def test_a_new_installation_says_how_to_begin(known: int, begins: bool) -> None:
    """A server that has just begun has issued one certificate: its own."""
    none = SimpleNamespace(number=0, level="fine", title="none", list="/v1/identities")
    shown = SimpleNamespace(
        at="2026-01-01T00:00:00Z", followed=0, identities=[SimpleNamespace(number=known, level="fine", title="all", list="/v1/x")],
        overdue=none, expiring=[], expired=none, standings=[], issued_24h=none, refused_24h=none, sources=[], locations=[], agents=[],
    )  # fmt: skip
    visit = SimpleNamespace(method="POST", opens=lambda _address: True, query={})
    context = {"frame": "partial.html", "shown": shown, "issuance": {}, "domain": "example.org", "visit": visit, "now": 0, "exactly": False}
    page = environment().get_template("overview.html").render(context)
    assert ("Three ways to begin" in page) is begins


def test_a_thousand_names_are_folded() -> None:
    made = environment().from_string('{% import "macros.html" as m with context %}{{ m.names(values) }}')
    shown = made.render(values=[f"host-{number}" for number in range(1000)], visit=None)
    open_, _, folded = shown.partition("<details>")
    assert (open_.count("host-"), folded.count("host-")) == (12, 988)
    assert "and 988 more" in folded
    assert "<details>" not in made.render(values=["one"], visit=None)


def test_the_first_heading_of_what_is_found_is_marked_as_such() -> None:
    visit = SimpleNamespace(method="POST", opens=lambda _address: True, query={})
    found = [("Owners", [], "/console/owners"), ("Agents", [], "/console/agents")]
    page = environment().get_template("find.html").render(frame="partial.html", visit=visit, text="a", found=found)
    assert re.findall("<h2.*?>", page) == ['<h2 class="first">', "<h2>"]


# --- in a browser -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def scripted(browser: Any, place: Place) -> Iterator[Visitor]:
    """An admin with the browser libraries."""
    with visiting(browser, place.live) as visitor:
        visitor.sign_in()
        if not visitor.page.evaluate("!!window.htmx"):
            pytest.skip("the browser libraries are not placed: run make assets (it needs a network)")
        yield visitor


def rows(page: Any) -> list[str]:
    return list(page.locator("table.list tbody tr a.mono").evaluate_all("all => all.map(one => one.title)"))


@pytest.mark.parametrize("scripts", [True, False])
def test_every_row_is_on_some_page_and_the_way_back_is_the_same(browser: Any, place: Place, scripts: bool) -> None:
    with visiting(browser, place.live, java_script_enabled=scripts) as visitor:
        page = visitor.go("sign-in")
        page.fill("input[name=token]", place.live.admin_token)
        page.locator("input[name=token]").press("Enter")
        page.wait_for_url("**/console/")
        visitor.go("certificates?origin=issued&sort=expires")
        first = rows(page)
        page.get_by_role("link", name="Next page").click()
        page.locator(".count", has_text="Rows 51 to").wait_for()
        second = rows(page)
        assert len(first) == 50
        assert second
        assert not set(first) & set(second)
        assert "origin=issued" in page.url
        assert page.evaluate("document.activeElement.id") in ("list", ""), "the keyboard goes on in the list"
        page.get_by_role("link", name="Previous page").click()
        page.locator(".count", has_text="Rows 1 to 50, and more").wait_for()
        assert rows(page) == first
        page.go_back()
        page.locator(".count", has_text="Rows 51 to").wait_for()
        page.reload()
        assert rows(page) == second
        page.get_by_role("link", name="Ends", exact=True).click()
        assert "sort=" not in page.url  # the other way round is as without it
        assert page.locator("th[aria-sort=descending]").count() == 1
        assert "cursor" not in page.url


def test_what_is_beside_a_list_follows_the_search(browser: Any, place: Place) -> None:
    """The list changes in place: what is saved and exported is what is looked for now, and not what was looked for at first."""
    with scripted(browser, place) as visitor:
        page = visitor.go("certificates")
        page.keyboard.press("/")
        page.keyboard.type("ledger")
        page.wait_for_url("**q=ledger**")
        page.get_by_role("link", name="Clear the filters").wait_for()
        assert page.locator("#list form[action$=export] [name=q]").get_attribute("value") == "ledger"
        assert page.locator("#list form[action$=views] [name=query]").get_attribute("value") == "q=ledger"
        page.locator("summary", has_text="Command").click()
        assert page.locator(".box code").inner_text() == "handclasp cert list --q=ledger"
        page.get_by_role("button", name="Dark").click()
        assert "q=ledger" in page.url, "the colours change, and nothing else"
        page.get_by_role("button", name="exact, UTC").click()
        assert "q=ledger" in page.url
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", page.locator("table.list time").first.inner_text())
        page.get_by_role("button", name="from now").click()


def test_anything_is_found_from_everywhere(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go("policy")
        page.keyboard.press("/")
        page.keyboard.type("payments")
        page.keyboard.press("Enter")
        page.wait_for_url("**/find?for=payments")
        assert page.locator("main h2").all_inner_texts() == ["Identities", "Certificates", "Locations", "Owners"]
        page.get_by_role("link", name="All of them").first.click()
        assert page.url.endswith("q=payments")
        for text, address in (
            (place.world.issued.upper(), f"/certificates/{place.world.issued}"),
            (place.world.identity, "/identity?name="),
            (place.world.issued[:12], "/find?for="),
            (place.world.identity + "/assignments", "/find?for="),
            ("no such thing <b>", "/find?for="),
        ):
            page.fill(".find input", text)
            page.press(".find input", "Enter")
            page.wait_for_url(f"**/console{address.partition('?')[0]}*")
            assert address in page.url
        assert "Nothing has this in its name" in page.inner_text("main")


def test_a_server_that_is_away_is_noticed_and_asked_again(browser: Any, place: Place) -> None:
    with scripted(browser, place) as visitor:
        page = visitor.go("identities")
        alert = page.locator("#trouble")
        page.route("**/console/identities?**", lambda route: route.abort())
        page.fill("main input[name=q]", "pay")
        alert.filter(has_text="The server does not answer").wait_for()
        assert page.locator("tbody tr").count() > 1
        page.unroute("**/console/identities?**")
        page.fill("main input[name=q]", "ledger")
        alert.wait_for(state="hidden")
        page.locator("#list:not(:has(tbody tr + tr))").wait_for()

        page.clock.install()
        visitor.go(f"rotations/{place.world.rotation}")  # asks by itself every two seconds
        answers = iter(["abort", 503])

        def answer(route: Any) -> None:
            wanted = next(answers, None)
            if wanted == "abort":
                route.abort()
            elif wanted:
                route.fulfill(status=wanted, content_type="text/html", body="<p>away</p>")
            else:
                route.continue_()

        page.route("**/console/rotations/*", answer)
        page.clock.fast_forward(2_000)
        alert.filter(has_text="This page keeps trying").wait_for()
        page.clock.fast_forward(2_000)
        alert.filter(has_text="503").wait_for()
        assert page.locator("progress").count() == 1
        page.clock.fast_forward(2_000)
        alert.wait_for(state="hidden")
        visitor.said.clear()  # the browser says of each that it failed; the test asked for it


def test_whoever_presses_twice_acts_once(browser: Any, place: Place) -> None:
    with scripted(browser, place) as visitor:
        page = visitor.go("tokens/new")
        page.fill("input[name=name]", "pressed-twice")
        page.fill("textarea[name=allow]", "spiffe://example.org/prod/twice")
        page.locator("[name=profiles][value=workload]").check()
        page.get_by_role("button", name="Make the token").dblclick()
        page.wait_for_selector("text=Copy it before you leave this page.")
        assert "/console/tokens/" in page.url
        page.reload()  # does not send the form again, but shows the token's own page
        assert page.locator("h1").inner_text() == "pressed-twice"
        visitor.go("tokens?name=pressed-twice")
        assert page.locator("tbody tr").count() == 1


def test_a_form_of_a_session_that_ended_leads_back_to_its_page(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go(f"identity?name={place.world.identity}")
        [cookie] = [one for one in visitor.context.cookies() if one["name"] == "__Host-handclasp"]
        visitor.context.clear_cookies()
        page.locator("summary", has_text="Assign").click()
        page.fill("details[open] [name=owner]", "shop")
        page.fill("details[open] [name=reason]", "test")
        page.get_by_role("button", name="Say whose it is").click()
        page.wait_for_url("**/sign-in?next=**")
        page.fill("input[name=token]", place.live.admin_token)
        page.locator("input[name=token]").press("Enter")
        page.wait_for_url("**/console/identity?name=**")
        mark = page.locator("input[name=csrf]").first.get_attribute("value")
        visitor.context.clear_cookies()
        visitor.context.add_cookies([cookie])  # as if another tab had signed in again
        assert mark
        page.locator("summary", has_text="Assign").click()
        page.fill("details[open] [name=owner]", "shop")
        page.fill("details[open] [name=reason]", "test")
        page.get_by_role("button", name="Say whose it is").click()
        assert "this form is not of this page" in page.get_by_role("alert").inner_text()
        page.get_by_role("link", name="Back to the page, as it is now").click()
        page.wait_for_url("**/console/identity?name=**")


def test_escape_closes_what_is_open_in_a_list_too(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go("triage")
        row = page.locator("tbody tr").first
        row.locator("summary").click()
        row.locator("[name=reason]").press("Escape")
        assert not row.locator("[name=reason]").is_visible()
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_a_certificate_is_a_file_with_its_chain(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go(f"certificates/{place.world.issued}")
        for name, certificates in (("Download it", 1), ("with the certificate of its authority", 2)):
            with page.expect_download() as caught:
                page.get_by_role("link", name=name).click()
            assert caught.value.suggested_filename == f"{place.world.issued[:16]}.pem"
            assert caught.value.path().read_text().count("BEGIN CERTIFICATE") == certificates


# --- what each may do is what each is offered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scopes", [("certificates:read", "inventory:read"), ("log:read",), ("sources:read",), ("owners:read",)])
def test_who_may_see_little_is_led_nowhere_else(browser: Any, place: Place, scopes: tuple[str, ...]) -> None:
    """Two steps from the first page, each link opens."""
    token = place.live.token(*scopes)
    with visiting(browser, place.live) as visitor:
        visitor.sign_in(token) if "inventory:read" in scopes else _enter(visitor, token)
        seen: set[str] = set()
        todo = [visitor.page.url.removeprefix(visitor.url)]
        for _ in range(2):
            found = [link for address in todo for link in _links(visitor, address)]
            seen |= set(todo)
            todo = sorted({_shape(link): link for link in found if link not in seen}.values())
        answers = {address: visitor.context.request.get(visitor.url + address).status for address in todo}
        assert {address: status for address, status in answers.items() if status != 200} == {}


def _enter(visitor: Visitor, token: str) -> None:
    visitor.go("sign-in")
    visitor.page.fill("input[name=token]", token)
    visitor.page.locator("input[name=token]").press("Enter")
    visitor.page.wait_for_selector("nav")


def _links(visitor: Visitor, address: str) -> list[str]:
    answer = visitor.context.request.get(visitor.url + address)
    assert answer.status == 200, address
    found = [html.unescape(one).partition("#")[0] for one in re.findall(r' href="([^"]+)"', answer.text())]
    return [one for one in found if one.startswith("/console/") and "/static/" not in one and "/export" not in one]


def _shape(address: str) -> str:
    """Links that only differ in what they name are one."""
    return re.sub(r"[0-9a-f]{64}|/\d+$|/[a-z2-7]{16}$|=[^&]*", "X", address)


def test_who_only_looks_is_offered_nothing_to_change(browser: Any, place: Place) -> None:
    holder = place.people["auditor"]
    shown = {"origin": place.url, "certPath": str(holder.cert_file), "keyPath": str(holder.key_file)}
    with visiting(browser, place.live, client_certificates=[shown]) as visitor:
        page = visitor.go("sign-in")
        page.get_by_role("button", name="Sign in with this certificate").click()
        page.wait_for_url("**/console/")
        offered = set()
        for path in ("", f"identity?name={place.world.identity}", f"certificates/{place.world.foreign}",
                     f"certificates/{place.world.issued}", "certificates?q=pay", "views", "triage",
                     "triage?queue=found&standing=foreign", "sources", "sources/edge",
                     f"scans/{place.world.scan}", "tokens", f"tokens/{place.world.token}", "policy", "owners"):  # fmt: skip
            visitor.go(path)
            offered |= set(page.locator("main form[method=post]").evaluate_all("all => all.map(one => one.getAttribute('action'))"))
            assert page.get_by_role("link", name=re.compile("^New ")).count() == 0
        assert offered == set()


def test_a_scan_that_waits_says_for_whom(browser: Any, place: Place) -> None:
    with visiting(browser, place.live) as visitor:
        page = visitor.sign_in().go(f"scans/{place.world.scan}")
        assert page.locator("code").inner_text() == "handclasp collect --source edge"


def test_a_button_stays_where_a_page_asks_by_itself(browser: Any, place: Place) -> None:
    """It comes anew each second, and must not take away what somebody is pressing, or has come to with the keyboard."""
    with scripted(browser, place) as visitor:
        page = visitor.go(f"scans/{place.world.scan}")
        stop = page.get_by_role("button", name="Stop").element_handle()
        stop.focus()
        for _ in range(2):
            page.wait_for_event("response", lambda answer: "/console/scans/" in answer.url)
        assert stop.evaluate("one => one.isConnected && one === document.activeElement")
