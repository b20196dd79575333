"""``python -m handclasp``: the same as the ``handclasp`` command."""

from handclasp.cli.main import main

main()
