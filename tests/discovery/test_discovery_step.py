"""What a step-ca shows, and what stands in its database, in tables made as it makes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from handclasp.discovery import step
from handclasp.discovery.source import Count, Place, Scope
from handclasp.discovery.step import STEP, StepSettings
from handclasp.errors import HandclaspError
from support.answering import Answering
from support.certfiles import Maker, der, pem
from support.sources import last_place, observed, read, tools

MAKER = Maker()
LEAVES = {str(1000 + number * 317): MAKER.leaf(f"{number}.elsewhere.test")[0] for number in range(6)}


class Authority(Answering):
    """The lists of a step-ca."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Any] = {"/roots": {"crts": [pem(MAKER.root).decode()]}, "/federation": {"crts": None}}

    def answer(self, target: str, headers: Any) -> tuple[int, bytes]:
        found = self.answers.get(urlsplit(target).path)
        return 200 if found is not None else 404, json.dumps(found).encode()


@pytest.fixture
def authority() -> Iterator[Authority]:
    with Authority() as made:
        yield made


async def fill(url: str, revoked: str = "") -> None:
    connection = await asyncpg.connect(url)
    for name in ("x509_certs", "x509_certs_data", "revoked_x509_certs"):
        await connection.execute(
            f'CREATE TABLE IF NOT EXISTS "{name}" (nkey BYTEA CHECK (octet_length(nkey) <= 255), nvalue BYTEA, PRIMARY KEY (nkey))'
        )
        await connection.execute(f'DELETE FROM "{name}"')
    data = json.dumps({"provisioner": {"id": "x", "name": "acme", "type": "ACME"}}).encode()
    for serial, leaf in LEAVES.items():
        await connection.execute("INSERT INTO x509_certs VALUES ($1, $2)", serial.encode(), der(leaf))
        await connection.execute("INSERT INTO x509_certs_data VALUES ($1, $2)", serial.encode(), data)
    if revoked:
        told = json.dumps({"Serial": revoked, "RevokedAt": "2026-01-01T00:00:00Z"}).encode()
        await connection.execute("INSERT INTO revoked_x509_certs VALUES ($1, $2)", revoked.encode(), told)
    await connection.close()


def test_the_lists_of_the_authority(authority: Authority) -> None:
    found = observed(read(STEP, StepSettings(url=authority.url), tools()))
    where = f"step:{authority.url[7:]}"
    assert set(found) == {f"{where}/roots", f"{where}/federation"}
    assert [(one.der, one.role) for one in found[f"{where}/roots"].certificates] == [(der(MAKER.root), "anchor")]
    for wrong in ({"crts": "x"}, {"crts": ["nothing"]}, {"crts": [1]}):
        authority.answers["/roots"] = wrong
        assert observed(read(STEP, StepSettings(url=authority.url), tools()))[f"{where}/roots"].problem
    del authority.answers["/roots"]
    assert "404" in (observed(read(STEP, StepSettings(url=authority.url), tools()))[f"{where}/roots"].problem or "")


def test_what_was_issued(authority: Authority, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_PAGE", 2)
    revoked = list(LEAVES)[2]
    asyncio.run(fill(postgres_url, revoked))
    (tmp_path / "database").write_text(postgres_url + "\n")
    settings = StepSettings(url=authority.url, database_file="database")
    first = read(STEP, settings, tools(secrets=tmp_path))
    prefix = f"step:{authority.url[7:]}/"
    issued = {key.removeprefix(prefix): one for key, one in observed(first).items() if one.unit.endswith("issued")}
    told = {serial: (one.certificates[0].der, one.certificates[0].role) for serial, one in issued.items()}
    assert told == {serial: (der(leaf), "listed") for serial, leaf in LEAVES.items()}
    assert issued[revoked].details == {
        "serial": revoked, "provisioner": {"name": "acme", "type": "ACME"}, "revoked_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    again = read(STEP, settings, tools(secrets=tmp_path, known=[*(prefix + serial for serial in LEAVES), prefix + "7"]))
    assert {key: bool(one.certificates) for key, one in observed(again).items() if one.unit.endswith("issued")} == {
        prefix + revoked: True,
        prefix + "7": False,
    }
    assert sum(one.read for one in again if isinstance(one, Count)) == 5
    place = next(one.text for one in first if isinstance(one, Place))
    rest = observed(read(STEP, settings, tools(secrets=tmp_path), place))
    assert len([one for one in rest.values() if one.unit.endswith("issued")]) == 4
    assert last_place(first) == max(LEAVES)


def test_a_database_that_is_none(authority: Authority, postgres_url: str, tmp_path: Path) -> None:
    settings = StepSettings(url=authority.url, database_file="database")
    for url, words in (("mysql://a/b", "PostgreSQL"), (postgres_url, "x509_certs"), ("postgresql://u@127.0.0.1:1/x", "reached")):
        (tmp_path / "database").write_text(url)
        with pytest.raises(HandclaspError, match=words):
            read(STEP, settings, tools(secrets=tmp_path))
    with pytest.raises(HandclaspError):
        STEP.check(StepSettings(url="ca"), Scope())
