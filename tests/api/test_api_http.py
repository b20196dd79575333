"""Bytes that no honest client sends, and some that one does: each gets a clear answer, nothing hangs, nothing shows the inside."""

from __future__ import annotations

import base64
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.api.paging import read_cursor, read_index, read_limit, read_sha256, write_cursor
from handclasp.client.csr import new_request
from handclasp.errors import Kind
from support.errors import allowing
from support.live import Answer, Client, Live, read_all, serving

PROBLEM = {"type", "title", "status", "kind", "detail", "hint", "instance"}
JSON = {"Content-Type": "application/json"}


def cursor(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def test_a_problem_document_is_one(nobody: Client) -> None:
    answer = nobody("GET", "/v1/tokens")
    problem = answer.refused(Kind.NOT_AUTHENTICATED)
    assert set(problem) == PROBLEM
    assert problem["instance"] == "/v1/tokens"
    assert problem["type"] == "urn:handclasp:problem:not_authenticated"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers


LISTS = ["/v1/certificates", "/v1/identities", "/v1/tokens", "/v1/agents", "/v1/log/entries"]
BAD_PARAMETERS = [
    ("a limit of nothing", "limit=0"), ("a limit beyond the largest", "limit=1001"), ("a limit that is no number", "limit=x"),
    ("a negative limit", "limit=-1"), ("a limit in other digits", "limit=%D9%A1"), ("an empty limit", "limit="),
    ("a limit that is given twice", "limit=1&limit=2"), ("a parameter that is not there", "limt=1"), ("no pair at all", "%00"),
    ("half a percent-encoding that is no UTF-8", "limit=%ff"), ("too many", "&".join(f"a{n}=1" for n in range(60))),
    ("a cursor of nothing", "cursor="), ("a cursor that is no base64", "cursor=%21%21"), ("a cursor that is no JSON", "cursor=eHh4"),
    ("a cursor of another shape", "cursor=" + cursor({"a": 1})), ("a cursor with too much in it", "cursor=" + cursor([1, 2, 3, 4])),
    ("a cursor with a truth in it", "cursor=" + cursor([True])), ("a cursor with half a character", "cursor=" + cursor(["\ud800"])),
    ("a cursor with NUL", "cursor=" + cursor(["a\0b"])), ("a cursor with a huge number", "cursor=" + cursor([10**30])),
    ("a cursor that nests deeply", "cursor=" + base64.urlsafe_b64encode(b"[" * 20_000).decode().rstrip("=")),
    ("a cursor with a number of many digits", "cursor=" + base64.urlsafe_b64encode(b"[" + b"9" * 10_000 + b"]").decode().rstrip("=")),
]  # fmt: skip


@pytest.mark.parametrize("path", LISTS)
def test_every_list_refuses_bad_parameters(path: str, admin: Client) -> None:
    for sentence, query in BAD_PARAMETERS:
        answer = admin("GET", f"{path}?{query}")
        assert answer.kind == "bad_request", f"{sentence}: {answer.status} {answer.text[:300]}"


OTHER_BAD_PARAMETERS = [
    "/v1/certificates?state=good", "/v1/certificates?serial=xyz", "/v1/certificates?serial=-1", "/v1/certificates?serial=" + "f" * 50,
    "/v1/certificates?identity=a%00b", "/v1/certificates?identity=" + "a" * 3000, "/v1/identities?q=%00", "/v1/tokens?state=good",
    "/v1/log/entries?since=yesterday", "/v1/log/entries?since=2026-01-01T00:00:00", "/v1/log/entries?until=%00",
    "/v1/log/entries/-1", "/v1/log/entries/1e3", "/v1/log/entries/" + "9" * 40, "/v1/log/proof", "/v1/log/proof?index=1&sha256=" + "0" * 64,
    "/v1/log/proof?sha256=00", "/v1/log/proof?index=x", "/v1/log/proof?index=0&size=x", "/v1/log/proof?index=0&size=-1",
    "/v1/certificates/zz", "/v1/certificates/" + "0" * 63, "/v1/certificates/" + "0" * 63 + ":renewal-info",
    "/healthz?verbose=1",
]  # fmt: skip


def test_bad_values_are_bad_requests(admin: Client) -> None:
    for target in OTHER_BAD_PARAMETERS:
        answer = admin("GET", target)
        assert answer.kind == "bad_request", f"{target}: {answer.status} {answer.text[:300]}"


WEIRD_PATHS = [
    "/", "//", "/v1", "/v1/", "/v1/tokens/", "//v1/tokens", "/v1//tokens", "/V1/TOKENS", "/v1/tokens/a/b", "/v1/./tokens", "/v1/../healthz",
    "/v1/tokens%2f", "/v1/authorities/%00", "/v1/authorities/a%00b", "/v1/authorities/%ff%fe", "/v1/authorities/%ED%A0%80",
    "/v1/authorities/..%2f..%2fetc%2fpasswd", "/v1/profiles/%F0%9F%92%A9", "/v1/tokens/%20", "/v1/tokens/" + "a" * 5000, "/v1/bundles/%00",
    "/v1/bundles/%00.pem", "/v1/bundles/.pem", "/v1/bundles/example.org%00", "/v1/crls/none.pem", "/log/tile/0/../../../data/keys/root.key",
    "/log/tile/%2e%2e/%2e%2e/admin.token", "/log/tile/../admin.token", "/log/tile//etc/passwd", "/log/tile/%00", "/log/tile/0/x001",
    "/log/tile/99/000", "/log/tile/0/000.p/0", "/log/tile/0/000.p/257", "/log/tile/entries/999", "/log/cosigned", "/log/tile/",
    "/log/.cosign", "/v1/tokens;a=b", "/v1/tokens%3fa",
]  # fmt: skip


def test_paths_that_lead_nowhere(admin: Client) -> None:
    for path in WEIRD_PATHS:
        answer = admin("GET", path)
        assert answer.kind == "not_found", f"{path[:80]}: {answer.status} {answer.text[:300]}"


def test_percent_encoding_is_understood_once(admin: Client) -> None:
    assert admin.get("/v1/authorities/%69ssuing")["name"] == "issuing"
    admin("GET", "/v1/authorities/%2569ssuing").refused(Kind.NOT_FOUND)
    assert admin("GET", "/%76%31/bundles").status == 200


def test_head_answers_as_get_without_the_body(live: Live, admin: Client) -> None:
    for path in ("/v1/tokens", "/v1/bundles", "/v1/bundles/example.org.pem", "/v1/openapi.json", "/v1/nothing"):
        head, get = admin("HEAD", path), admin("GET", path)
        assert head.status == get.status
        assert head.body == b""
        assert head.headers["content-type"] == get.headers["content-type"]
        assert head.headers["content-length"] == str(len(get.body))
    with live.client() as nobody:
        assert nobody("HEAD", "/v1/tokens").status == 401


def test_other_methods_are_refused_with_those_there_are(admin: Client) -> None:
    for method in ("DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "PUT"):
        answer = admin(method, "/v1/tokens")
        problem = answer.refused(Kind.METHOD_NOT_ALLOWED)
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
        assert "POST" in problem["hint"]
    admin("PROPFIND", "/v1/nothing").refused(Kind.NOT_FOUND)


BODIES = [
    ("nothing", b"", Kind.BAD_REQUEST), ("not JSON", b"allow: all", Kind.BAD_REQUEST), ("half of it", b'{"name": "x"', Kind.BAD_REQUEST),
    ("a list", b"[]", Kind.BAD_REQUEST), ("null", b"null", Kind.BAD_REQUEST), ("more after it", b'{"name":"x"} {}', Kind.BAD_REQUEST),
    ("an unknown field", b'{"name":"x","usess":1}', Kind.BAD_REQUEST), ("another type", b'{"name":1}', Kind.BAD_REQUEST),
    ("a truth for a number", b'{"name":"x","uses":true}', Kind.BAD_REQUEST), ("NaN", b'{"name":"x","uses":NaN}', Kind.BAD_REQUEST),
    ("a huge number", b'{"name":"x","uses":1e999}', Kind.BAD_REQUEST),
    ("a number out of range", b'{"name":"x","uses":-1}', Kind.BAD_REQUEST),
    ("invalid UTF-8", b'{"name":"x\xff"}', Kind.BAD_REQUEST), ("UTF-16", '{"name":"x"}'.encode("utf-16"), Kind.BAD_REQUEST),
    ("half a character", b'{"name":"x","owner":"\\ud800"}', Kind.BAD_REQUEST),
    ("a raw NUL", b'{"name":"x","owner":"\x00"}', Kind.BAD_REQUEST),
    ("an escaped NUL", b'{"name":"x","owner":"a\\u0000"}', Kind.BAD_REQUEST),
    ("an escaped NUL after a backslash", b'{"name":"x","owner":"\\\\\\u0000"}', Kind.BAD_REQUEST),
    ("deep nesting", b'{"name":"x","labels":' + b"[" * 30_000, Kind.BAD_REQUEST), ("deep objects", b'{"a":' * 12_000, Kind.BAD_REQUEST),
    ("a name with a newline", b'{"name":"x\\ny"}', Kind.BAD_REQUEST), ("an empty name", b'{"name":""}', Kind.BAD_REQUEST),
    ("a bad duration", b'{"name":"x","expires":"soon"}', Kind.BAD_REQUEST),
    ("an endless duration", b'{"name":"x","expires":"99999999999d"}', Kind.BAD_REQUEST),
    ("a pattern that is none", b'{"name":"x","allow":["http://x"],"profiles":["workload"]}', Kind.BAD_REQUEST),
    ("more than a token needs", b'{"name":"x","owner":"' + b"a" * 65_536 + b'"}', Kind.TOO_LARGE),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "body", "kind"), BODIES, ids=[sentence for sentence, *_ in BODIES])
def test_a_body_that_is(sentence: str, body: bytes, kind: Kind, admin: Client) -> None:
    admin("POST", "/v1/tokens", body).refused(kind)


def test_a_backslash_before_u0000_is_text(live: Live) -> None:
    """What the check for NUL must let through: the six characters ``\\u0000`` themselves, in a policy's comment for one."""
    with live.client(live.admin_token) as admin:
        admin("POST", "/v1/policy:diff", b'{"text":"version: 1 # \\\\u0000\\n"}').ok()


def test_content_types(admin: Client) -> None:
    body = b'{"text": "version: 1\\n"}'
    for good in ("application/json", "application/json; charset=utf-8", "APPLICATION/JSON"):
        admin("POST", "/v1/policy:diff", body, headers={"Content-Type": good}).ok()
    for bad in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/yaml", "json", ""):
        admin("POST", "/v1/policy:diff", body, headers={"Content-Type": bad}).refused(Kind.UNSUPPORTED_MEDIA_TYPE)


BAD_CSRS = [
    ("nothing", ""), ("words", "please"), ("an empty PEM", "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"),
    ("another PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ("random DER", "-----BEGIN CERTIFICATE REQUEST-----\nMIIBAAAA\n-----END CERTIFICATE REQUEST-----\n"),
    ("20 KB", "-----BEGIN CERTIFICATE REQUEST-----\n" + "A" * 20_000 + "\n-----END CERTIFICATE REQUEST-----\n"),
]  # fmt: skip


def test_a_request_that_is_no_csr(live: Live) -> None:
    with live.client(live.issuing_token("spiffe://example.org/http/csr")) as client:
        for sentence, csr in BAD_CSRS:
            answer = client("POST", "/v1/certificates", {"csr": csr})
            assert answer.kind in ("bad_csr", "too_large"), f"{sentence}: {answer.status} {answer.text}"
        good = new_request("p256", identity=None)[1]
        lines = good.splitlines()
        flipped = "A" if lines[-2][3] != "A" else "B"
        lines[-2] = lines[-2][:3] + flipped + lines[-2][4:]
        answer = client("POST", "/v1/certificates", {"csr": "\n".join(lines)})
        assert answer.kind in ("bad_proof_of_possession", "bad_csr"), answer.text


def test_a_megabyte(live: Live, admin: Client) -> None:
    whole = b'{"text": "' + b"#" * (1 << 20) + b'"}'
    admin("PUT", "/v1/policy", whole).refused(Kind.TOO_LARGE, "1048576")
    admin("POST", "/v1/certificates:batch", whole).refused(Kind.TOO_LARGE)
    with live.client(live.issuing_token("spiffe://example.org/http/big")) as client:
        client("POST", "/v1/certificates", {"csr": "A" * 70_000}).refused(Kind.TOO_LARGE, "65536")
    with live.client() as nobody:  # the stranger is turned away before anything of it is read
        nobody("PUT", "/v1/policy", whole).refused(Kind.NOT_AUTHENTICATED)


def _chunks(data: bytes, size: int = 16_384) -> bytes:
    parts = (data[start : start + size] for start in range(0, len(data), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def head(live: Live, method: str, path: str, *lines: str, token: str | None = None, version: str = "1.1") -> bytes:
    fixed = [f"{method} {path} HTTP/{version}", f"Host: {live.https[0]}", f"Authorization: Bearer {token or live.admin_token}"]
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


def parse(data: bytes) -> Answer:
    top, _, body = data.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split()[1]), headers, body)


def test_a_chunked_body(live: Live) -> None:
    lines = ("Transfer-Encoding: chunked", "Content-Type: application/json", "Connection: close")
    good = live.raw(head(live, "POST", "/v1/policy:diff", *lines) + _chunks(b'{"text": "version: 1\\n"}', 5))
    assert parse(good).status == 200
    big = live.raw(head(live, "POST", "/v1/tokens", *lines) + _chunks(b'{"name": "' + b"a" * 100_000 + b'"}'))
    parse(big).refused(Kind.TOO_LARGE)


NOT_HTTP = [
    ("noise", b"\x16\x03\x01\x00\x00\r\n\r\n"), ("an unknown method", b"FETCH / HTTP/1.1\r\n\r\n"),
    ("a bad version", b"GET / HTTP/9.9\r\n\r\n"),
    ("a header without a colon", b"GET / HTTP/1.1\r\nHost\r\n\r\n"), ("a space in a header's name", b"GET / HTTP/1.1\r\nA B: c\r\n\r\n"),
    ("two lengths", b"POST /v1/tokens HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    ("a length and chunks", b"POST /v1/tokens HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("a length that is none", b"POST /v1/tokens HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
    ("a length beyond all numbers", b"POST /v1/tokens HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n"),
    ("bytes in the path", b"GET /v1/\xff HTTP/1.1\r\n\r\n"), ("a proxy's CONNECT", b"CONNECT example.org:443 HTTP/1.1\r\n\r\n"),
    ("NUL in a header", b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n"), ("a folded header", b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "data"), NOT_HTTP, ids=[sentence for sentence, _ in NOT_HTTP])
def test_what_is_not_http(sentence: str, data: bytes, live: Live) -> None:
    answer = parse(live.raw(data))
    answer.refused(Kind.BAD_REQUEST, "not an HTTP request")
    assert set(answer.json) == PROBLEM
    assert answer.headers["connection"] == "close"


def test_http_1_0(live: Live) -> None:
    answer = parse(live.raw(head(live, "GET", "/v1/tokens", version="1.0")))
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers
    assert len(answer.body) == int(answer.headers["content-length"])


def test_requests_in_a_row_without_waiting(live: Live) -> None:
    one = head(live, "GET", "/v1/authorities/issuing")
    received = live.raw(one * 3 + head(live, "GET", "/healthz", "Connection: close"))
    assert received.count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize(
    ("sentence", "data"),
    [
        ("one header", b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"),
        ("many headers", b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 100) for n in range(700)) + b"\r\n"),
        ("the path", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"),
    ],
    ids=["one header", "many headers", "the path"],
)
def test_a_head_that_is_too_large(sentence: str, data: bytes, live: Live) -> None:
    parse(live.raw(data)).refused(Kind.TOO_LARGE, "headers", status=431)


def test_a_header_that_never_ends_is_cut_off(live: Live) -> None:
    with live.socket() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        until = time.monotonic() + 30
        with pytest.raises(OSError):  # noqa: PT012  (which of them fails is the kernel's affair)
            while time.monotonic() < until:
                connection.sendall(b"a" * 1000)
                time.sleep(0.001)


def test_forwarded_addresses_are_not_believed(live: Live, admin: Client) -> None:
    token = live.issuing_token("spiffe://example.org/http/cidr", cidr=["10.0.0.0/8"])
    csr = new_request("p256", identity=None)[1]
    with live.client(token) as client:
        forwarded = {"X-Forwarded-For": "10.1.2.3", "Forwarded": "for=10.1.2.3", "X-Real-IP": "10.1.2.3"}
        client("POST", "/v1/certificates", {"csr": csr}, headers=forwarded).refused(Kind.NOT_ALLOWED, "127.0.0.1")


def test_slow_clients_are_cut_off(tmp_path) -> None:
    """A server with a limit of one second: who has not sent a request by then, or has gone quiet in the middle of one, is let go."""
    with serving(tmp_path, "--request-timeout", "1s") as live:
        beginnings = [
            ("nothing at all", b""),
            ("half a head", b"GET /healthz HTTP/1.1\r\nX-A: "),
            ("an empty line after a request", b"GET /healthz HTTP/1.1\r\n\r\n"),
            ("half a body of a refused request", b"POST /v1/tokens HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{"),
            ("half a body", head(live, "POST", "/v1/tokens", "Content-Length: 1000", "Content-Type: application/json") + b"{"),
        ]
        began = time.monotonic()
        connections = [(sentence, live.socket()) for sentence, _ in beginnings]
        opened = [(sentence, manager, manager.__enter__()) for sentence, manager in connections]
        for (_, data), (_, _, connection) in zip(beginnings, opened, strict=True):
            connection.sendall(data)
        received = {}
        for sentence, manager, connection in opened:
            if sentence == "an empty line after a request":
                received[sentence] = connection.recv(100)
                connection.sendall(b"\r\n")
            received[sentence] = received.get(sentence, b"") + read_all(connection)
            manager.__exit__(None, None, None)
        assert time.monotonic() - began < 40, "the server's patience is one second; uvicorn's own would be 75"
        assert received["nothing at all"] == received["half a head"] == b""
        assert received["an empty line after a request"].startswith(b"HTTP/1.1 200")
        parse(received["half a body of a refused request"]).refused(Kind.NOT_AUTHENTICATED)
        parse(received["half a body"]).refused(Kind.TIMEOUT)


@given(
    st.text()
    | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode())
    | st.builds(
        cursor,
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda inner: st.lists(inner, max_size=3)
        ),
    )
)
@settings(max_examples=300)
def test_no_cursor_does_more_than_be_refused(text: str) -> None:
    for types in ((int,), (str,), (int, str)):
        with allowing(Kind.BAD_REQUEST):
            key = read_cursor({"cursor": text}, *types)
            assert key is not None
            assert [type(value) for value in key] == list(types)
            "".join(value for value in key if isinstance(value, str)).encode()  # raises for half a character


@given(st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_cursor_that_was_given_out_is_understood(number: int, text: str) -> None:
    assert read_cursor({"cursor": write_cursor(number, text)}, int, str) == (number, text)


@given(st.text())
def test_no_parameter_does_more_than_be_refused(text: str) -> None:
    with allowing(Kind.BAD_REQUEST):
        assert 1 <= read_limit({"limit": text}) <= 1000
    with allowing(Kind.BAD_REQUEST):
        assert 0 <= read_index(text) < 2**63
    with allowing(Kind.BAD_REQUEST):
        assert len(read_sha256(text)) == 32
