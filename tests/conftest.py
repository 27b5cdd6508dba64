"""What tests share; this file also puts ``tests`` on the path, for ``oracles``."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data and models; tests that need it are skipped without it."""
    folder = Path(os.environ.get("HOLDFAST_DATA", ROOT / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}: set HOLDFAST_DATA")
    return folder
