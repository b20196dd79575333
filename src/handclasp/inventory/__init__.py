"""Every certificate, issued or found, where it is, and what that means.

    record      what sources saw -> locations, sightings, certificates: change-only writes
    states      pure: (what was issued, what is seen, now) -> where a certificate stands
    reconcile   keeps every standing current: what changed, and what time changes
    follow      the log's entries -> names, summaries, counters: kept, so that no page has to count
    tallies     counters that are kept, and counted again; overview and timeline read them
    search      filters -> pages, over issued and found certificates at once
    detail      one identity: its line, where it is, whose it is, what may issue it, what to do next
    export      the same filters -> CSV, JSON, CycloneDX, as a stream of any length
    retention   what is old goes, in small writes or by dropping months, and what must stay stays

Not done here: nothing is read from outside (discovery does that), no private key is known, and no row that the issuance relies on is
changed.
"""
