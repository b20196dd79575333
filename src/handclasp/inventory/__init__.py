"""Every certificate, issued or found, where it is, and what that means.

    record      what sources saw -> locations, sightings, certificates: change-only writes
    states      pure: (what was issued, what is seen, now) -> where a certificate stands
    follow      the log's entries -> names, summaries, counters: kept, so that no page has to count
    search      filters -> pages, over issued and found certificates at once

Not done here: nothing is read from outside (discovery does that), no private key is known, and no row that the issuance relies on is
changed.
"""
