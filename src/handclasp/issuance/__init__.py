"""The one way by which a certificate comes to be, is renewed, and is revoked.

Every door ends here with an :class:`IssuanceRequest`; nothing else may call a signer. This room knows no protocol and no HTTP, and it takes
no decision about who may have what: that is ``access.authorize``, without whose yes to the very plan nothing is signed. (It is asked a
second time, about a shorter plan, where nobody wished for a lifetime and the profile's is too long for the grant.)
"""
