"""``handclasp rotate``: it asks before it does, watches to the end, and says who has not answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from click.testing import Result

from handclasp import wire
from handclasp.cli import rotation_view, rotations, terminal
from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError, Kind
from support.fake_api import FakeApi

NOW = 1_767_225_600_000
WEB, DB = "spiffe://example.org/prod/web", "dns:db.example.org"
Run = Callable[..., Result]


def pending(identity: str, state: str = "waiting", **fields: Any) -> wire.RotationPending:
    known: dict[str, Any] = {"sha256": "a1" * 32, "not_after": rfc3339(NOW + 3_600_000), "renew_before": rfc3339(NOW + 600_000)}
    return wire.RotationPending(identity=identity, state=state, **{**known, **fields})


def rotation(**fields: Any) -> wire.Rotation:
    known: dict[str, Any] = {
        "id": "k3v6", "what": "identity spiffe://example.org/prod/**", "reason": "drill", "by": "token:x (admin)",
        "created_at": rfc3339(NOW), "begins_at": rfc3339(NOW + 90_000), "ends_at": rfc3339(NOW + 600_000), "state": "running",
        "total": 1200, "replaced": 0, "gone": 0, "late": 0, "pending": [], "log_entry": 7,
    }  # fmt: skip
    return wire.Rotation(**{**known, **fields})


class World:
    """A server on which a rotation goes on, and a clock that moves while somebody waits."""

    def __init__(self, api: FakeApi, *steps: wire.Rotation | HandclaspError) -> None:
        self.now, self.steps, self.started = NOW, list(steps), 0
        api.on("POST", "/v1/rotations", self._post)
        api.on("GET", "/v1/rotations/k3v6", lambda _body, _params: self.steps.pop(0) if len(self.steps) > 1 else self.steps[0])

    def _post(self, body: wire.RotationRequest, _params: Any) -> wire.Rotation:
        if body.dry_run:
            return rotation(id="", state="planned", log_entry=None, notes=["issuing still signs"] if body.authority else [])
        self.started += 1
        return rotation()

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1000) + 4_000

    def clock(self) -> int:
        return self.now


@pytest.fixture
def world(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    def make(*steps: wire.Rotation | HandclaspError) -> World:
        made = World(api, *steps)
        monkeypatch.setattr(rotations, "sleep", made.sleep)
        monkeypatch.setattr(terminal, "clock", made.clock)
        return made

    return make


LATE = rotation(
    state="late", replaced=1197, gone=1, late=2,
    pending=[
        pending(WEB, "late", agent="spiffe://example.org/agent/web-1", agent_last_contact=rfc3339(NOW - 3_600_000)),
        pending(DB, "late"),
    ],
)  # fmt: skip


def test_it_says_what_it_would_do_and_does_nothing(run: Run, world: Callable[..., World]) -> None:
    made = world(rotation())
    done = run("rotate", "--issuer", "issuing", "--dry-run")
    assert (done.exit_code, made.started) == (0, 0)
    assert "1,200 certificates to replace" in done.stderr
    assert "about 2 a second" in done.stderr
    assert "issuing still signs" in done.stderr
    assert "state\tplanned" in done.stdout
    planned = json.loads(run("rotate", "--all", "--dry-run", "--json").stdout)
    assert (planned["state"], planned["total"]) == ("planned", 1200)


@pytest.mark.parametrize("arguments", [(), ("--all", "--identity", WEB), ("--identity", WEB, "--issuer", "a")])
def test_one_selection_is_needed(run: Run, world: Callable[..., World], arguments: tuple[str, ...]) -> None:
    made = world(rotation())
    done = run("rotate", *arguments)
    assert (done.exit_code, made.started) == (2, 0)
    assert "one of them" in done.stderr


def test_without_a_terminal_it_needs_a_yes(run: Run, world: Callable[..., World]) -> None:
    made = world(rotation())
    done = run("rotate", "--all")
    assert (done.exit_code, made.started) == (2, 0)
    assert "--yes" in done.stderr


@pytest.mark.usefixtures("at_terminal")
def test_at_a_terminal_it_asks(run: Run, world: Callable[..., World]) -> None:
    made = world(rotation(state="done", replaced=1200))
    done = run("rotate", "--all", stdin="n\n")
    assert (done.exit_code, made.started) == (1, 0)
    assert "replace 1,200 certificates?" in done.stderr
    assert "nothing was changed" in done.stderr
    done = run("rotate", "--all", stdin="y\n")
    assert (done.exit_code, made.started) == (0, 1)


def test_it_waits_until_all_are_replaced(run: Run, world: Callable[..., World]) -> None:
    away = HandclaspError(Kind.UNAVAILABLE, "the server does not answer")
    made = world(rotation(), rotation(replaced=400), away, rotation(replaced=900), rotation(replaced=1199, gone=1, state="done"))
    done = run("rotate", "--identity", WEB, "--yes", "--reason", "drill")
    assert (done.exit_code, made.started) == (0, 1)
    assert "rotation k3v6 has begun (log entry 7)" in done.stderr
    lines = [line for line in done.stderr.splitlines() if "replaced," in line]
    assert lines[0].startswith("0 of 1200 replaced, 1200 waiting, 0 late, 0 gone")
    assert any("the server does not answer" in line for line in lines)
    assert lines[-1].startswith("1199 of 1200 replaced, 0 waiting, 0 late, 1 gone")
    assert "state\tdone" in done.stdout


def test_what_has_not_answered_is_named(run: Run, world: Callable[..., World]) -> None:
    world(LATE)
    done = run("rotate", "--all", "--yes")
    assert done.exit_code == 1
    web, db = [line.split("\t") for line in done.stdout.splitlines() if line.startswith((WEB, DB))]
    assert web[:6] == [WEB, "a1" * 8, "late", rfc3339(NOW + 3_600_000), "spiffe://example.org/agent/web-1", rfc3339(NOW - 3_600_000)]
    assert "silent" in web[6]
    assert db[4:6] == ["", ""]
    assert f"handclasp cert revoke {'a1' * 32}" in db[6]
    assert "2 certificates of 1200 not replaced in time" in done.stderr
    done = run("rotate", "--all", "--yes", "--json")
    assert done.exit_code == 1
    assert msgspec.json.decode(done.stdout, type=wire.Rotation).pending == LATE.pending


def test_it_need_not_wait(run: Run, world: Callable[..., World]) -> None:
    made = world()
    done = run("rotate", "--all", "--yes", "--no-wait", "--json")
    assert (done.exit_code, made.started, json.loads(done.stdout)["id"]) == (0, 1, "k3v6")


def test_rotations_are_listed_and_shown(run: Run, api: FakeApi, world: Callable[..., World]) -> None:
    world(LATE)
    api.pages("/v1/rotations", [LATE])
    assert run("rotation", "list").stdout.startswith("k3v6\tidentity spiffe://example.org/prod/**\tlate\t1200\t1197\t1\t2\t")
    done = run("rotation", "show", "k3v6")
    assert done.exit_code == 1
    assert WEB in done.stdout
    assert run("rotation", "show", "nobody").exit_code == 1
    world(rotation(), rotation(state="done", replaced=1200))
    assert run("rotation", "show", "k3v6", "--wait").exit_code == 0


def test_ctrl_c_ends_the_looking_only(run: Run, world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    world(rotation())

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rotations, "sleep", interrupt)
    done = run("rotate", "--all", "--yes")
    assert done.exit_code == 130
    assert "goes on by itself: handclasp rotation show k3v6" in done.stderr


def test_the_live_view_draws_a_bar_and_who_is_waited_for(
    world: Callable[..., World], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    made = world()
    with rotation_view.make_view(rotation(), drawn=True) as view:
        made.now += 30_000
        view.show(rotation(replaced=300), "the server does not answer")
        assert view.rate == 10.0
        contact = rfc3339(NOW)
        view.show(rotation(replaced=1190, gone=8, late=1, pending=[pending("spiffe://x/\x1b[2J", agent="a", agent_last_contact=contact)]))
    text = capsys.readouterr().err
    for words in ("begins in 1 minute", "300 of 1200", "the server does not answer", "1190 replaced", "1 late", "8 gone", "last contact"):
        assert words in text
    assert "\x1b[2J" not in text


def test_when_the_time_is_over_the_live_view_names_who_is_waited_for(
    world: Callable[..., World], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    made = world()
    with rotation_view.make_view(rotation(), drawn=True) as view:
        view.show(rotation(replaced=3, pending=[pending(WEB, agent="a")]))
        assert WEB not in capsys.readouterr().err, "the list would be long"
        made.now += 601_000
        view.show(rotation(replaced=3, pending=[pending(WEB, agent="a")]))
    text = capsys.readouterr().err
    assert WEB in text
    assert "its time is over, still waiting" in text


@pytest.mark.parametrize(("heard", "advice"), [(-700_000, "silent"), (300_000, "silent"), (650_000, "agent show web-1")])
def test_what_is_late_is_blamed_on_silence_only_where_the_agent_was_not_heard(
    run: Run, world: Callable[..., World], heard: int, advice: str
) -> None:
    made = world(rotation(state="late", late=1, pending=[
        pending(WEB, "late", agent="spiffe://example.org/agent/web-1", agent_last_contact=rfc3339(NOW + heard))
    ]))  # fmt: skip
    made.now += 700_000
    assert advice in run("rotation", "show", "k3v6").stdout.splitlines()[-1]
