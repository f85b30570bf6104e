"""Run a command that ends when its parent does: with_parent.py PARENT_PID PROGRAM [ARGUMENT ...].

A script of its own, without imports from the package: it becomes the command (execv).
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2), Linux

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it could be watched
        sys.exit("the process that started this one has ended")
    os.execv(command[0], command)
