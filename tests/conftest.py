"""One compilation cache for the session: tests and their child processes compile much alike."""

import os
import shutil
import tempfile

import pytest

# Before anything imports jax, which reads these once.
_own = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _own:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="loopjax-tests-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache():
    yield
    if _own:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
