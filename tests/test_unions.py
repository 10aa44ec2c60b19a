"""The script behind the table of bits that are unions: codes made by hand, in which it is known
which are."""

import csv
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from dcwh.codes import Codes
from dcwh.config import resolve
from dcwh.results import run_name

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / 'workflow/unions.py'))


@pytest.fixture
def codes():
    "Five bits: three unions of two classes, one that is none, and one that is always on."
    labels = np.random.default_rng(0).random((400, 4)) < 0.5
    labels[:, 0] |= ~labels.any(1)
    union = labels[:, 0] | labels[:, 2]
    either = labels[:, 1] ^ labels[:, 3]  # no union of classes
    noisy = union ^ (np.arange(400) % 20 == 0)  # one in twenty flipped
    bits = np.stack([union, ~union, noisy, either, np.ones(400, bool)], axis=1)
    return Codes(np.packbits(bits, axis=1), 5, labels, np.arange(400))


def test_counts_bits_that_are_unions(codes):
    assert SCRIPT['unions'](codes) == [2, 2, 2, 0, 0]
    assert SCRIPT['row']('dcwh', 3, codes) == ['dcwh', 5, 3, '0.6000', '2.00']


def test_writes_a_row_for_each_run_of_the_tables(codes, tmp_path):
    reports, runs = tmp_path / 'reports', tmp_path / 'runs'
    reports.mkdir()
    shutil.copy(ROOT / 'reports/digit-pairs.csv', reports)
    with pytest.raises(FileNotFoundError, match='query.npz'):
        SCRIPT['write_table'](reports, runs)
    with open(ROOT / 'reports/digit-pairs.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        if row['bits'] == '24' and row['study'] == 'comparison':
            (runs / row['run']).mkdir(parents=True)
            codes.save(runs / row['run'] / 'query.npz')
    task = {'dataset': 'digit-pairs', 'bits': 24, 'method': 'dcwh', 'train_per_class': 20}
    named = {'study': 'comparison', 'bits': '24', 'method': 'dcwh', 'seed': '0'}
    limited = next(row for row in rows if named.items() <= row.items())
    config = resolve(task)
    limited |= {'train_per_class': 20, 'hash': config.hash, 'run': run_name(config)}
    with open(reports / 'digit-pairs.csv', 'a', newline='') as file:
        writer = csv.DictWriter(file, limited, lineterminator='\n')
        writer.writerow(limited)
    SCRIPT['write_table'](reports, runs)  # but for runs of few images, whose codes are not there

    def named(file):
        return [line.split(',')[::2][:2] for line in file.read_text().splitlines()]

    assert named(reports / 'unions.csv') == named(ROOT / 'reports/unions.csv')


def test_codes_of_another_model_are_refused(codes, tmp_path):
    reports, runs = tmp_path / 'reports', tmp_path / 'runs'
    reports.mkdir()
    lines = (ROOT / 'reports/digit-pairs.csv').read_text().splitlines()
    head = next(csv.reader(lines[:1]))
    row = next(r for r in csv.DictReader(lines) if r['bits'] == '24' and r['study'] == 'comparison')
    row['model'] = 'of the run'
    with open(reports / 'digit-pairs.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, head, lineterminator='\n')
        writer.writeheader()
        writer.writerow(row)
    (runs / row['run']).mkdir(parents=True)
    codes.save(runs / row['run'] / 'query.npz')
    with pytest.raises(ValueError, match='query.npz has codes of model unknown, the run is'):
        SCRIPT['write_table'](reports, runs)
    assert not (reports / 'unions.csv').exists()
