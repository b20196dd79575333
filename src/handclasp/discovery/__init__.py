"""Reading the places where certificates are: one small module or folder for each kind of source, and the engine that runs them.

    source, tools, http   what a kind is, and what it reads with: clock, guarded connections, files with secrets
    kinds, options        which kinds there are, loaded when they are used; their settings, for people and for forms
    sources, scans        rows: added, begun and stopped by people and by the clock, each with its log entry
    leases, endings       parts of scans, given to whoever asks; how a scan ends
    desk, engine          a worker takes a part, reads it, hands in what it read; ``remote`` is the desk of a worker far away
    filescans, reported   what agents do and say of themselves: scans of files, and the targets that they deliver to
    room                  all of it together, made once for a process

    network, files, imports                                     kinds for hosts, and for what people hand in
    kubernetes, istio, linkerd, consul, spire                   clusters and meshes (``meshmetrics``, ``promtext``: their metrics)
    vault, step, aws, ct (``ctentries``: what is in its logs)   what other authorities issued

A source yields what it sees (:class:`handclasp.wire.observations.Observed`) and what it has listed whole; the engine spreads its parts over
workers, keeps how far each is, and hands everything on. Nothing here writes to the inventory, and no private key is read.
"""
