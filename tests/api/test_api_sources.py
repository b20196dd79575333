"""Sources and scans over HTTP: added, read, changed, leased by collectors, removed; and imports."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from handclasp.client.api import ApiClient
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.discovery import LeaseRequest, PartLease, PartRecord
from handclasp.wire.observations import Observed, Seen, Sightings
from support.fake_server import FakeAuthority
from support.live import Client, Live
from support.programs import free_port
from support.waiting import eventually

AUTHORITY = FakeAuthority()


def leaf(name: str) -> bytes:
    pem = AUTHORITY.credential(dns=[name])[0].decode()
    return base64.b64decode("".join(pem.split("-----END")[0].splitlines()[1:]))


def add(admin: Client, name: str, **fields: Any) -> dict[str, Any]:
    wanted = {"name": name, "kind": "network", "scope": {"allow": ["127.0.0.1"]}, "settings": {"ports": [str(free_port())]}} | fields
    added: dict[str, Any] = admin("POST", "/v1/sources", wanted).ok(201)
    return added


def ended(admin: Client, scan: str) -> dict[str, Any]:
    eventually(lambda: admin.get(f"/v1/scans/{scan}")["state"] in ("done", "failed"), what="the scan ends")
    found: dict[str, Any] = admin.get(f"/v1/scans/{scan}")
    return found


def test_a_source_from_its_addition_to_its_removal(live: Live, admin: Client) -> None:
    port = live.https[1]
    added = add(admin, "whole", settings={"ports": [str(port)]}, facts={"environment": "test"})
    assert (added["state"], added["every"], added["due_at"], added["scan"]) == ("active", "", None, None)
    dry = ended(admin, admin("POST", "/v1/sources/whole:run", {"dry": True}).ok(201)["id"])
    assert (dry["dry"], dry["read"], dry["failed"], dry["certificates"]) == (True, 1, 0, 1)
    assert admin.get("/v1/sources/whole")["locations"] == 0
    scan = ended(admin, admin("POST", "/v1/sources/whole:run", {}).ok(201)["id"])
    assert (scan["state"], scan["total"], scan["read"], scan["certificates"], scan["problem"]) == ("done", 1, 1, 1, None)
    shown = admin.get("/v1/sources/whole")
    assert (shown["locations"], shown["problem"], shown["success_at"]) == (1, None, scan["created_at"])
    assert shown["scan"]["id"] == scan["id"]
    assert [one["id"] for one in admin.get("/v1/scans", source="whole")["items"]] == [scan["id"], dry["id"]]
    changed = admin("PUT", "/v1/sources/whole", {"every": "6h", "paused": True}).ok()
    assert (changed["every"], changed["state"], changed["due_at"]) == ("6h", "paused", None)
    assert changed["settings"] == {"ports": [str(port)]}
    entry = admin("DELETE", "/v1/sources/whole").ok()["log_entry"]
    assert admin.get(f"/v1/log/entries/{entry}")["entry"]["type"] == "source.removed"
    types = [one["entry"]["type"] for one in admin.get("/v1/log/entries", subject="source:whole")["items"]]
    assert types == ["source.removed", "source.changed", "scan.started", "scan.started", "source.added"]
    admin("GET", "/v1/sources/whole").refused(Kind.NOT_FOUND)
    add(admin, "whole")  # its name is free at once


BAD: list[tuple[dict[str, Any], Kind, str]] = [
    ({"kind": "nothing"}, Kind.BAD_SETTING, "no source of the kind"),
    ({"settings": {"prots": []}}, Kind.BAD_SETTING, "prots"),
    ({"settings": {"ports": ["99999"]}}, Kind.BAD_SETTING, "99999"),
    ({"scope": {"allow": []}}, Kind.BAD_SETTING, "allows nothing"),
    ({"scope": {"allow": ["169.254.169.254"]}}, Kind.BAD_SETTING, "never read"),
    ({"every": "5s"}, Kind.BAD_SETTING, "every 1m"),
    ({"every": "often"}, Kind.BAD_REQUEST, "duration"),
    ({"runs": "me"}, Kind.BAD_SETTING, "runs is one of"),
    ({"runs": "agents"}, Kind.BAD_SETTING, "agents cannot read a source of the kind network"),
    ({"kind": "files", "settings": {}, "runs": "server"}, Kind.BAD_SETTING, "read by agents"),
    ({"token": "secret"}, Kind.BAD_REQUEST, "token"),
    ({"name": "bad name"}, Kind.BAD_REQUEST, "begins with a letter or a digit"),
]


@pytest.mark.parametrize(("fields", "kind", "words"), BAD)
def test_what_cannot_be_a_source_is_refused(admin: Client, fields: dict[str, Any], kind: Kind, words: str) -> None:
    wanted = {"name": "bad", "kind": "network", "scope": {"allow": ["127.0.0.1"]}} | fields
    admin("POST", "/v1/sources", wanted).refused(kind, words)
    admin("GET", "/v1/sources/bad").refused(Kind.NOT_FOUND)


def test_one_scan_at_a_time_and_stopping(admin: Client) -> None:
    add(admin, "slow", scope={"allow": ["127.0.0.0/24"]}, settings={"ports": [str(free_port())], "rate": 2.0, "connections": 1})
    scan = admin("POST", "/v1/sources/slow:run", {}).ok(201)["id"]
    admin("POST", "/v1/sources/slow:run", {}).refused(Kind.CONFLICT, "goes on")
    assert admin("POST", f"/v1/scans/{scan}:stop").ok()["state"] == "stopped"
    admin("POST", f"/v1/scans/{scan}:stop").refused(Kind.CONFLICT, "ended")
    shown = admin.get("/v1/sources/slow")
    assert (shown["success_at"], shown["scan"]["problem"]) == (None, "it was stopped")
    admin("POST", "/v1/sources", {"name": "slow", "kind": "network", "scope": {"allow": ["::1"]}}).refused(Kind.CONFLICT, "already")


def test_lists_are_paged_and_filtered(admin: Client) -> None:
    for number in range(3):
        add(admin, f"paged-{number}", paused=number == 1)
    names = [one["name"] for page in admin.pages("/v1/sources", limit=2) for one in page]
    assert names == sorted(names)
    assert {"paged-0", "paged-1", "paged-2"} <= set(names)
    assert "paged-1" in [one["name"] for one in admin.get("/v1/sources", state="paused")["items"]]
    admin("GET", "/v1/sources", state="odd").refused(Kind.BAD_REQUEST)
    admin("GET", "/v1/scans", state="odd").refused(Kind.BAD_REQUEST)
    kinds = {one["name"]: one for one in admin.get("/v1/source-kinds")["items"]}
    assert {"network", "import"} <= set(kinds)
    assert {"ports", "sni", "rate"} <= {one["name"] for one in kinds["network"]["options"]}


def collector(live: Live) -> ApiClient:
    return ApiClient(
        f"https://{live.https[0]}:{live.https[1]}", ca=str(live.data / "ca.pem"), token=live.token("sources:collect"), attempts=1
    )


def test_a_collector_reads_a_scan_over_the_api(live: Live, admin: Client) -> None:
    add(admin, "far", runs="collector", facts={"zone": "far"}, settings={"ports": ["443"]})
    scan = admin("POST", "/v1/sources/far:run", {}).ok(201)["id"]
    ders = [leaf(f"far-{number}.example") for number in range(3)]
    with collector(live) as client:
        plan = client.lease_part(LeaseRequest(worker="pod-1", source="far"))
        assert (plan.scan, plan.part, plan.kind, plan.settings, plan.facts) == (scan, 0, "network", {"ports": ["443"]}, {"zone": "far"})
        assert client.lease_part(LeaseRequest(worker="pod-2", source="far")).scan is None
        assert client.record_part(scan, 0, PartRecord(lease=plan.lease, parts=[{"n": 1}, {"n": 2}], place="2", done=True)).held
        first = client.lease_part(LeaseRequest(worker="pod-1", source="far"))
        second = client.lease_part(LeaseRequest(worker="pod-1", source="far", kinds=["network"]))
        assert [(one.part, one.spec) for one in (first, second)] == [(1, {"n": 1}), (2, {"n": 2})]
        answer = client.record_part(scan, 1, PartRecord(lease=first.lease, sightings=seen_at(first, ders[:2]), total=2, place="half"))
        assert (answer.held, answer.certificates, answer.fresh) == (True, 2, 2)
        assert client.record_part(scan, 1, PartRecord(lease=first.lease, released=True)).held
        again = client.lease_part(LeaseRequest(worker="pod-2", source="far"))
        assert (again.part, again.place) == (1, "half")
        assert not client.record_part(scan, 1, PartRecord(lease=first.lease, sightings=seen_at(first, ders))).held
        assert client.record_part(scan, 1, PartRecord(lease=again.lease, done=True)).held
        last = PartRecord(lease=second.lease, problem="no way there", gives_up=True, final=True)
        assert client.record_part(scan, 2, last).held
    found = ended(admin, scan)
    assert (found["state"], found["read"], found["failed"], found["fresh"]) == ("done", 2, 1, 2)
    assert found["problems"] == ["no way there"]
    shown = admin.get("/v1/sources/far")
    assert (shown["success_at"], shown["locations"]) == (None, 2)


def seen_at(lease: PartLease, ders: list[bytes]) -> Sightings:
    served = [Seen(der=der, role="served") for der in ders]
    return Sightings(
        observed=[
            Observed(key=f"tls:far:{number}/", kind="endpoint", shown=f"far:{number}", at=lease.began_at, certificates=[seen])
            for number, seen in enumerate(served)
        ]
    )  # fmt: skip


def test_collectors_do_not_get_what_the_server_reads(live: Live, admin: Client) -> None:
    add(admin, "near", settings={"ports": [str(free_port())], "rate": 1.0}, scope={"allow": ["127.0.0.0/28"]})
    scan = admin("POST", "/v1/sources/near:run", {}).ok(201)["id"]
    with collector(live) as client:
        for name, kind in (("near", Kind.CONFLICT), ("nowhere", Kind.NOT_FOUND)):  # who waits for it would wait for ever
            with pytest.raises(HandclaspError) as caught:
                client.lease_part(LeaseRequest(worker="pod-1", source=name))
            assert caught.value.kind is kind
        assert client.lease_part(LeaseRequest(worker="pod-1", kinds=["network"])).scan is None
        assert not client.record_part(scan, 0, PartRecord(lease="pod-1/anything")).held
    admin("POST", f"/v1/scans/{scan}/parts/x:record", {"lease": "a"}).refused(Kind.BAD_REQUEST)
    admin("POST", f"/v1/scans/{scan}/parts/0:record", {"lease": "a", "parts": [{}]}).refused(Kind.BAD_REQUEST)
    for place in ("x", "-1", "0", "\u00b2", "1" * 5000, "100001"):  # it numbers rows
        admin("POST", f"/v1/scans/{scan}/parts/0:record", {"lease": "a", "parts": [{}], "place": place}).refused(Kind.BAD_REQUEST)
    admin("POST", f"/v1/scans/{scan}:stop")


def test_an_import_twice_is_an_import_once(live: Live, admin: Client) -> None:
    add(admin, "inherited", kind="import", scope={}, settings={})
    der = leaf("inherited.example")
    one = Observed(key="import:lb-1", kind="import", shown="lb-1", at=1_700_000_000_000, certificates=[Seen(der=der, role="listed")])
    body = {"sightings": msgspec.to_builtins(Sightings(observed=[one]))}
    first = admin("POST", "/v1/sources/inherited:import", body).ok()
    again = admin("POST", "/v1/sources/inherited:import", body).ok()
    assert [(answer["changed"], answer["fresh"]) for answer in (first, again)] == [(1, 1), (0, 0)]
    assert admin.get("/v1/sources/inherited")["locations"] == 1
    admin("POST", "/v1/sources/inherited:run", {}).refused(Kind.CONFLICT, "nothing to read")
    add(admin, "not-inherited")
    admin("POST", "/v1/sources/not-inherited:import", body).refused(Kind.CONFLICT, "takes nothing by hand")
    one.key = "tls:lb-1:443/"
    admin("POST", "/v1/sources/inherited:import", {"sightings": msgspec.to_builtins(Sightings(observed=[one]))}).refused(Kind.BAD_REQUEST)


def test_a_secret_is_read_from_its_own_directory_alone(live: Live, admin: Client) -> None:
    """Whoever may write sources must not be able to have the server's own files sent anywhere."""
    token_file = str(live.data / "admin.token")
    settings = {"address": "https://127.0.0.1:9", "token_file": token_file}
    answer = admin("POST", "/v1/sources", {"name": "thief", "kind": "vault", "settings": settings, "scope": {"loopback": True}})
    if answer.status == 201:
        scan = ended(admin, admin("POST", "/v1/sources/thief:run", {}).ok(201)["id"])
        assert scan["state"] == "failed"
        assert "outside the directory" in scan["problem"]
    else:
        assert answer.kind == "bad_setting"
