"""What all tests share: one thread for torch, so that workers of pytest-xdist do not fight for two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, in the processes that tests start too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
