"""SPIFFE bundles as other implementations want them."""

from __future__ import annotations

import json


def jwt_only(data: bytes) -> bytes:
    """Return only the JWT keys of a bundle, as ``FetchJWTBundles`` answers: py-spiffe takes no other keys beside them."""
    return json.dumps({"keys": [key for key in json.loads(data)["keys"] if key["use"] == "jwt-svid"]}).encode()
