from pathlib import Path

import pytest

from evalkit.demo.world import ensure_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture world, drawn into a folder of this test session."""
    return ensure_world(tmp_path_factory.mktemp("cache"))
