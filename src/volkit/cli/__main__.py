"""`python -m volkit.cli`: the `volkit` command, where its script is not on PATH."""

import sys

from volkit.cli import main

sys.exit(main())
