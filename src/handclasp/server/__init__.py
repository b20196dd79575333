"""The composition root: settings, listeners, jobs, and how the parts are put together. No decision that a room below could take.

Nobody imports this room but the command line, and that lazily: without the ``server`` extra the rest must work.
"""
