"""What all tests share: one thread for torch, so that workers of pytest-xdist do not fight for two cores, and a
state folder that is not the user's."""

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, in the processes that tests start too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="tmerge-tests-state-")
