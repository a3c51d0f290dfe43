"""Settings of all tests: one OpenMP thread, because synchronizing threads costs more than it saves for tiny models."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # set before torch is imported; inherited by child processes
