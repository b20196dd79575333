"""The OpenAPI document: valid, complete, and true of a real server, which schemathesis holds it against."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from openapi_spec_validator import OpenAPIV31SpecValidator

from handclasp.api.openapi import document
from handclasp.api.problems import STATUS
from handclasp.api.routes import PUBLIC
from handclasp.api.table import API
from support.live import Client, serving
from support.servers import environment

CONFIG = """
[checks.negative_data_rejection]
# Its default, and 413: a text longer than the schema allows may be longer than the whole body may be.
expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429"]

[[operations]]
# Once every authority was retired, which an administrator may do, it says so, with 503.
include-name = "GET /readyz"
checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""
LEFT_OUT = ["positive_data_acceptance"]
"""Checks of schemathesis that cannot hold here. This one demands success for whatever fits the schema; but no schema says "a CSR with a
good signature", "a policy without mistakes" or "a pattern of names", and a caller who sends another text is rightly refused with 400."""


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(document(API)).validate()  # type: ignore[arg-type]


def test_every_route_is_in_it_with_its_scope_and_errors() -> None:
    paths: dict[str, Any] = document(API)["paths"]
    assert sum(len(methods) for methods in paths.values()) == len(API)
    ids = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    for route in API:
        operation = paths[re.sub(r":\w+\}", "}", route.path)][route.method.lower()]
        assert operation["x-scope"] == route.scope
        assert operation["security"] == ([] if route.scope == PUBLIC else [{"token": []}, {"certificate": []}])
        assert str(route.status) in operation["responses"]
        assert {str(STATUS[kind]) for kind in route.kinds} <= set(operation["responses"])
        assert (set(operation["responses"]) >= {"401", "403", "429"}) is (route.scope != PUBLIC)
        assert {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"} == {
            parameter.name for parameter in route.parameters
        }


def test_it_is_made_once_and_not_sent_twice(nobody: Client) -> None:
    first = nobody("GET", "/v1/openapi.json")
    tag = first.headers["etag"]
    assert nobody("GET", "/v1/openapi.json").headers["etag"] == tag
    again = nobody("GET", "/v1/openapi.json", headers={"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")


def test_the_server_serves_it_to_anyone(nobody: Client) -> None:
    assert nobody.get("/v1/openapi.json") == json.loads(json.dumps(document(API)))


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """As admin, every operation, every check but those of :data:`LEFT_OUT`: no server error, and each answer as the document says.

    The server is its own: an administrator who tries everything also retires authorities and puts strange policies in force.
    """
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    file = tmp_path / "openapi.json"  # from a file: schemathesis leaves out the address that it has the document from
    with serving(tmp_path, "--rate-principal", "1000000") as live:
        with live.client() as nobody:
            file.write_bytes(nobody("GET", "/v1/openapi.json").body)
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", live.facts["https"], "--tls-verify", live.facts["ca_file"],
            "--header", f"Authorization: Bearer {live.admin_token}", "--max-examples", "3", "--checks", "all", "--exclude-checks",
            ",".join(LEFT_OUT), "--continue-on-failure", "--no-shrink", "--seed", "1", "--warnings", "off", "--request-timeout", "20",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{len(API)} selected / {len(API)} total" in done.stdout
        assert "unexpected error" not in live.output
