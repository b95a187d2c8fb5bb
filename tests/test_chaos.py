"""Random kills, the short form of `benchmarks/chaos.py`: the four fields and scores.json equal the quiet run's.

python -m pytest tests/test_chaos.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.chaos import chaos


@pytest.mark.slow
def test_twenty_kills_do_not_show(tmp_path: Path) -> None:
    report = chaos(tmp_path, kills=20, seed=5)
    assert report.kills >= 20
    assert report.worker_kills >= 5
    assert report.supervisor_kills >= 3
    assert report.torn >= 1
    assert report.full_disks >= 1 or os.geteuid() != 0
    assert sum(starts > 0 for starts in report.starts_on.values()) >= 2
