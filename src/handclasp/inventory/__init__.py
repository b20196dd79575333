"""Every certificate, issued or found, where it is, and what that means.

  writing
    record      what sources saw -> locations, sightings, certificates: change-only writes (``rows``, ``newcomers``, ``issuers``,
                ``differences`` work out what they are, ``statements`` is their SQL); ``confirm``: it is as it was
    states      pure: (what was issued, what is seen, now) -> where a certificate stands; ``steps``: that in words, and what to do
    reconcile   keeps every standing current: what changed, and what time changes
    follow      the log's entries -> ``names``, summaries, counters: kept, so that no page has to count; ``adopt``: an authority is new
                here, and what was found before is looked at again
    tallies     counters that are kept, and counted again
    triage      what somebody decides about a certificate that was found
    retention   what is old goes, in small writes or by dropping months, and what must stay stays

  reading
    search      filters -> pages, over issued and found certificates at once: ``filters`` are parsed, ``resolve`` finds what they speak
                of, ``plans``, ``conditions`` and ``walk`` read the tables, ``shown`` is how rows look; ``views`` are saved searches
    identities  the list of identities; ``places``: locations and sightings
    detail      one identity: its line, where it is, whose it is, what may issue it (``entitled``), what to do next
    overview    figures and the timeline, read from counters
    export      the same filters -> CSV, JSON, CycloneDX (``cbom``), as a stream of any length

  room        all of it in one object

Not done here: nothing is read from outside (discovery does that), no private key is known, and no row that the issuance relies on is
changed.
"""
