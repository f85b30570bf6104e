#!/usr/bin/env python
"""Does the head cheat? tools/leakage_study.py --study configs/studies/NAME.yaml [--dry-run]."""

import sys

from bn_detect.commands.study import main

if __name__ == "__main__":
    sys.exit(main())
