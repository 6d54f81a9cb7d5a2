"""`python -m loopjax.cli`, where the `loopjax` command is not on the path."""

import sys

from loopjax.cli import main

sys.exit(main())
