"""`python -m insync.client`: the command line."""

from insync.client.cli import main

raise SystemExit(main())
