"""Benchmarks run with tiny sizes, and leave a table as it is until all its rows are measured."""

import csv
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dcwh.codes import Codes

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(tmp_path, monkeypatch):
    "Runs a copy of a benchmark, beside a table of three lines, in this process."
    for file in (ROOT / 'benchmarks').glob('*.py'):
        shutil.copy(file, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(name, *words):
        table = tmp_path / f'{name}.csv'
        if not table.exists():
            table.write_text('a,b\n1,2\n3,4\n')
        monkeypatch.setattr('sys.argv', [f'{name}.py', *map(str, words)])
        runpy.run_path(str(tmp_path / f'{name}.py'), run_name='__main__')

    yield run
    sys.modules.pop('tables', None)  # the copy


@pytest.mark.parametrize(
    'name, words, said',
    [
        ('reranking', [], 'give folders of runs'),
        ('reranking', ['nowhere'], 'nowhere/query.npz is not there'),
        ('parts', ['many'], 'many is no number'),
        ('parts', [10], 'give 1000000 or more'),
        ('scaling', ['many'], 'many is no number'),
        ('scaling', [10], 'give 10000 or more'),
        ('search', ['many'], 'many is no number'),
        ('search', [10], 'give 100000 or more'),
        ('on_ray', ['many'], 'many is no number'),
        ('on_ray', [10], 'give 200 or more'),
    ],
)
def test_a_benchmark_that_cannot_measure_says_so_and_leaves_its_table(
    script, tmp_path, name, words, said
):
    with pytest.raises(SystemExit, match=said) as end:
        script(name, *words)
    assert len(str(end.value).splitlines()) == 1
    assert (tmp_path / f'{name}.csv').read_text() == 'a,b\n1,2\n3,4\n'


def test_a_measurement_that_fails_leaves_the_table(script, tmp_path, monkeypatch):
    def fails(*given, **more):
        raise subprocess.CalledProcessError(1, 'measure')

    monkeypatch.setattr('subprocess.run', fails)
    with pytest.raises(subprocess.CalledProcessError):
        script('scaling', 10_000)
    assert (tmp_path / 'scaling.csv').read_text() == 'a,b\n1,2\n3,4\n'


def test_reranking_writes_its_table(script, tmp_path):
    pytest.importorskip('faiss')
    folder, rng = tmp_path / 'run', np.random.default_rng(0)
    folder.mkdir()
    for role, number in (('query', 100), ('database', 5_000)):
        outputs = rng.normal(size=(number, 16)).astype(np.float32)
        Codes.from_outputs(outputs, rng.integers(0, 10, number)).save(folder / f'{role}.npz')
        np.save(folder / f'{role}-outputs.npy', outputs)
    table = tmp_path / 'reranking.csv'
    script('reranking', folder)
    with open(table) as file:
        rows = list(csv.DictReader(file))
    assert [row['shortlist'] for row in rows] == ['', '1000', '5000', '']
    assert all(0 < float(row['mAP@100']) < 1 for row in rows)


@pytest.mark.whole
def test_ray_beside_two_processes_writes_its_table(tmp_path):
    for name in ('on_ray.py', 'tables.py'):
        shutil.copy(ROOT / 'benchmarks' / name, tmp_path)
    subprocess.run([sys.executable, tmp_path / 'on_ray.py', '200'], check=True)
    with open(tmp_path / 'ray.csv') as file:
        rows = list(csv.DictReader(file))
    assert [row['what'] for row in rows] == ['two processes', 'Ray, two actors']
    assert all(float(row['images a second']) > 0 < float(row['start-up (s)']) for row in rows)


def test_no_shorter_table_is_written(script, tmp_path, capsys):
    from tables import write_table

    table = tmp_path / 'any.csv'
    assert write_table(table, [['a'], [1], [2]]) and table.read_text() == 'a\n1\n2\n'
    assert not write_table(table, [['a'], [3]]) and table.read_text() == 'a\n1\n2\n'
    assert 'any.csv stays as it is: it has more rows' in capsys.readouterr().out


def test_the_benchmark_of_gpus_runs_on_a_processor(tmp_path):
    script, out = ROOT / 'benchmarks/gpu.py', tmp_path / 'gpu.csv'
    words = [sys.executable, script, '--sizes', 'tiny', '--out', out]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout.startswith('Trial sizes: these times show that all of it runs, and measure')
    assert torch.cuda.is_available() or 'No GPU is here' in done.stdout.splitlines()[0]
    with open(out) as file:
        rows = {row['what']: float(row['value']) for row in csv.DictReader(file)}
    parts = 'whole step', 'bare loop', 'cuts in a loop', 'by one gather', 'counting', 'evaluate'
    for part in parts:
        assert any(part in what for what in rows), part
    assert all(value > 0 for value in rows.values())


def test_the_guide_to_gpus_has_the_numbers_of_its_table():
    rows = pd.read_csv(ROOT / 'benchmarks/gpu.csv', keep_default_na=False).set_index('what')
    page = (ROOT / 'docs/gpu.md').read_text()
    networks = {
        'ResNet-50': 'resnet50',
        'EfficientNet-Lite0': 'timm/tf_efficientnet_lite0',
        'GoogLeNet': 'googlenet',
    }
    assert set(rows['device']) == {'NVIDIA H200'} and 'NVIDIA H200' in page
    for shown, name in networks.items():
        rate, share, first, memory = re.search(
            rf'\| {shown} \| ([\d,]+) \| ([\d.]+) \| (\d+) s \| ([\d.]+) GiB', page
        ).groups()
        values = rows['value']
        assert int(rate.replace(',', '')) == values[f'{name}: whole step']
        assert share == rows['of the bare loop, the floor'][f'{name}: whole step']
        assert int(first) == round(values[f'{name}: the first epoch, compiling'])
        assert float(memory) == round(values[f'{name}: memory'], 1)
    waits = {
        'looks at the loss': 'loss looked at',
        'reads the terms': 'terms read',
        'cuts images in a loop': 'cuts in a loop',
        'takes images from the host': 'images from the host',
        'does all of these': 'all of them',
    }
    for shown, name in waits.items():
        (share,) = re.findall(rf'\| {shown} \| ([\d.]+) \|', page)
        kept = rows['of the bare loop, the floor'][f'timm/tf_efficientnet_lite0, waits: {name}']
        assert float(share) == float(kept)
