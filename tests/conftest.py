"""One thread: at the sizes of these models, two would spend their time waiting for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start
