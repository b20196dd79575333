"""What a delivery is given, made on the spot."""

from __future__ import annotations

import hashlib

from handclasp.agent.content import Content
from handclasp.pki.chains import split_pem, to_pem
from support.fake_server import FakeAuthority, pem


def content(authority: FakeAuthority, crl: bytes = b"") -> Content:
    """A new key and certificate for ``localhost``, with everything that belongs to it."""
    chain, key = authority.credential(dns=["localhost"])
    leaf, *above = split_pem(chain.decode())
    issuing = "".join(map(to_pem, above)).encode()
    return Content(hashlib.sha256(leaf).hexdigest(), key, to_pem(leaf).encode(), issuing, pem(authority.root).encode(), crl)
