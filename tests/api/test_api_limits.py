"""Rate limits, and what is counted: a server with small limits, and the metrics of the one that all tests share."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from handclasp.errors import Kind
from support.live import Answer, Client, Live, serving


def limited(answers: list[Answer]) -> list[Answer]:
    found = [answer for answer in answers if answer.status == 429]
    for answer in found:
        answer.refused(Kind.RATE_LIMITED)
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    return found


def test_who_asks_too_often_is_told_to_wait(tmp_path: Path) -> None:
    """Ten requests a second, bursts of twenty: the first twenty or so are answered, then 429; strangers are counted by address."""
    with serving(tmp_path, "--rate-principal", "10", "--rate-refused", "5") as live, live.client(live.admin_token) as admin:
        other = live.token("policy:read")
        answers = [admin("GET", "/v1/policy") for _ in range(60)]
        assert {answer.status for answer in answers} == {200, 429}
        assert all(answer.status == 200 for answer in answers[:15])
        assert limited(answers)
        with live.client(other) as client:
            client.get("/v1/policy")  # each principal by itself
        with live.client() as nobody:
            refused = [nobody("GET", "/v1/policy") for _ in range(60)]
            assert {answer.status for answer in refused} == {401, 429}
            assert all(answer.status == 401 for answer in refused[:8])
            assert limited(refused)
            nobody("GET", "/v1/bundles").ok()  # what is public is not refused, and not counted


def test_metrics_are_prometheus_text(live: Live, admin: Client, nobody: Client) -> None:
    admin.get("/v1/policy")
    nobody("GET", "/v1/policy")
    nobody("GET", "/v1/nothing-of-this-sort")
    answer = admin("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    counted = {tuple(sample.labels.values()): sample.value for sample in families["handclasp_requests"].samples if "total" in sample.name}
    assert counted["GET", "/v1/policy", "200"] >= 1
    assert counted["GET", "/v1/policy", "401"] >= 1
    assert not any("nothing-of-this-sort" in place for _, place, _ in counted), "what strangers type must not become labels"
    seconds = {
        tuple(sample.labels.values()): sample.value
        for sample in families["handclasp_request_seconds"].samples
        if sample.name.endswith("_count")
    }
    total = sum(value for (method, place, _), value in counted.items() if (method, place) == ("GET", "/v1/policy"))
    assert seconds["GET", "/v1/policy"] == total
    assert "handclasp_log_size" in families
