"""``handclasp source``: what is sent, what is shown, and exit codes that a script can go by."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from handclasp import wire
from handclasp.cli import source_view
from handclasp.cli.source_add import EXAMPLES
from handclasp.discovery.engine import read_settings
from handclasp.discovery.kinds import KINDS, load_kind
from handclasp.discovery.network.kind import NetworkSettings
from handclasp.discovery.options import options_of
from handclasp.discovery.source import Scope
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.discovery import (
    RunRequest,
    Scan,
    ScanList,
    Source,
    SourceKindInfo,
    SourceKindList,
    SourceList,
    SourceScope,
)
from handclasp.wire.observations import Recorded
from support.fake_api import FakeApi
from support.fake_server import FakeAuthority


def scan(**changes: Any) -> Scan:
    known: dict[str, Any] = {
        "id": "k3v6q2mzt4w7ay5d", "source": "office", "kind": "network", "state": "done", "dry": False, "asked_by": "schedule",
        "created_at": "2025-12-31T23:00:00Z", "ended_at": "2025-12-31T23:05:00Z", "total": 256, "read": 256, "failed": 0,
        "certificates": 12, "fresh": 2, "gone": 1, "problem": None,
    }  # fmt: skip
    return Scan(**(known | changes))


def source(**changes: Any) -> Source:
    known: dict[str, Any] = {
        "name": "office", "kind": "network", "state": "active", "runs": "server", "settings": {"ports": ["443"]},
        "scope": SourceScope(allow=["10.0.0.0/24"]), "facts": {}, "every": "6h", "created_at": "2025-06-01T00:00:00Z",
        "created_by": "token:a (admin)", "due_at": "2026-01-01T05:00:00Z", "success_at": "2025-12-31T23:00:00Z", "problem": None,
        "locations": 12, "scan": scan(),
    }  # fmt: skip
    return Source(**(known | changes))


@pytest.fixture
def there(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    monkeypatch.setattr(source_view, "sleep", lambda _seconds: None)
    network = SourceKindInfo(name="network", summary="TLS", privilege="None.", runs="server", options=options_of(NetworkSettings))
    api.on("GET", "/v1/source-kinds", SourceKindList(items=[network]))
    api.on("GET", "/v1/sources", SourceList(items=[source(), source(name="quiet", every="", scan=None, success_at=None, due_at=None)]))
    api.on("POST", "/v1/sources", source())
    api.on("GET", "/v1/sources/office", source())
    api.on("PUT", "/v1/sources/office", source())
    api.on("DELETE", "/v1/sources/office", wire.Done(log_entry=50))
    api.on("POST", "/v1/sources/office:run", scan(state="planning", ended_at=None, total=0, read=0))
    api.on("GET", "/v1/scans", ScanList(items=[scan(), scan(dry=True)]))
    return api


def test_add_network_sends_what_was_asked_for(there: FakeApi, run: Any) -> None:
    result = run(
        "source", "add", "network", "office", "--allow", "10.0.0.0/24", "--allow", "www.example.org", "--deny", "10.0.0.17",
        "--port", "443", "--port", "8440-8450", "--sni", "a.example", "--rate", "20", "--no-both", "--every", "6h",
        "--fact", "environment=prod",
        "--set", "timeout=2s",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    body = there.asked[-1].body
    assert (body.name, body.kind, body.every, body.runs, body.facts) == ("office", "network", "6h", None, {"environment": "prod"})
    assert body.settings == {"ports": ["443", "8440-8450"], "sni": ["a.example"], "rate": 20, "both": False, "timeout": "2s"}
    assert body.scope == SourceScope(allow=["10.0.0.0/24", "www.example.org"], deny=["10.0.0.17"])
    assert result.stdout == "office\n"
    assert "for the first time now" in result.stderr


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_can_be_asked_how_it_is_added(run: Any, kind: str) -> None:
    result = run("source", "add", kind, "--help")
    assert result.exit_code == 0, result.stderr
    assert "It needs:" in result.stdout
    assert "--allow" in result.stdout
    assert f"handclasp source add {kind}" in result.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["source", "add", "nothing", "x"],
        ["source", "add", "network"],
        ["source", "add", "network", "x", "--fact", "prod"],
        ["source", "scans", "--watch"],
        ["source", "remove", "office"],
    ],
)
def test_wrong_usage_sends_nothing(there: FakeApi, run: Any, args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2, result.stdout
    assert not [asked for asked in there.asked if asked.method != "GET"]


def test_lists_and_details(there: FakeApi, run: Any, still: None) -> None:
    listed = run("source", "list")
    assert listed.stdout.splitlines()[0].split("\t")[:6] == ["office", "network", "active", "6h", "done", "256 of 256"]
    assert listed.stdout.splitlines()[1].split("\t")[3:6] == ["asked", "never", ""]
    shown = run("source", "show", "office").stdout
    assert "allow\t10.0.0.0/24" in shown
    assert "setting ports\t443" in shown
    assert "k3v6q2mzt4w7ay5d: done, 256 of 256 read" in shown
    assert json.loads(run("source", "show", "office", "--json").stdout)["scan"]["fresh"] == 2
    assert "done (dry)" in run("source", "scans", "office").stdout
    assert there.asked[-1].params["source"] == "office"
    assert "needs\tNone." in run("source", "kinds").stdout


def test_change_keeps_what_is_not_given(there: FakeApi, run: Any) -> None:
    result = run(
        "source", "change", "office", "--deny", "10.0.0.9", "--set", "sni=a", "--set", "sni=b", "--set", "ports=", "--set", "rate=2.5"
    )
    assert result.exit_code == 0, result.stderr
    body = there.asked[-1].body
    assert body.scope == SourceScope(allow=["10.0.0.0/24"], deny=["10.0.0.9"])
    assert body.settings == {"sni": ["a", "b"], "rate": 2.5}
    assert (body.every, body.paused) == (None, None)
    run("source", "pause", "office")
    assert there.asked[-1].body.paused is True
    run("source", "resume", "office")
    assert there.asked[-1].body.paused is False


@pytest.mark.parametrize(
    ("last", "code"),
    [(scan(), 0), (scan(failed=3, problem="no answer"), 1), (scan(state="stopped"), 1), (scan(state="failed", problems=["403"]), 1)],
)
def test_run_and_watch_to_the_end(there: FakeApi, run: Any, last: Scan, code: int) -> None:
    there.on("GET", f"/v1/scans/{last.id}", last)
    result = run("source", "run", "office", "--dry-run", "--watch", "--json")
    assert result.exit_code == code, result.stderr
    assert next(asked for asked in there.asked if asked.method == "POST").body == RunRequest(dry=True)
    assert json.loads(result.stdout)["state"] == last.state


def test_run_without_watching_is_done_when_it_has_begun(there: FakeApi, run: Any) -> None:
    result = run("source", "run", "office")
    assert result.exit_code == 0
    assert "state\tplanning" in result.stdout
    assert not [asked for asked in there.asked if asked.method == "GET"]


def test_progress_is_drawn_for_people(there: FakeApi, run: Any, at_terminal: None, still: None) -> None:
    there.on("GET", "/v1/scans/k3v6q2mzt4w7ay5d", scan())
    result = run("source", "run", "office", "--watch")
    assert "finding out what there is to read" in result.stderr
    assert result.stderr.count("\r\x1b[2K") >= 2


def test_stop_by_source_or_by_scan(there: FakeApi, run: Any) -> None:
    there.on("POST", "/v1/scans/k3v6q2mzt4w7ay5d:stop", scan(state="stopped"))
    assert run("source", "stop", "office").exit_code == 0
    there.on("GET", "/v1/scans", ScanList(items=[]))
    assert run("source", "stop", "k3v6q2mzt4w7ay5d").exit_code == 0
    there.on("POST", "/v1/scans/other:stop", HandclaspError(Kind.NOT_FOUND, "there is no such scan"))
    assert run("source", "stop", "other").exit_code == 1


def test_remove_says_what_it_forgets(there: FakeApi, run: Any) -> None:
    result = run("source", "remove", "office", "--yes")
    assert result.exit_code == 0
    assert "log entry 50" in result.stderr


CHAIN, KEY = FakeAuthority().credential(dns=["old.example"])


def test_import_makes_the_source_sends_certificates_and_no_key(api: FakeApi, run: Any, tmp_path: Path) -> None:
    (tmp_path / "bundle.pem").write_bytes(CHAIN + KEY)
    api.on("GET", "/v1/sources/old", HandclaspError(Kind.NOT_FOUND, "there is no source"))
    api.on("POST", "/v1/sources", source(name="old", kind="import"))
    api.on("POST", "/v1/sources/old:import", Recorded(locations=2, changed=2, failed=0, certificates=2, fresh=2, gone=0))
    result = run("source", "import", "old", "bundle.pem")
    assert result.exit_code == 0, result.stderr
    assert [asked.path for asked in api.asked] == ["/v1/sources/old", "/v1/sources", "/v1/sources/old:import"]
    sent = api.asked[-1].body.sightings.observed
    assert [len(one.certificates) for one in sent] == [1, 1]
    assert "1 private keys" in result.stderr
    assert "new\t2" in result.stdout


def test_import_of_a_file_with_bad_rows_exits_1_and_keeps_them(api: FakeApi, run: Any, tmp_path: Path) -> None:
    api.on("GET", "/v1/sources/old", source(name="old", kind="import"))
    api.on("POST", "/v1/sources/old:import", Recorded(locations=0, changed=1, failed=1, certificates=0, fresh=0, gone=0))
    (tmp_path / "old.csv").write_text("Body,Where\nnothing,lb-1\n")
    result = run("source", "import", "old", "old.csv", "--column", "pem=body", "--column", "location=where", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["problems"] == 1
    assert api.asked[-1].body.sightings.observed[0].problem == "there is no certificate in it"


@pytest.mark.parametrize(("name", "content"), [("x.pem", "nothing"), ("no.pem", None), ("x.csv", "a,b\n"), ("x.der", "0,\0"), ("x", "")])
def test_import_of_what_is_no_inventory_is_refused(api: FakeApi, run: Any, tmp_path: Path, name: str, content: str | None) -> None:
    api.on("GET", "/v1/sources/old", source(name="old", kind="import"))
    if content is not None:
        (tmp_path / name).write_text(content)
    result = run("source", "import", "old", name)
    assert result.exit_code == 1
    assert name in result.stderr
    assert api.asked == [], "it leaves no source behind"


def test_a_dry_import_asks_nobody(api: FakeApi, run: Any, tmp_path: Path) -> None:
    (tmp_path / "bundle.pem").write_bytes(CHAIN)
    result = run("source", "import", "old", "bundle.pem", "--dry-run")
    assert (result.exit_code, api.asked) == (0, [])
    assert "certificates\t2" in result.stdout


@pytest.mark.parametrize("name", ["a/b", "../tokens", "?x=1", "a b"])
def test_a_name_is_one_segment_of_a_path_whatever_is_in_it(there: FakeApi, run: Any, name: str) -> None:
    assert run("source", "show", name).exit_code == 1
    assert [one.path for one in there.asked] == [f"/v1/sources/{quote(name, safe='')}"]


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_no_address_can_hold_is_not_asked_for(there: FakeApi, run: Any, name: str) -> None:
    result = run("source", "show", name)
    assert (result.exit_code, result.stderr) == (1, f"error: nothing is called {name!r} (not_found)\n")
    assert there.asked == []


def test_a_scan_that_goes_on_already_is_watched(there: FakeApi, run: Any) -> None:
    there.on("POST", "/v1/sources/office:run", HandclaspError(Kind.CONFLICT, "a scan of this source goes on"))
    there.on("GET", "/v1/scans", ScanList(items=[scan(state="running", ended_at=None)]))
    there.on("GET", "/v1/scans/k3v6q2mzt4w7ay5d", scan())
    result = run("source", "run", "office", "--watch")
    assert (result.exit_code, "goes on already: watching it" in result.stderr) == (0, True)
    for others, arguments in (
        ([scan()], ["--watch"]),
        ([scan(state="running", dry=True)], ["--watch"]),
        ([scan(state="running")], ["--watch", "--dry-run"]),
        ([scan(state="running")], []),
    ):
        there.on("GET", "/v1/scans", ScanList(items=others))
        assert run("source", "run", "office", *arguments).exit_code == 1


@pytest.mark.parametrize(("last", "code"), [(scan(), 0), (scan(failed=3), 1), (scan(state="stopped"), 1)])
def test_watching_a_scan_says_by_its_exit_code_how_it_went(there: FakeApi, run: Any, last: Scan, code: int) -> None:
    there.on("GET", f"/v1/scans/{last.id}", last)
    assert run("source", "scans", "--scan", last.id, "--watch").exit_code == code
    assert run("source", "scans", "--scan", last.id).exit_code == 0


def test_watching_outlives_a_server_that_is_away_and_ctrl_c_ends_only_the_watching(
    there: FakeApi, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [HandclaspError(Kind.UNAVAILABLE, "Connection refused"), scan()]
    there.on("GET", "/v1/scans/k3v6q2mzt4w7ay5d", lambda _body, _params: answers.pop(0))
    monkeypatch.setattr(source_view, "LINE_EVERY", 0)
    result = run("source", "run", "office", "--watch")
    assert (result.exit_code, "office: Connection refused" in result.stderr) == (0, True)

    def stopped(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(source_view, "sleep", stopped)
    result = run("source", "run", "office", "--watch")
    assert result.exit_code == 130
    assert "the scan goes on by itself: handclasp source scans --scan k3v6q2mzt4w7ay5d --watch" in result.stderr


ADDS = sorted({
    " ".join(line.replace("\\\n", " ").split())
    for text in [*EXAMPLES.values(), *(page.read_text() for page in (Path(__file__).parents[2] / "docs").glob("*.md"))]
    for line in re.findall(r"^handclasp source add (?:[^\\\n]|\\\n)+", text, re.MULTILINE)
})  # fmt: skip


def test_every_kind_has_an_example() -> None:
    assert set(EXAMPLES) == set(KINDS)
    assert len(ADDS) > len(KINDS)


@pytest.mark.parametrize("line", ADDS)
def test_every_example_in_help_and_guides_is_one_that_its_kind_takes(there: FakeApi, run: Any, line: str) -> None:
    result = run(*shlex.split(line, comments=True)[1:])
    assert result.exit_code == 0, result.output
    sent = there.asked[-1].body
    kind = load_kind(sent.kind)
    kind.check(read_settings(kind, sent.settings), Scope(**msgspec.to_builtins(sent.scope)))
