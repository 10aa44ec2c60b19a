"""Code is as ruff and mypy want it: lines of 100 columns, one format, types that fit."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize('tool', ('ruff check', 'ruff format --check', 'mypy'))
def test_is_clean(tool):
    done = subprocess.run(
        [sys.executable, '-m', *tool.split()],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f'{tool}:\n{done.stdout[-6000:]}'
