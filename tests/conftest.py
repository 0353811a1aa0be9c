"""What all tests share: where compiled kernels are kept, how many examples Hypothesis draws, a clean start for each test."""

import ctypes
import gc
import hashlib
import os
import pathlib
import tempfile
import warnings

import pytest
from hypothesis import settings

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _digest():
    """Hash of everything that is compiled, so that no test can meet a kernel of another version."""
    digest = hashlib.sha256()
    for file in sorted([*ROOT.glob("kernels/*.py"), *ROOT.glob("autobatch/*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


# Tests side by side leave each other the cores. Before NumPy is imported, which reads it once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Before Numba is imported, which reads it once.
USER = getattr(os, "getuid", int)()
os.environ.setdefault("NUMBA_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir(), f"autobatch-{USER}", _digest())))

# Compiling leaves millions of objects behind, and going through all of them takes seconds each time.
gc.set_threshold(50_000, 20, 100)

# "gate": the same examples in every run. AUTOBATCH_EXAMPLES=20 draws twenty times as many, others each time.
settings.register_profile("gate", deadline=None, derandomize=True, database=None)
settings.register_profile("more", deadline=None, print_blob=True)
settings.load_profile("more" if "AUTOBATCH_EXAMPLES" in os.environ else "gate")


def pytest_collection_modifyitems(config, items):
    """With `-n auto --dist loadgroup`: all laws of an op in one process, so that its kernels are compiled once."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            op = item.callspec.params.get("op") if hasattr(item, "callspec") else None
            if op is not None:
                item.add_marker(pytest.mark.xdist_group(getattr(op, "name", str(op))))


@pytest.fixture(autouse=True, scope="module")
def light():
    """Let no collection of garbage go through what is there before a module; a process that compiled much has millions."""
    gc.freeze()


@pytest.fixture(autouse=True)
def clean():
    """Begin each test with the same settings, seed and an empty graph, and put back what it configures."""
    import autobatch as ab

    before = ab.configured()
    ab.reset_random_seed(1)
    ab.renew_cg()
    yield
    ab.configure(**before)
    ab.renew_cg()


@pytest.fixture(scope="session")
def dynet():
    """DyNet itself, to compare with. It switches denormal numbers off for the whole process; here they stay."""
    libc = ctypes.CDLL(None)
    environment = ctypes.create_string_buffer(256)
    libc.fegetenv(environment)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("dynet", reason="DyNet (dyNET38) is not installed", exc_type=ImportError)
    libc.fesetenv(environment)
    return module
