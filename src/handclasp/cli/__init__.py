"""The command line: one module per group of commands, each imported only when it is used.

A command reads flags, calls something below, and shows what came back. What may not be done here: decide anything (the server or a pure
room decides), print around :mod:`handclasp.cli.terminal` (it holds every rule of output), or import a heavy package at module level
(``handclasp --help`` stays under 150 ms; a test looks at ``sys.modules``). The server and the agent are other programs: they are reached
through :mod:`handclasp.cli.parts`, so that the command line works where only the client is installed.
"""
