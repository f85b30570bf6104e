#!/usr/bin/env python
"""Rewrite a checkpoint with PreciseBN statistics.

precise_bn.py --config-file FILE --weights IN.pth --output OUT.pth [--num-iter N] [KEY VALUE ...]
"""

import sys

from bn_detect.engine.rewrite import main

if __name__ == "__main__":
    sys.exit(main())
