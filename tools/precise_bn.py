#!/usr/bin/env python
"""Rewrite a checkpoint with PreciseBN statistics.

precise_bn.py --config-file FILE --weights IN.pth --output OUT.pth [--num-iter N] [KEY VALUE ...]
precise_bn.py ... --per-level --evaluate: a RetinaNet trained with statistics shared by the levels
"""

import sys

from bn_detect.commands.precise_bn import main

if __name__ == "__main__":
    sys.exit(main())
