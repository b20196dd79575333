"""X.509: keys, names, profiles, requests, plans, certificates, chains, bundles and revocation lists.

Everything here is pure: no files, no network, no settings, no wall clock. Time, randomness and signers are passed in. What this room may
not do: decide who may have a certificate (that is ``access``), keep a key (``authority``), or touch a database.
"""
