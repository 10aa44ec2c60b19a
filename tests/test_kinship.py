"""The script behind the tables of kindred classes: a run on a few pictures, and features made by
hand."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALLEST
from PIL import Image
from safetensors.torch import save_file

from dcwh.codes import Codes
from dcwh.config import resolve
from dcwh.evaluation import kinship_of_classes
from dcwh.experiment import recorded, run
from dcwh.model import HashModel
from dcwh.results import read_results, record

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


def of_zoo(zoo, **changes):
    return resolve(SMALLEST | changes, dataset='folder/zoo', bits=8, data_dir=str(zoo))


def name_kin(zoo, kin):
    "Give the classes superclasses."
    lines = [f'{c},{s}' for c, s in zip(('cat', 'dog', 'owl', 'tit'), kin, strict=True)]
    (zoo / 'superclasses.csv').write_text('\n'.join(['class,superclass', *lines]))


def test_distances_of_features_are_those_of_directions():
    features = torch.tensor([[2.0, 0], [0, 3], [0, 1], [5, 5]])
    found = SCRIPT['feature_distances'](features, np.array([4, 7, 7, 9]))
    half = 1 - np.sqrt(0.5)
    assert found == pytest.approx(np.array([[0, 1, half], [1, 0, half], [half, half, 0]]))


def test_writes_the_tables_of_runs(zoo, tmp_path):
    config = of_zoo(zoo)
    run(config, tmp_path / 'runs')
    folders = [file.parent for file in (tmp_path / 'runs').rglob('result.json')]
    with pytest.raises(ValueError, match='folder/zoo has no superclasses'):
        SCRIPT['write_tables'](folders, tmp_path / 'reports')
    kin = ['mammal', 'mammal', 'bird', 'bird']
    name_kin(zoo, kin)
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


def test_the_backbone_is_that_of_the_run(zoo, tmp_path):
    "From its seed, where no weights are given; where a file was, from the same file."
    name_kin(zoo, 'mmbb')
    run(of_zoo(zoo), tmp_path / 'runs')
    folders = [file.parent for file in (tmp_path / 'runs').rglob('result.json')]
    made = [SCRIPT['write_tables'](folders, tmp_path / name) for name in 'ab']
    one, other = ((out / 'kinship-backbone.csv').read_text() for out in made)
    assert one == other
    weights = tmp_path / 'small.safetensors'
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(HashModel('small', 8, 'none', 16).backbone.state_dict(), weights)
        if not seed:
            run(of_zoo(zoo, weights=str(weights)), tmp_path / 'given')
    folders = [file.parent for file in (tmp_path / 'given').rglob('result.json')]
    with pytest.raises(ValueError, match='result.json began with other weights than those in'):
        SCRIPT['write_tables'](folders, tmp_path / 'reports')


def test_each_seed_is_read_with_its_own_split(zoo, tmp_path):
    name_kin(zoo, 'mmbb')
    for seed in (0, 1):
        run(of_zoo(zoo, seed=seed), tmp_path / 'runs')
    folders = [file.parent for file in sorted((tmp_path / 'runs').rglob('result.json'))]
    out = SCRIPT['write_tables'](folders, tmp_path / 'reports')
    table = pd.read_csv(out / 'kinship.csv')
    assert table['seed'].dropna().tolist() == [0, 1]


def test_a_result_knows_its_superclasses(zoo, tmp_path):
    runs, reports, config = tmp_path / 'runs', tmp_path / 'reports', of_zoo(zoo)
    bare = run(config, runs)
    assert 'superclass_hash' not in bare['protocol'] and 'map_kin' not in bare['metrics']
    name_kin(zoo, 'mmbb')
    with pytest.warns(UserWarning, match='without the superclasses .* no map_kin .* --force'):
        assert run(config, runs) == bare
    result = run(config, runs, resume=False)
    assert len(result['protocol']['superclass_hash']) == 16 and 'map_kin' in result['metrics']
    file = record(result, reports, modified=True)
    assert run(config, runs) == result and recorded(config, reports, runs)[0] == result
    name_kin(zoo, 'xxyy')  # the same kin by other names
    assert run(config, runs) == result
    (zoo / 'superclasses.csv').unlink()  # not at hand
    assert run(config, runs) == result and recorded(config, reports, runs)[0] == result
    name_kin(zoo, 'mbmb')
    for ask in (
        lambda: run(config, runs),
        lambda: recorded(config, reports, runs),
        lambda: recorded(config, reports, tmp_path / 'nowhere'),
    ):
        with pytest.raises(ValueError, match='measured with superclasses .* now has superclasses'):
            ask()
    again = run(config, tmp_path / 'others')
    assert again['protocol'] | {'superclass_hash': ''} == result['protocol'] | {
        'superclass_hash': ''
    }
    with pytest.raises(ValueError, match='with superclass_hash'):
        record(again, reports, modified=True)
    record(run(of_zoo(zoo, seed=1), runs), reports, modified=True)
    with pytest.raises(ValueError, match='a table of superclasses of one name, folder/zoo'):
        read_results(reports)
    assert 'superclass_hash' in file.read_text().splitlines()[0]


def test_the_table_has_the_numbers_of_the_run(zoo, tmp_path):
    name_kin(zoo, 'mmbb')
    result = run(of_zoo(zoo, map_top_k=2), tmp_path / 'runs')
    folder = next((tmp_path / 'runs').rglob('result.json')).parent
    out = SCRIPT['write_tables']([folder], tmp_path / 'reports')
    row = pd.read_csv(out / 'kinship.csv').set_index('method').loc['dcwh']
    for name in ('map', 'map_kin', 'ndcg_kin'):
        assert row[name] == pytest.approx(result['metrics'][name], abs=1e-6)
    run(of_zoo(zoo), tmp_path / 'whole')
    whole = next((tmp_path / 'whole').rglob('result.json')).parent
    with pytest.raises(ValueError, match='the runs differ in map_top_k; give runs of one task'):
        SCRIPT['write_tables']([folder, whole], tmp_path / 'reports')
    codes = Codes.load(folder / 'database.npz')
    replace(codes, model='another').save(folder / 'database.npz')
    with pytest.raises(ValueError, match='database.npz has codes of model another, .*--force'):
        SCRIPT['write_tables']([folder], tmp_path / 'reports')
    codes.save(folder / 'database.npz')
    name_kin(zoo, 'mbmb')
    with pytest.raises(ValueError, match='was measured with superclasses'):
        SCRIPT['write_tables']([folder], tmp_path / 'reports')
