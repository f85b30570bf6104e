#!/usr/bin/env python
"""The paper's other experiments on digits: tools/experiments.py [--only a c] [--seeds 5]."""

import sys

from bn_detect.commands.experiments import main

if __name__ == "__main__":
    sys.exit(main())
