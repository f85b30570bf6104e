#!/usr/bin/env python
"""A checkpoint on corrupted images, under population statistics of other data.

domain_shift.py --config-file FILE --weights FILE.pth --corruptions contrast fog --severity 3
"""

import sys

from bn_detect.commands.domain_shift import main

if __name__ == "__main__":
    sys.exit(main())
