"""Run the command line as `python -m insync.cli`."""

from insync.cli.main import main

raise SystemExit(main())
