"""What a file holds, whoever wrote it: certificates, keystores, private keys. For discovery; pure, no I/O.

    model        what comes out                     jks         Java's own keystores (JKS, JCEKS), without their password
    pem          PEM, and DER found alone           pkcs12      PKCS#12, without a password or with one of several
    kubeconfig   what kubectl and the kubelet use   read        looks at the bytes and chooses

Everything here reads bytes that anybody may have put there. What cannot be read is a :class:`Contents` with a problem, or the part that
could be read with a note; nothing escapes but that. Private keys are looked at for their public half and let go of.
"""

from __future__ import annotations

from handclasp.pki.contents.model import Contents, Entry, PrivateKey
from handclasp.pki.contents.read import interesting, read_contents

__all__ = ["Contents", "Entry", "PrivateKey", "interesting", "read_contents"]
