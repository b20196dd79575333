"""``handclasp owner`` and ``identity assign``: what is sent, what is shown, and exit codes that a script can go by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handclasp import wire
from handclasp.wire import ownership as o
from support.fake_api import FakeApi

WEB = "spiffe://example.org/prod/web"
ASSIGNMENT = o.Assignment(
    evidence="namespace", rule="ns", owner="shop", tier=None, environment="prod", detail="namespace label team=shop", confidence=80,
    at="2025-06-01T00:00:00Z", stands="disputed",
)  # fmt: skip


def owner(**changes: Any) -> o.Owner:
    known: dict[str, Any] = {
        "name": "shop", "kind": "team", "title": "Shop", "contact": "#shop", "escalation": "core", "directory": "backstage",
        "left_at": None,
        "created_at": "2025-06-01T00:00:00Z", "updated_at": "2025-06-01T00:00:00Z", "identities": 12, "overdue": 2,
    }  # fmt: skip
    return o.Owner(**(known | changes))


def found(**changes: Any) -> o.Assignments:
    known: dict[str, Any] = {"identity": WEB, "owner": "shop", "tier": "1", "environment": "prod", "owner_left": False, "known": True}
    return o.Assignments(**(known | {"items": [ASSIGNMENT]} | changes))


@pytest.fixture
def there(api: FakeApi) -> FakeApi:
    api.on("GET", "/v1/owners", o.OwnerList(items=[owner(), owner(name="gone", left_at="2025-12-01T00:00:00Z")]))
    api.on("GET", "/v1/owners/shop", owner())
    api.on("PUT", "/v1/owners/shop", wire.Done(log_entry=7))
    api.on("DELETE", "/v1/owners/shop", wire.Done(log_entry=8))
    api.on("GET", "/v1/ownership", o.Ownership(text="version: 1\n", sha256="ab" * 32, applied_at="2025-12-01T00:00:00Z", applied_by="me",
                                               sweep=None, waiting=0, unowned=3, overdue=2, contested=1))  # fmt: skip
    api.on("POST", "/v1/ownership:test", found())
    return api


def test_list_show_add_remove(there: FakeApi, run: Any) -> None:
    listed = run("owner", "list")
    assert listed.exit_code == 0
    assert "backstage" in listed.stdout
    assert len(json.loads(run("owner", "list", "--json").stdout)["items"]) == 2
    assert "#shop" in run("owner", "show", "shop").stdout
    assert json.loads(run("owner", "show", "shop", "--json").stdout)["overdue"] == 2
    assert "log entry 7" in run("owner", "add", "shop", "--title", "Shop", "--escalation", "core").stderr
    assert there.asked[-1].body == o.OwnerEntry(name="shop", title="Shop", escalation="core")
    assert json.loads(run("owner", "remove", "shop", "--json").stdout) == {"log_entry": 8}


@pytest.mark.parametrize(
    ("name", "text", "directory"),
    [
        ("owners.csv", "name\nshop\n", "csv"),
        ("catalog-info.yaml", "kind: Group\nmetadata: {name: shop}\n", "backstage"),
        ("CODEOWNERS", "* @acme/shop\n", "codeowners"),
        ("o.json", '{"owners": [{"name": "shop"}]}', "json"),
    ],
)
def test_import(there: FakeApi, run: Any, tmp_path: Path, name: str, text: str, directory: str) -> None:
    (tmp_path / name).write_text(text)
    changes = [o.OwnerChange(change="added", owner="shop"), o.OwnerChange(change="left", owner="gone", detail="it is not there")]
    there.on(
        "PUT",
        "/v1/owners",
        o.OwnerImported(directory=directory, changes=changes, owners=1, components=0, paths=0, catalogue_changed=0, notes=["a note"]),
    )
    result = run("owner", "import", name, "--dry-run")
    assert result.exit_code == 0, result.stderr
    sent = there.asked[-1].body
    assert (sent.directory, [one.name for one in sent.owners], sent.dry) == (directory, ["shop"], True)
    assert "+ added shop" in result.stdout
    assert "- left gone" in result.stdout
    assert "would change: 2 owners" in result.stderr
    assert "a note" in result.stderr
    assert json.loads(run("owner", "import", name, "--json").stdout)["notes"] == ["a note"]
    assert there.asked[-1].body.dry is False


def test_a_bad_file_is_not_sent(there: FakeApi, run: Any, tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("name,what\na,b\n")
    result = run("owner", "import", "o.csv")
    assert result.exit_code == 1
    assert "o.csv:1" in result.stderr
    assert run("owner", "import", "owners.txt").exit_code == 2
    assert there.asked == []


def test_ask(there: FakeApi, run: Any) -> None:
    asked = o.Asked(owner="shop", contact="#shop", secret="hcc_x", path="/confirm/hcc_x", identities=[WEB], more=3,
                    expires_at="2026-01-15T00:00:00Z", log_entry=9)  # fmt: skip
    there.on("POST", "/v1/owners/shop:ask", asked)
    result = run("owner", "ask", "shop", "--identity", WEB, "--expires", "2d")
    assert result.stdout == "https://handclasp.test/confirm/hcc_x\n"
    assert "3 more" in result.stderr
    assert "hcc_x" not in result.stderr
    assert there.asked[-1].body == o.AskRequest(identities=[WEB], expires="2d")
    assert json.loads(run("owner", "ask", "shop", "--json").stdout)["link"].endswith("/confirm/hcc_x")


def test_needing(there: FakeApi, run: Any) -> None:
    item = o.OwnershipItem(identity=WEB, owner=None, tier=None, environment=None, guesses=[ASSIGNMENT])
    there.on("GET", "/v1/ownership/needing", o.OwnershipItems(items=[item]))
    result = run("owner", "needing")
    assert "shop (namespace 80 %)" in result.stdout
    assert there.asked[-1].params["need"] == "owner"
    assert json.loads(run("owner", "needing", "decision", "--json").stdout)["items"][0]["identity"] == WEB
    assert run("owner", "needing", "money").exit_code == 2


def test_rules(there: FakeApi, run: Any, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("version: 1\n")
    shown = run("owner", "rules", "show")
    assert shown.stdout == "version: 1\n"
    assert "3 without owner, 1 contested, 2 to be confirmed again" in shown.stderr
    change = wire.PolicyChange(change="added", subject="rule a", after="x")
    there.on("POST", "/v1/ownership:diff", wire.PolicyDiff(changes=[change], sha256="x"))
    there.on("PUT", "/v1/ownership", wire.PolicyDiff(changes=[change], sha256="x", applied=True, log_entry=3))
    assert run("owner", "rules", "diff", "-f", "r.yaml").exit_code == 0
    assert run("owner", "rules", "diff", "-f", "r.yaml", "--exit-code").exit_code == 1
    applied = run("owner", "rules", "apply", "-f", "r.yaml", "--wait")
    assert "+ rule a" in applied.stdout
    assert "log entry 3" in applied.stderr
    assert there.asked[-2].body == o.OwnershipDocument(text="version: 1\n")


def test_rules_test(there: FakeApi, run: Any, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("version: 1\n")
    result = run("owner", "rules", "test", WEB, "-f", "r.yaml", "--label", "team=shop", "--tag", "a=b", "--namespace", "x")
    assert result.exit_code == 0
    assert "namespace label team=shop" in result.stdout
    facts = {"workload_labels": {"team": "shop"}, "namespace": "x", "tags": {"a": "b"}}
    assert there.asked[-1].body == o.OwnershipTest(identity=WEB, text="version: 1\n", facts=facts)
    there.on("POST", "/v1/ownership:test", found(owner=None, items=[]))
    assert run("owner", "rules", "test", WEB).exit_code == 1
    assert there.asked[-1].body == o.OwnershipTest(identity=WEB)
    assert run("owner", "rules", "test", WEB, "--label", "x").exit_code == 2


def test_assign_and_owners(there: FakeApi, run: Any) -> None:
    path = "/v1/identities/spiffe%3A%2F%2Fexample.org%2Fprod%2Fweb"
    there.on("POST", f"{path}:assign", wire.Done(log_entry=11))
    there.on("GET", f"{path}:assignments", found(owner_left=True))
    result = run("identity", "assign", WEB, "--owner", "shop", "--tier", "1", "--reason", "agreed")
    assert "log entry 11" in result.stderr
    assert there.asked[-1].body == o.AssignRequest(owner="shop", tier="1", reason="agreed")
    assert run("identity", "assign", WEB, "--reason", "x").exit_code == 2
    assert run("identity", "assign", WEB, "--owner", "shop").exit_code == 2
    shown = run("identity", "owners", WEB)
    assert "in no directory any more" in shown.stdout
    assert json.loads(run("identity", "owners", WEB, "--json").stdout)["items"][0]["stands"] == "disputed"


@pytest.mark.parametrize(
    ("name", "text"), [("o.csv", ""), ("o.csv", "name,kind\n"), ("c.yaml", "\n"), ("CODEOWNERS", "# nobody\n"), ("o.json", "{}")]
)
def test_a_file_with_nothing_in_it_has_nobody_leave_unless_that_is_meant(
    there: FakeApi, run: Any, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    result = run("owner", "import", name)
    assert (result.exit_code, "--allow-empty" in result.stderr) == (1, True)
    assert there.asked == []
    there.on("PUT", "/v1/owners", o.OwnerImported(directory="csv", changes=[], owners=0, components=0, paths=0, catalogue_changed=0))
    assert run("owner", "import", name, "--allow-empty").exit_code == 0
    assert there.asked[-1].body.owners == []
