#!/usr/bin/env python
"""Train or evaluate: tools/train_net.py --config-file FILE [--num-gpus N] [KEY VALUE ...]."""

import sys

from bn_detect.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
