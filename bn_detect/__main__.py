"""`python -m bn_detect SUBCOMMAND ...` is `bn-detect SUBCOMMAND ...`."""

import sys

from bn_detect.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
