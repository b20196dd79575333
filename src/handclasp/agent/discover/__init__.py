"""Certificates on this host that nobody told us about: walks the directories that it may, and says what it finds.

    rules     where it may look: agent.yaml's ``discover``, the scan's paths, and places that are never looked at
    walk      directories, bounded and in a fixed order, without following links
    look      one file: read, and turned into an observation        memory   what is known, so that nothing is read twice
    scan      all of it together: chunks of what was found          part     the agent's side: asks, starts, hands on
    work      the process that scans: of low priority, with a limit on what one file may cost
    exchange  sets of files that are exchanged at once by a link, which are read as one
    local     ``handclasp agent discover``: the same without a server

The walking is done in a process of its own, which exists while there is a scan: hostile files are read there, private keys are looked at
there, and its memory ends with it. No byte of a private key leaves that process. Imported when there is a scan, and not before.
"""
