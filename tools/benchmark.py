#!/usr/bin/env python
"""Measure: tools/benchmark.py precise-bn [--json FILE] [--output FOLDER]."""

import sys

from bn_detect.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
