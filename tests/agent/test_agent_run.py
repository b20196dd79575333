"""A whole agent against a server in this process: enrolment, delivery, renewal, outages, refusals."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from handclasp.agent import check, enroll, forget, plan, run, status
from handclasp.agent.state import StateDirectory
from handclasp.client import TLSContext
from handclasp.client.settings import ClientSettings
from handclasp.errors import HandclaspError, Kind
from support.agents import WEB, configure, prepare, running, start_process
from support.errors import refused
from support.fake_server import DOMAIN, FakeAuthority, FakeServer, Fault, pem
from support.tls import ask, connected, echo
from support.waiting import eventually

AGENT = f"spiffe://{DOMAIN}/agent/host1"
FILES = "[{directory: tls}]"


def delivered(root: Path) -> str:
    with contextlib.suppress(HandclaspError):
        return TLSContext.from_directory(root / "tls").sha256
    return ""


def state_of(root: Path, identity: str = WEB) -> str:
    return next(one.state for one in status(root / "state").identities if one.identity == identity)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as one:
        yield one
        one.assert_content()


def test_enrol_deliver_and_report(server: FakeServer, tmp_path: Path) -> None:
    config = prepare(server, tmp_path, FILES)
    assert [(one.identity, one.actions[0][:6]) for one in plan(config, tmp_path / "state")] == [(WEB, "issue:")]
    with running(config):
        eventually(lambda: delivered(tmp_path) and delivered(tmp_path) == server.newest(WEB))
        eventually(lambda: any(one.state == "ok" for _, report in server.reports for one in report.identities))
        assert status(tmp_path / "state").healthy
    peer, report = server.reports[-1]
    assert server.records[peer].identity == AGENT
    assert [(one.identity, one.sha256, one.state) for one in report.identities] == [(WEB, server.newest(WEB), "ok")]
    assert not status(tmp_path / "state").running
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (StateDirectory(tmp_path / "state").own.home / "current" / "key.pem").stat().st_mode & 0o777 == 0o600
    assert plan(config, tmp_path / "state")[0].actions == ["renew: its renewal time has come"]


def test_a_restart_never_issues_again_nor_draws_again(server: FakeServer, tmp_path: Path) -> None:
    config = prepare(server, tmp_path, FILES)
    with running(config):
        eventually(lambda: delivered(tmp_path) and state_of(tmp_path) == "ok")
    before = status(tmp_path / "state").identities
    for _ in range(3):
        with running(config):
            reports = len(server.reports)
            eventually(lambda reports=reports: len(server.reports) > reports)
    assert status(tmp_path / "state").identities == before
    assert server.count("/v1/certificates", "POST") == 2


def test_certificates_of_seconds_rotate_under_traffic(tmp_path: Path) -> None:
    # Renewed after two seconds and good for many: a machine that is busy lets nothing end.
    with FakeServer(ttl=20, window=(0.1, 0.12)) as server:
        config = prepare(server, tmp_path, FILES)
        with running(config):
            eventually(lambda: delivered(tmp_path))
            tls, seen, requests = TLSContext.from_directory(tmp_path / "tls"), set(), 0
            client = tls.client_context(peers=[WEB])
            with echo(tls.server_context(peers=[WEB])) as (port, _):
                until = time.monotonic() + 60
                while len(seen) < 4 and time.monotonic() < until:
                    with connected(client, port) as connection:
                        seen.add(ask(connection))
                    requests += 1
                    time.sleep(0.02)
            assert len(seen) == 4
            assert requests > 20
            eventually(lambda: len({peer for peer, _ in server.reports}) >= 2, what="the agent's own certificate was renewed too")
        assert server.count(":renew", "POST") >= 4
        assert server.count("/v1/certificates", "POST") - server.count(":renew", "POST") == 2
        server.assert_content()


def test_while_the_server_is_away_the_last_good_certificate_stays_and_nothing_hammers(tmp_path: Path) -> None:
    with FakeServer(ttl=20, window=(0.08, 0.12)) as server:
        config = prepare(server, tmp_path, FILES)
        with running(config):
            eventually(lambda: delivered(tmp_path))
            first = delivered(tmp_path)
            server.faults.append(Fault("/v1", 10_000, 0))
            eventually(lambda: state_of(tmp_path) == "overdue")
            assert delivered(tmp_path) == first
            eventually(lambda: "cannot be reached" in (status(tmp_path / "state").identities[1].last_failure or ""))
            asked = [seen.at for seen in server.seen if seen.path.endswith(":renew") and server.records[seen.peer].identity == WEB]
            server.faults.clear()
            eventually(lambda: delivered(tmp_path) not in ("", first))
            eventually(lambda: state_of(tmp_path) == "ok")
        # A quarter of a second lies between two tries at least; one that reached the server late is not two that came together.
        assert len(asked) <= (asked[-1] - asked[0]) / 0.25 + 2
        server.assert_content()


def test_an_answer_that_was_lost_is_got_over(server: FakeServer, tmp_path: Path) -> None:
    server.ttl, server.window = 20, (0.1, 0.12)
    config = prepare(server, tmp_path, FILES)
    server.faults.append(Fault(":renew", 2, 0, after_work=True))
    with running(config):
        eventually(lambda: [one.superseded for one in server.records.values() if one.identity == WEB][:1] == [True])
        eventually(lambda: delivered(tmp_path) == server.newest(WEB) and len(server.records) >= 4)


def test_a_revoked_certificate_is_not_replaced_until_a_person_says_so(server: FakeServer, tmp_path: Path) -> None:
    config = prepare(server, tmp_path, FILES)
    with running(config):
        eventually(lambda: delivered(tmp_path) and state_of(tmp_path) == "ok")
        first = server.newest(WEB)
        server.records[first].revoked = True
        eventually(lambda: state_of(tmp_path) == "failed")
        assert "revoked" in (status(tmp_path / "state").identities[1].last_failure or "")
        with refused(Kind.CONFLICT):
            forget(tmp_path / "state", WEB)
    assert server.newest(WEB) == first
    forget(tmp_path / "state", WEB)
    with running(config):
        eventually(lambda: delivered(tmp_path) == server.newest(WEB) != first)
        eventually(lambda: state_of(tmp_path) == "ok")


def test_the_server_can_pull_a_renewal_forward(server: FakeServer, tmp_path: Path) -> None:
    config = prepare(server, tmp_path, FILES)
    with running(config):
        eventually(lambda: delivered(tmp_path))
        first = server.newest(WEB)
        server.records[first].renew_after = server.records[first].renew_before = 0
        server.records[first].renew_before = 1
        # A new certificate settles for a while first, 30 s at most: shortened here, where an hour's certificate is tested in seconds.
    state = StateDirectory(tmp_path / "state").identity(WEB)
    kept = state.load()
    kept.next_attempt = 0
    state.save(kept)
    with running(config):
        eventually(lambda: delivered(tmp_path) not in ("", first))
    assert server.count(":renew", "POST") == 1


def test_changed_anchors_are_delivered_with_the_same_certificate(server: FakeServer, tmp_path: Path) -> None:
    config = prepare(server, tmp_path, "[{directory: tls, crl: true}]")
    bundle = tmp_path / "tls" / "current" / "bundle.pem"
    with running(config):
        eventually(bundle.exists)
        assert (bundle.parent / "crl.pem").read_text() == server.crl
        first, new = delivered(tmp_path), FakeAuthority("Next").root
        server.extra_roots.append(new)
        eventually(lambda: pem(new) in bundle.read_text() and pem(server.authority.root) in bundle.read_text())
        server.crl = server.crl.replace("AAAA", "BBBB")
        eventually(lambda: "BBBB" in (bundle.parent / "crl.pem").read_text())
        assert delivered(tmp_path) == first


def test_a_failing_delivery_is_a_finding_and_is_tried_again(server: FakeServer, tmp_path: Path) -> None:
    good = tmp_path / "good"
    config = prepare(server, tmp_path, f"[{{directory: tls, validate: [test, -e, {good}]}}]")
    with running(config):
        eventually(
            lambda: any(
                one.state == "failed" and "validate" in (one.last_failure or "")
                for _, report in server.reports
                for one in report.identities
            )
        )
        assert [target.state for target in status(tmp_path / "state").identities[1].targets] == ["failed"]
        good.touch()
        eventually(lambda: server.reports[-1][1].identities[0].state == "ok")
    assert server.count("/v1/certificates", "POST") == 2, "the same certificate was delivered again"


def test_other_names_are_another_certificate(server: FakeServer, tmp_path: Path) -> None:
    config = prepare(server, tmp_path, FILES)
    with running(config):
        eventually(lambda: delivered(tmp_path))
    first = server.newest(WEB)
    config.write_text(config.read_text().replace("[localhost]", "[localhost, web.example.org]"))
    assert plan(config, tmp_path / "state")[0].actions[0] == "issue: the configuration of the identity has changed"
    state = StateDirectory(tmp_path / "state").identity(WEB)
    kept = state.load()
    kept.next_attempt = 0
    state.save(kept)
    with running(config):
        eventually(lambda: delivered(tmp_path) not in ("", first))
    assert server.records[server.newest(WEB)].dns == ["localhost", "web.example.org"]


def test_an_agent_whose_own_certificate_has_ended_says_so_and_can_enrol_again(tmp_path: Path) -> None:
    with FakeServer(ttl=1.0) as server:
        config = prepare(server, tmp_path)
        eventually(lambda: state_of(tmp_path, AGENT) == "failed")
        with running(config):
            eventually(lambda: "expired" in str(status(tmp_path / "state").identities[1].last_failure))
        server.ttl = 3600
        prepare(server, tmp_path, FILES)
        with running(config):
            eventually(lambda: delivered(tmp_path))


def test_only_one_agent_at_a_time(server: FakeServer, tmp_path: Path) -> None:
    config = prepare(server, tmp_path)
    state = StateDirectory(tmp_path / "state")
    with state.lease():
        with refused(Kind.CONFLICT):
            run(config, tmp_path / "state")
        with refused(Kind.CONFLICT):
            prepare(server, tmp_path)
    with state.lease():
        pass


def test_enrolment_refusals(server: FakeServer, tmp_path: Path) -> None:
    settings = ClientSettings(server.url, server.root_fingerprint)
    with refused(Kind.TOKEN_UNKNOWN):
        enroll(settings, "nonsense", tmp_path / "state", "host1")
    with refused(Kind.BAD_SETTING, "token"):
        enroll(settings, None, tmp_path / "state", "host1")
    with refused(Kind.BAD_SETTING, "name"):
        enroll(settings, "t", tmp_path / "state", "a/b")
    with refused(Kind.BAD_SETTING, "trust domain"):
        enroll(settings, "t", tmp_path / "state", "host1", trust_domain="other.org")
    with refused(Kind.VERIFY_FAILED):
        enroll(ClientSettings(server.url, "sha256:" + "0" * 64), "t", tmp_path / "state", "host1")
    config = configure(tmp_path)
    assert check(config).identities
    for read in (lambda: status(tmp_path / "state"), lambda: run(config, tmp_path / "state")):
        with refused(Kind.BAD_SETTING, "no agent is enrolled"):
            read()


def test_many_identities_in_one_agent(server: FakeServer, tmp_path: Path) -> None:
    more = "".join(f"  - identity: spiffe://{DOMAIN}/n/{number}\n    targets: [{{directory: t{number}}}]\n" for number in range(40))
    with running(prepare(server, tmp_path, more=more)):
        eventually(lambda: server.reports and sum(one.state == "ok" for one in server.reports[-1][1].identities) == 41)
    assert len(list(tmp_path.glob("t*/current/key.pem"))) == 40


def test_a_hang_up_reads_the_configuration_again_and_a_bad_one_is_not_taken(server: FakeServer, tmp_path: Path) -> None:
    config = prepare(server, tmp_path, FILES)
    with start_process(config) as process:
        eventually(lambda: delivered(tmp_path) and server.reports)
        config.write_text("nonsense: 1\n")
        process.send_signal(signal.SIGHUP)
        reports = len(server.reports)
        eventually(lambda: len(server.reports) > reports + 1)
        configure(tmp_path, "[{directory: elsewhere}]")
        process.send_signal(signal.SIGHUP)
        eventually((tmp_path / "elsewhere" / "current" / "key.pem").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert b"nonsense is not known here" in process.stderr.read()
    assert server.count("/v1/certificates", "POST") == 2
