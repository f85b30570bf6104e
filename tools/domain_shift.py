#!/usr/bin/env python
"""The command `bn-detect domain-shift`, for a clone that is not installed."""

import sys

from bn_detect.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["domain-shift", *sys.argv[1:]]))
