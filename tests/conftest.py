"""What all tests share: one thread for torch, so that workers of pytest-xdist do not fight for two cores; and an
environment that no test leaves other than it found it, with a list of runs and a draft of its own."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, in the processes that tests start too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# what runs remember of themselves (`platformdirs.user_state_dir`) is not to reach the Home of whoever runs the tests
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="tmerge-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """A command that is called in this process, `--offline` for one, sets variables for good."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
