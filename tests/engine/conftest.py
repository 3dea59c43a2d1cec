"""One launch for each number of processes serves all engine tests: starting up is most of the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.cases import ON_ONE, ON_TWO, Found
from tests.engine.scenarios import launch


@pytest.fixture(scope="session")
def engine_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cases leave their checkpoints and exported models."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="session")
def found(tiny_model: str, engine_directory: Path) -> Found:
    """What every case did."""
    return {
        1: launch(engine_directory, tiny_model, 1, ON_ONE),
        2: launch(engine_directory, tiny_model, 2, ON_TWO),
    }
