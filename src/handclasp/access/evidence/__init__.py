"""Evidence by which a machine becomes an agent without a token of ours: one small file for each method.

    proven      what every method returns: who it is about, what was verified, what may be used once
    challenge   what a machine signs to show that it holds a key, at this moment and for this request
    oidc, kubernetes, x509, aws     the methods                cms     signed messages (RFC 5652), as far as ``aws`` needs them
    verifier    picks the rules of the policy that may take the evidence, and asks the method about each

Whatever is wrong with evidence is ``not_authenticated`` or ``not_allowed`` with a sentence. Nothing here spends anything: what serves once
is named in the result, and spent by the ledger in the transaction of the certificate.
"""
