"""Who may have what: principals, grants, policy, tokens, OIDC, limits, and the one function that decides.

Here a caller becomes a principal (:mod:`tokens`, :mod:`oidc`) and a principal with a plan becomes ``Allowed`` or ``Refused``
(:mod:`authorize`, the one choke point). People at the console have a role (:mod:`roles`) and a session (:mod:`sessions`); a team has more
over what it owns (:mod:`owned`). Whatever is not granted is refused; grants never add up; a deny rule beats every grant.

Not done here: no key is touched, nothing is signed, no use of a token is spent (the ledger does that, in the transaction of the
certificate), and no decision reads the network, the disk or the wall clock: it sees the plan, the policy and the time it is given.
"""
