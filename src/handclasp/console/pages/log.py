"""The log: search, one entry, and the proof that it is in the tree that was signed."""

from __future__ import annotations

import json

from handclasp.console.app import Page
from handclasp.console.fields import fields_of, list_query
from handclasp.console.turns import turns
from handclasp.console.visit import Answer, Shown, Visit
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import ENTRY_TYPES
from handclasp.log.proofs import verify_proof


async def entries(visit: Visit) -> Answer:
    """List entries, newest first."""
    path = "/v1/log/entries"
    checkpoint = await _checkpoint(visit)
    listed = await visit.get(path, list_query(visit, path))
    context = {
        "listed": listed,
        "turns": turns(visit, listed.next_cursor, len(listed.items), 50),
        "fields": fields_of(visit.api.parameters(path)),
        "types": ENTRY_TYPES,
        "checkpoint": checkpoint,
        "size": int(checkpoint.splitlines()[1]) if checkpoint else 0,
    }
    return Shown("log.html", context)


async def _checkpoint(visit: Visit) -> str:
    try:
        return str((await visit.get("/v1/log/checkpoint")).data.decode())
    except HandclaspError as error:
        if error.kind is Kind.NOT_FOUND:
            return ""
        raise


async def entry(visit: Visit) -> Answer:
    """Show one entry with its proof, checked here and now against the checkpoint."""
    index = visit.params["index"]
    one = await visit.get(f"/v1/log/entries/{index}")
    proof, problem = None, ""
    try:
        proof = await visit.get("/v1/log/proof", {"index": index})
        verify_proof(proof.proof, None, [visit.log_key])
    except HandclaspError as error:
        problem = error.detail
    newest = (await visit.get("/v1/log/entries", {"limit": "1"})).items
    context = {
        "one": one,
        "newest": newest[0].index if newest else one.index,
        "meaning": ENTRY_TYPES.get(one.entry.get("type", ""), ""),
        "text": json.dumps(one.entry, indent=2, ensure_ascii=False),
        "proof": proof,
        "problem": problem,
    }
    return Shown("entry.html", context)


PAGES = (Page("GET", "log", entries), Page("GET", "log/{index}", entry))
