"""Directories from outside: tables, Backstage, CODEOWNERS, JSON; and what importing them means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handclasp.errors import Kind
from handclasp.ownership.catalogue import MAX_PATH, Catalogue, Item, path_regex
from handclasp.ownership.directories import READERS, read_backstage, read_codeowners, read_csv, read_json
from handclasp.ownership.names import plain_owner
from handclasp.ownership.nearest import Nearest
from handclasp.ownership.owners import plan_import
from handclasp.wire.ownership import CatalogueEntry, OwnerEntry, OwnerImport
from support.errors import allowing, refused

BACKSTAGE = """
apiVersion: backstage.io/v1alpha1
kind: Group
metadata: {name: payments, title: Payments}
spec: {type: team, profile: {displayName: Payment people, email: pay@example.org}, parent: core, children: []}
---
apiVersion: backstage.io/v1alpha1
kind: User
metadata: {name: jane, namespace: emea}
spec: {memberOf: [payments]}
--- # another
kind: Component
metadata:
  name: web
  annotations: {backstage.io/kubernetes-id: web-prod, example.org/environment: Prod}
  tags: [go, tier-1]
spec: {type: service, owner: "group:default/payments", lifecycle: production}
---
kind: System
metadata: {name: web, labels: {tier: "3"}}
spec: {owner: core}
---
kind: Location
metadata: {name: x}
spec: {targets: [./y]}
"""


def test_backstage() -> None:
    found = read_backstage([("catalog-info.yaml", BACKSTAGE)])
    assert found.owners == [
        OwnerEntry(name="payments", title="Payment people", contact="pay@example.org", escalation="core"),
        OwnerEntry(name="emea.jane", kind="person"),
    ]
    web = {"kind": "component", "owners": ["payments"], "tier": "1", "environment": "prod"}
    assert found.catalogue == [CatalogueEntry(name="web", **web), CatalogueEntry(name="web-prod", **web)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: Group\nmetadata: {}\n", "metadata.name"),
        ("kind: [\n", "not YAML"),
        ("a: &a [x]\nb: *a\n", "anchors"),
        ("x: 1\n---\n---\n" + "[" * 50 + "]" * 50, "nested too deeply"),
    ],
)
def test_backstage_refused(text: str, words: str) -> None:
    with refused(Kind.BAD_REQUEST, "catalog.yaml", words):
        read_backstage([("catalog.yaml", text)])


def test_tables() -> None:
    owners = '\ufeffName;Kind;Contact;Escalation\r\npayments;;\'#pay\';core\r\n\r\n"core";team;"a;""b";\r\n'
    items = "component,owner,tier,environment\nweb,payments core,1,Prod\napi,@acme/core,,\n"
    paths = "path\towner\n/services/web/\tpayments\n"
    found = read_csv([("o.csv", owners), ("c.csv", items), ("p.csv", paths)])
    assert [(one.name, one.kind, one.contact, one.escalation) for one in found.owners] == [
        ("payments", "team", "'#pay'", "core"),
        ("core", "team", 'a;"b', None),
    ]
    assert [(one.kind, one.name, one.owners, one.tier, one.environment) for one in found.catalogue] == [
        ("component", "web", ["payments", "core"], "1", "prod"),
        ("component", "api", ["core"], None, None),
        ("path", "/services/web/", ["payments"], None, None),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,nome\na,b\n", "t.csv:1: the first line"),
        ("name,name\na,b\n", "the first line"),
        ("component,path,owner\na,b,c\n", "the first line"),
        ("name\na\na\n", "t.csv:3: a is there twice"),
        ("name,kind\na,alien\n", "t.csv:2: kind is"),
        ("name\n=cmd()\n", "t.csv:2: a name"),
        ("name\na,b\n", "2 cells under 1"),
        ('name\n"a\n', "not a table"),
        ("component,owner\nweb,\n,x\n", "component and owner"),
        ("component,owner,tier\nweb,a,9\n", "tier is 0 to 3"),
        ("name\na\0b\n", "NUL"),
        ("name\n" + "x\n" * 200_001, "larger"),
    ],
)
def test_tables_refused(text: str, words: str) -> None:
    with refused(Kind.BAD_REQUEST, words):
        read_csv([("t.csv", text)])


def test_codeowners() -> None:
    text = "# all\n*  @acme/core jane@example.org # why\n/docs/ @joe\n[Section]\n!x @y\n/a\\ b.go @acme/core\nlonely\n/docs/ @acme/docs\n"
    found = read_codeowners([("CODEOWNERS", text)])
    assert [(one.name, one.kind, one.contact) for one in found.owners] == [
        ("core", "team", "@acme/core"),
        ("jane@example.org", "person", "jane@example.org"),
        ("joe", "person", ""),
        ("docs", "team", "@acme/docs"),
    ]
    assert [(one.name, one.owners) for one in found.catalogue] == [
        ("*", ["core", "jane@example.org"]),
        ("/a b.go", ["core"]),
        ("lonely", []),
        ("/docs/", ["docs"]),
    ]
    with refused(Kind.BAD_REQUEST, "C:1: 'x y'"):
        read_codeowners([("C", "/a x\\ y")])


@pytest.mark.parametrize(
    ("pattern", "path", "covered"),
    [
        ("*", "a/b/c.go", True),
        ("*.js", "src/a.js", True),
        ("*.js", "src/a.ts", False),
        ("/src/", "src/a/b", True),
        ("/src/", "lib/src/a", False),
        ("src/", "lib/src/a", True),
        ("docs/*", "docs/a", True),
        ("docs/*", "docs/a/b", False),
        ("apps/web", "apps/web/main.go", True),
        ("apps/web", "apps/website/main.go", False),
        ("apps/web", "x/apps/web/main.go", False),
        ("/a/**/z", "a/z", True),
        ("/a/**/z", "a/b/c/z/y", True),
        ("/a/**", "a/b", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a.c", "abc", False),
        ("/", "anything", True),
    ],
)
def test_paths(pattern: str, path: str, covered: bool) -> None:
    regex = path_regex(pattern)
    assert regex is not None
    assert (regex.fullmatch(path) is not None) == covered


def test_the_last_path_counts_and_nobody_is_nobody() -> None:
    found = Catalogue((Item("c", "path", "*", ("a",), place=0), Item("c", "path", "/x/", (), place=1), Item("d", "path", "x/y", ("b",))))
    assert [item.owners for item in found.path("/z")] == [("a",)]
    assert [item.owners for item in found.path("x/y")] == [("b",)]


def test_json() -> None:
    found = read_json([("o.json", '{"owners": [{"name": "a"}], "catalogue": [{"kind": "path", "name": "/x", "owners": ["a"]}]}')])
    assert (found.owners[0].name, found.catalogue[0].owners) == ("a", ["a"])
    for text in ("{", '{"owner": []}', '{"owners": [{"name": "a b"}]}', "[" * 100_000):
        with refused(Kind.BAD_REQUEST, "o.json"):
            read_json([("o.json", text)])


@given(
    st.sampled_from(sorted(READERS)),
    st.text(max_size=200) | st.text(alphabet='name,;"\n\t@/ \\#*-:kindGroupmetadata{}[]&*!', max_size=200),
)
def test_any_text_is_a_directory_or_a_bad_request(reader: str, text: str) -> None:
    with allowing(Kind.BAD_REQUEST):
        found = READERS[reader]([("file", text)], "x")
        assert all(plain_owner(owner.name) for owner in found.owners)


@example("*")
@given(st.text(max_size=40))
def test_any_pattern_of_paths_is_one_or_none(text: str) -> None:
    regex = path_regex(text)
    assert regex is None or regex.fullmatch("") is None


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("**/*a*/**/*b", "a" * 60 + "/" + "a/" * 200),
        ("x*a*a*a*a*b", "x" + "a" * MAX_PATH),
        ("*a" * 400 + "b", "a" * MAX_PATH),
        ("**/a*a/" * 60 + "b", "aaa/" * (MAX_PATH // 4)),
        ("?" * 400 + "*" + "?" * 400 + "b", "a" * MAX_PATH),
    ],
)
def test_no_pattern_is_slow(pattern: str, path: str) -> None:
    """Each star more would multiply the time by the length of the path, if what came before it were looked for again."""
    regex = path_regex(pattern)
    assert regex is not None
    assert regex.fullmatch(path) is None


def test_a_path_of_any_length_is_nobodys() -> None:
    found = Catalogue((Item("c", "path", "*", ("a",)),))
    assert found.path("a" * MAX_PATH)
    assert not found.path("a" * (MAX_PATH + 1))


PIECES = st.lists(st.sampled_from(["a", "b", "ab", "/", "*", "?", "**", "/**/", "**/"]), max_size=7).map("".join)
PATHS = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=5)


@given(st.lists(PIECES, max_size=6), PATHS)
def test_the_catalogue_finds_what_comparing_each_pattern_finds(patterns: list[str], path: list[str]) -> None:
    whole = "/".join(path)
    rules = [(pattern, path_regex(pattern)) for pattern in patterns]
    covering = [place for place, (_, regex) in enumerate(rules) if regex is not None and regex.fullmatch(whole)]
    found = Catalogue([Item("c", "path", pattern, (f"o{place}",), place=place) for place, pattern in enumerate(patterns)]).path(whole)
    assert [item.owners for item in found] == [(f"o{place}",) for place in covering[-1:]]


# --- importing ------------------------------------------------------------------------------------------------------------------------


def entry(name: str, **fields: Any) -> OwnerEntry:
    return OwnerEntry(name=name, **fields)


def rows(*owners: dict[str, Any]) -> dict[str, Any]:
    known = {"kind": "team", "title": "", "contact": "", "escalation": None, "directory": "d", "left_at": None, "created_at": 1}
    return {owner["name"]: SimpleNamespace(**(known | owner)) for owner in owners}


def changes(wanted: OwnerImport, owners: dict[str, Any]) -> dict[str, str]:
    return {change.owner: change.change for change in plan_import(wanted, owners, {}, 5).changes}


def test_what_an_import_does() -> None:
    there = rows(
        {"name": "same"},
        {"name": "other"},
        {"name": "gone"},
        {"name": "old", "left_at": 3},
        {"name": "hand", "directory": ""},
        {"name": "back", "left_at": 3},
        {"name": "theirs", "directory": "e"},
        {"name": "left-there", "directory": "e", "left_at": 3},
    )
    wanted = OwnerImport(
        directory="d",
        owners=[
            entry(name, title="x" if name == "other" else "") for name in ("same", "other", "new", "back", "hand", "theirs", "left-there")
        ],
    )
    assert changes(wanted, there) == {
        "other": "changed",
        "new": "added",
        "back": "back",
        "hand": "kept",
        "theirs": "kept",
        "left-there": "back",
        "gone": "left",
    }


def test_circles_are_refused_and_unknown_ones_left_out() -> None:
    with refused(Kind.BAD_REQUEST, "circle: a -> b -> c -> a"):
        plan_import(
            OwnerImport(directory="d", owners=[entry("a", escalation="b"), entry("b", escalation="c")]),
            rows({"name": "c", "escalation": "a", "directory": ""}),
            {},
            5,
        )
    with refused(Kind.BAD_REQUEST, "circle"):
        plan_import(OwnerImport(directory="d", owners=[entry("a", escalation="a")]), {}, {}, 5)
    plan = plan_import(OwnerImport(directory="d", owners=[entry("a", escalation="nobody")]), {}, {}, 5)
    assert plan.put[0]["escalation"] is None
    assert "nobody" in plan.notes[0]
    with refused(Kind.BAD_REQUEST, "twice"):
        plan_import(OwnerImport(directory="d", owners=[entry("a"), entry("a")]), {}, {}, 5)


NAMES = st.sampled_from(["a", "b", "c", "d"])
ENTRIES = st.lists(
    st.builds(entry, NAMES, kind=st.sampled_from(["team", "person"]), title=st.sampled_from(["", "x"])), unique_by=lambda one: one.name
)
ITEMS = st.lists(
    st.builds(CatalogueEntry, kind=st.sampled_from(["component", "path"]), name=NAMES, owners=st.lists(NAMES, max_size=2)),
    unique_by=lambda one: (one.kind, one.name),
)


def applied(wanted: OwnerImport, owners: dict[str, Any], items: dict[Any, Any], now: int) -> tuple[dict[str, Any], dict[Any, Any]]:
    plan = plan_import(wanted, owners, items, now)
    owners = owners | {row["name"]: SimpleNamespace(**row) for row in plan.put}
    for name in plan.left:
        owners[name] = SimpleNamespace(**(vars(owners[name]) | {"left_at": now}))
    items = {key: row for key, row in items.items() if key not in plan.items_gone}
    return owners, items | {(row["kind"], row["name"]): SimpleNamespace(**row) for row in plan.items_put}


@given(st.lists(st.tuples(st.sampled_from(["d", "e"]), ENTRIES, ITEMS), min_size=1, max_size=4))
def test_the_same_again_changes_nothing_and_nobody_is_lost(imports: list[tuple[str, Any, Any]]) -> None:
    owners: dict[str, Any] = {}
    items: dict[str, dict[Any, Any]] = {"d": {}, "e": {}}
    for now, (directory, entries, catalogue) in enumerate(imports, 1):
        wanted = OwnerImport(directory=directory, owners=entries, catalogue=catalogue)
        before = set(owners)
        owners, items[directory] = applied(wanted, owners, items[directory], now)
        assert before <= set(owners)
        assert {one.name for one in entries} <= {name for name, row in owners.items() if row.left_at is None}
        assert set(items[directory]) == {(one.kind, one.name) for one in catalogue}
        assert plan_import(wanted, owners, items[directory], now + 100).is_empty


def test_names_that_are_nearly_an_owners() -> None:
    near = Nearest(["payments", "search-team", "web", "core"])
    assert near.of("spiffe://example.org/ns/payment/sa/x")[0][:2] == ("payments", "payment")
    assert near.of("dns:search.example.org") == [] or near.of("dns:search.example.org")[0][0] == "search-team"
    assert near.of("spiffe://example.org/zzz") == []
    assert near.of("") == []
    assert all(sure < 30 for _, _, sure in near.of("spiffe://example.org/payments"))
