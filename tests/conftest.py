"""One thread for each process of the tests, whatever it starts included.

Tensors are small here, and tests run side by side: threads that wait for each other on cores that
others keep busy made some of these tests a hundred times slower.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and inherited by processes

pytest_plugins = ["tests.helpers.train_net"]
