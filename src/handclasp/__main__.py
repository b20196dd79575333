"""``python -m handclasp``: the same as the ``handclasp`` command."""

from handclasp.cli.start import main

main()
