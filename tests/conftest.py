"""Fixtures of the whole suite."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data, outside the project: `MEDSEG_BRN_DATA`, or `../shared/data` from the project's root."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEDSEG_BRN_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set MEDSEG_BRN_DATA")
    return folder
