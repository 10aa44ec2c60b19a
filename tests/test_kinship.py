"""The script behind the tables of kindred classes: a run on a few pictures, and features made by
hand."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dcwh.config import resolve
from dcwh.evaluation import kinship_of_classes
from dcwh.experiment import run

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / 'workflow/kinship.py'))


@pytest.fixture
def zoo(tmp_path):
    "Four classes in two superclasses: two of light pictures, two of dark ones."
    rng = np.random.default_rng(0)
    for c, name in enumerate(('cat', 'dog', 'owl', 'tit')):
        (tmp_path / 'zoo' / name).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(60 * c, 60 * c + 20, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'zoo' / name / f'{i}.png')
    return tmp_path / 'zoo'


def test_distances_of_features_are_those_of_directions():
    features = torch.tensor([[2.0, 0], [0, 3], [0, 1], [5, 5]])
    found = SCRIPT['feature_distances'](features, np.array([4, 7, 7, 9]))
    half = 1 - np.sqrt(0.5)
    assert found == pytest.approx(np.array([[0, 1, half], [1, 0, half], [half, half, 0]]))


def test_writes_the_tables_of_runs(zoo, tmp_path):
    settings = {
        'backbone': 'small',
        'weights': 'none',
        'image_size': 8,
        'resize': 8,
        'flip': False,
        'epochs': 1,
        'batch_size': 4,
        'workers': 0,
    }
    config = resolve(settings, dataset='folder/zoo', bits=8, data_dir=str(zoo))
    run(config, tmp_path / 'runs')
    folders = [file.parent for file in (tmp_path / 'runs').rglob('result.json')]
    with pytest.raises(ValueError, match='folder/zoo has no superclasses'):
        SCRIPT['write_tables'](folders, tmp_path / 'reports')
    kin = ['mammal', 'mammal', 'bird', 'bird']
    lines = [f'{c},{s}' for c, s in zip(('cat', 'dog', 'owl', 'tit'), kin, strict=True)]
    (zoo / 'superclasses.csv').write_text('\n'.join(['class,superclass', *lines]))
    out = SCRIPT['write_tables'](folders, tmp_path / 'reports')
    assert out == tmp_path / 'reports/zoo'
    table = pd.read_csv(out / 'kinship.csv').set_index('method')
    assert table.index.tolist() == ['backbone', 'dcwh']
    for name, method in (('backbone', 'backbone'), ('dcwh-8', 'dcwh')):
        distances = pd.read_csv(out / f'kinship-{name}.csv', index_col='class')
        assert (
            distances.index.tolist() == distances.columns.tolist() == ['cat', 'dog', 'owl', 'tit']
        )
        near = kinship_of_classes(distances.to_numpy(), kin)
        assert table.loc[method, 'map_kin_classes'] == pytest.approx(near, abs=1e-6)
    assert table['map_kin'].isna().tolist() == [True, False]
