"""Classes that training never sees: what is read, the four parts of a result, and their rows."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import python
from torch.utils.data import Dataset

from dcwh import results
from dcwh.codes import Codes
from dcwh.config import resolve
from dcwh.data import PARTS, ImageSet, load
from dcwh.evaluation import ap_of_outputs, evaluate
from dcwh.experiment import finished, recorded, report, run
from dcwh.results import read_table, record, row_of_config, run_name, table_of
from dcwh.sharing import card
from dcwh.sources import Source, digit_pairs, digits
from dcwh.training import build, train

ROOT = Path(__file__).parents[1]
QUICK = {'dataset': 'digits', 'bits': 16, 'recipe': 'quick', 'epochs': 2, 'workers': 0}
UNSEEN = {**QUICK, 'unseen': 0.2, 'train_images': 400, 'map_top_k': 50, 'map_normaliser': 'min'}
METHODS = ('dcwh', 'dcwh-learned', 'ce', 'csq', 'orthohash', 'dpsh', 'dsdh', 'dtsh', 'hashnet')


class Heard(Dataset):
    "Images of an array that say which of them were read."

    def __init__(self, pixels):
        self.pixels, self.read = pixels, []

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        self.read.append(int(i))
        return torch.from_numpy(self.pixels[i].copy()).permute(2, 0, 1), 0


def heard(of):
    "A source whose images are read one by one, and counted."
    return Source(of.name, Heard(of.images), of.labels, of.classes, of.split)


def weights_of(trained):
    return [*trained.model.state_dict().values(), *trained.criterion.state_dict().values()]


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A run with unseen classes: its configuration, folder of runs and result."
    config, runs = resolve(UNSEEN), tmp_path_factory.mktemp('done') / 'runs'
    return config, runs, run(config, runs)


# what training reads


@pytest.mark.parametrize('source', [digits, digit_pairs])
def test_training_reads_no_image_of_an_unseen_class(source):
    of = heard(source())
    data = load(of, unseen=0.2)
    train(resolve({**QUICK, 'epochs': 1}), data, progress=False)
    labels = of.labels[np.unique(of.images.read)]
    assert set(of.images.read) == set(data.train.ids.tolist())
    assert not (labels >= 8 if labels.ndim == 1 else labels[:, 8:].any(1)).any()
    assert len(np.unique(of.labels, axis=0)) > len(np.unique(labels, axis=0))


@pytest.mark.parametrize('method', METHODS)
def test_unseen_images_and_queries_change_nothing_that_is_learned(method):
    of, config = (
        digits(),
        resolve({**QUICK, 'epochs': 1}, method=method, unseen=0.2, train_images=200),
    )
    data = load(of, unseen=0.2, train_images=200)
    noise = np.random.default_rng(0).integers(0, 256, of.images.shape, dtype=np.uint8)
    noise[data.train.ids] = of.images[data.train.ids]
    others = replace(of, images=noise, hash=of.hash)
    first = train(config, data, progress=False)
    again = train(config, load(others, unseen=0.2, train_images=200), progress=False)
    assert all(map(torch.equal, weights_of(first), weights_of(again)))


@pytest.mark.parametrize('method', METHODS)
def test_criteria_are_built_for_seen_classes(method):
    data = load('digits', unseen=0.2)
    config = resolve(QUICK, method=method)
    criterion = build(config, len(data.seen), images=len(data.train))[1]
    if criterion.centres is not None:
        assert len(criterion.centres) == 8
    scores = criterion.logits(torch.zeros(1, 16))
    assert scores is None or scores.shape == (1, 8)


@pytest.mark.parametrize('source', [digits, digit_pairs])
def test_validation_opens_neither_unseen_classes_nor_queries(source):
    of = heard(source())
    load(of, unseen=0.2, evaluate_on='validation').read(8)
    read = np.unique(of.images.read)
    labels = of.labels[read]
    assert not (labels >= 8 if labels.ndim == 1 else labels[:, 8:].any(1)).any()
    assert not np.isin(read, load(source(), unseen=0.2).query.ids).any()


def test_on_validation_images_the_last_of_the_seen_classes_play_the_unseen():
    data = load('digits', unseen=0.2, evaluate_on='validation')
    assert (len(data.seen), len(data.classes), data.unseen) == (6, 8, 2)
    assert set(data.train.labels) == {*range(6)}
    assert set(data.query.labels) == set(data.database.labels) == {*range(8)}
    several = load('digit-pairs', unseen=0.2, evaluate_on='validation')
    assert several.query.labels.shape[1] == 8 and several.train.labels.shape[1] == 6


# the parts


@pytest.mark.parametrize('source', ['digits', 'digit-pairs'])
def test_parts_are_those_of_the_labels(source):
    data = load(source, unseen=0.2)

    def is_unseen(images):
        labels = images.source.labels[images.ids]
        return labels > 7 if labels.ndim == 1 else labels[:, 8] | labels[:, 9]

    query, database = is_unseen(data.query), is_unseen(data.database)
    assert not is_unseen(data.train).any()
    masks = {'seen': ~database, 'unseen': database, 'all': np.ones(len(database), bool)}
    assert tuple(data.parts) == PARTS
    for part, (asked, held) in data.parts.items():
        kind, _, among = part.partition('@')
        assert asked.tolist() == np.flatnonzero(query if kind == 'unseen' else ~query).tolist()
        assert held.tolist() == np.flatnonzero(masks[among]).tolist()


def test_without_unseen_classes_nothing_is_new():
    data = load('digits')
    assert data.parts == {} and data.seen == data.classes and 'seen' not in data.describe()
    assert resolve(QUICK).hash == resolve(QUICK, unseen=0.0, map_normaliser='').hash


def test_training_images_at_random_are_nested_and_seen():
    few, more = (load('digits', unseen=0.2, train_images=n) for n in (100, 300))
    assert len(few.train) == 100 and np.isin(few.train.ids, more.train.ids).all()
    assert few.train.labels.max() == 7
    assert len(load('digits', train_images=100).train) == 100
    assert (
        load('digits', seed=1, train_images=100).train.ids
        != load('digits', train_images=100).train.ids
    ).any()


@pytest.mark.parametrize(
    ('wrong', 'said'),
    [
        ({'unseen': 1.0}, 'unseen is 1.0; give a share'),
        ({'unseen': True}, 'unseen is True; give a share'),
        ({'unseen': 0.01}, 'unseen is 0.01 of 10 classes, which makes 10 seen and 0 unseen'),
        ({'unseen': 0.9}, 'makes 1 seen and 9 unseen'),
        ({'train_images': 1439}, 'train_images is 1439, and training may see 1438'),
        ({'train_images': 10}, 'no training image of .* of 10 classes, the first'),
        ({'train_images': 100, 'train_per_class': 5}, 'both limit training images; give one'),
        ({'top_k': -1}, 'top_k is -1'),
    ],
)
def test_what_leaves_too_little_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        load('digits', **wrong)


def test_an_image_of_an_unseen_class_is_no_training_image():
    data = load('digits', unseen=0.2)
    with pytest.raises(ValueError, match='also have labels of others'):
        ImageSet(data.train.source, data.database.ids, classes=8)
    with pytest.raises(ValueError, match='and training sees 8'):
        replace(data, train=replace(data.train, classes=0))
    with pytest.raises(ValueError, match='unseen@unseen has no query'):
        replace(data, query=replace(data.query, ids=data.query.ids[data.query.labels < 8]))


# a run


def test_metrics_of_each_part_are_those_of_its_codes(done):
    config, runs, result = done
    folder, data = runs / run_name(config), load('digits', unseen=0.2, train_images=400)
    query, database = (Codes.load(folder / f'{role}.npz') for role in ('query', 'database'))
    outputs = [np.load(folder / f'{role}-outputs.npy') for role in ('query', 'database')]
    assert tuple(result['parts']) == PARTS and result['protocol']['seen'] == 8
    for part, (asked, held) in data.parts.items():
        own = result['parts'][part]
        by_hand = evaluate(query[asked], database[held], 50, normaliser='min')
        told = by_hand.to_dict()
        assert own['metrics'].items() >= told.items()
        assert own['metrics']['map_found'] == by_hand.map_at(50, 'found') >= told['map']
        assert (own['query'], own['database']) == (len(asked), len(held))
        sides = [
            torch.from_numpy(h[rows].astype(np.float32))
            for h, rows in zip(outputs, (asked, held), strict=True)
        ]
        ap = ap_of_outputs(*sides, query.labels[asked], database.labels[held], 50, 'min')
        assert own['metrics']['map_outputs'] == pytest.approx(ap.mean(), abs=0.01)
    assert [result['parts'][part]['classes'] for part in PARTS] == [8, 10, 2, 10]
    whole = evaluate(query, database, 50, normaliser='min').to_dict()
    assert result['metrics'].items() >= whole.items() and whole['normaliser'] == 'min'


def test_several_labels(tmp_path):
    config = resolve(
        dataset='digit-pairs', bits=16, recipe='quick', epochs=1, unseen=0.2, workers=0
    )
    result = run(config, tmp_path)
    folder, data = tmp_path / run_name(config), load('digit-pairs', unseen=0.2)
    query, database = (Codes.load(folder / f'{role}.npz') for role in ('query', 'database'))
    asked, held = data.parts['unseen@unseen']
    told = evaluate(query[asked], database[held]).to_dict()
    assert result['parts']['unseen@unseen']['metrics'].items() >= told.items()
    assert np.load(folder / 'centres.npy').shape == (8, 16)
    assert len(read_table(record(result, tmp_path / 'reports', modified=True))) == 5


KILLED = """
import os, signal, dcwh, dcwh.model
steps, forward = iter(range(9)), dcwh.model.HashModel.forward
def dying(self, x):
    if next(steps, None) is None: os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, x)
dcwh.model.HashModel.forward = dying
"""


def test_killed_and_resumed_is_the_same(done, tmp_path):
    config, _, result = done
    script = f'import sys, dcwh\ndcwh.run(dcwh.resolve({UNSEEN!r}), sys.argv[1])'
    killed, said = python(KILLED + script, tmp_path)
    assert killed == -signal.SIGKILL, said
    assert finished(config, tmp_path) is None
    assert list(tmp_path.rglob('checkpoint.pt'))
    again = run(config, tmp_path)
    assert {**again, 'manifest': 0} == {**result, 'manifest': 0}


@pytest.mark.usefixtures('begun')
def test_a_report_shows_the_parts(done, tmp_path):
    config, runs, result = done
    settings = {name: UNSEEN[name] for name in ('map_top_k', 'map_normaliser')}
    flat = {name: value for name, value in UNSEEN.items() if name not in settings}
    shutil.copytree(runs, tmp_path / 'runs')
    file = report(
        None,
        tmp_path / 'a.ipynb',
        settings=settings,
        detail='full',
        runs=str(tmp_path / 'runs'),
        reports=str(tmp_path),
        **flat,
    )
    text = file.read_text()
    assert 'unseen@unseen' in text and 'mAP@50 (normaliser min)' in text
    assert f'{result["parts"]["seen@all"]["metrics"]["map"]:.4f}' in text
    assert config.hash in text and 'numbers are over 2 further classes' in str(card(result)).lower()


# its rows


def test_a_run_has_a_row_for_its_whole_and_for_each_part(done, tmp_path):
    config, runs, result = done
    old = (ROOT / 'reports/digits.csv').read_text().splitlines(True)
    file = tmp_path / 'digits.csv'
    file.write_text(''.join(old))
    before = read_table(file)
    assert record(result, tmp_path, modified=True) == file
    rows = read_table(file)
    own = [row for row in rows if row['hash'] == config.hash]
    assert [row['part'] for row in own] == [None, *PARTS]
    assert [row for row in rows if row['hash'] != config.hash] == before
    for row in own[1:]:
        part = result['parts'][row['part']]
        assert all(row[name] == part['metrics'].get(name) for name in results.METRICS)
        assert all(row[name] == part[name] for name in ('query', 'database', 'classes'))
    assert row_of_config(config, tmp_path) == own[0]
    text = file.read_bytes()
    record(result, tmp_path, modified=True)
    assert file.read_bytes() == text
    found, place = recorded(config, tmp_path, tmp_path / 'nowhere')
    assert place == file and found['metrics'] == result['metrics']


def test_a_part_that_lacks_is_named(done, tmp_path):
    config, _, result = done
    file = record(result, tmp_path, modified=True)
    lines = file.read_text().splitlines(True)
    file.write_text(''.join(line for line in lines if 'unseen@all' not in line))
    for ask in (lambda: read_table(file), lambda: row_of_config(config, tmp_path)):
        with pytest.raises(ValueError, match='line 2: of this run unseen@all is missing'):
            ask()
    file.write_text(''.join([*lines, lines[-1]]))
    for ask in (lambda: read_table(file), lambda: row_of_config(config, tmp_path)):
        with pytest.raises(ValueError, match='stands twice'):
            ask()


def test_a_result_whose_parts_are_wrong_is_none(done):
    _, _, result = done
    parts = result['parts']
    part = parts['seen@all']
    for wrong, said in (
        ({}, 'parts are'),
        ({**parts, 'all': part}, 'parts are'),
        ({**parts, 'seen@all': {**part, 'query': 1}}, 'query of seen@all and unseen@all'),
        ({**parts, 'seen@all': {**part, 'metrics': {**part['metrics'], 'map': 2.0}}}, 'map is 2.0'),
        (
            {**parts, 'seen@all': {**part, 'metrics': {**part['metrics'], 'normaliser': 'found'}}},
            'normaliser is found',
        ),
    ):
        with pytest.raises(ValueError, match=said):
            results.check_result({**result, 'parts': wrong})
    with pytest.raises(ValueError, match='unseen is 0.2, seen is None'):
        bare = {name: value for name, value in result['protocol'].items() if name != 'seen'}
        results.check_result({**result, 'protocol': bare})


def test_each_part_is_a_protocol_of_its_own(done, tmp_path):
    _, runs, result = done
    record(result, tmp_path / 'reports', modified=True)
    table = results.read_results(tmp_path / 'reports', runs)
    task = 'full, 20 % unseen, 400 training images'
    assert table['protocol'].tolist() == [task, *(f'{task}, {part}' for part in PARTS)]
    assert table['part'].tolist() == ['', *PARTS]
    assert results.other_numbers(tmp_path / 'reports', runs) == []
    summed = results.summary(table)
    assert len(summed) == 5 and set(summed['normaliser']) == {'min'}
    cells = results.comparison(summed)
    assert cells['group'].nunique() == 5
    assert cells['group'].str.contains(r'mAP@50 \(normaliser min\)').all()
    assert results.measured_on(table)['k'].tolist() == ['50 (normaliser min)'] * 5


def test_other_normalisers_are_never_in_one_group_or_pair(done, tmp_path):
    _, _, result = done
    rows = results.rows_of(result)
    other = resolve({**UNSEEN, 'map_normaliser': 'found'}, method='ce')
    twin = json.loads(json.dumps(result))
    twin['config'] = {**other.model_dump(), 'hash': other.hash}
    for metrics in (twin['metrics'], *(part['metrics'] for part in twin['parts'].values())):
        metrics['normaliser'] = 'found'
    for one in (result, twin):
        record(one, tmp_path, modified=True)
    table = results.read_results(tmp_path)
    assert len(table) == 2 * len(rows)
    assert results.comparison(results.summary(table))['group'].nunique() == 10
    assert results.paired(table, 'dcwh', 'ce').empty


def test_published_numbers_of_parts_stand_beside_ours(done, tmp_path):
    _, _, result = done
    record(result, tmp_path, modified=True)
    summed = results.summary(results.read_results(tmp_path))
    task = 'full, 5 % unseen, 2,000 training images, '
    ours = summed.assign(dataset='folder/cifar100-jpeg', top_k=1000)
    ours['protocol'] = ours['protocol'].str.replace(
        'full, 20 % unseen, 400 training images, ', task
    )
    beside = results.beside(ours, results.published())
    assert len(beside) == 48 and set(beside['protocol']) == {task + part for part in PARTS}
    assert beside['differs'].str.contains('normaliser found; ').all()


@pytest.mark.usefixtures('begun')
def test_a_grid_of_two_runs(tmp_path):
    pytest.importorskip('snakemake')
    from test_grid import start

    for name in ('nbs', 'data'):
        (tmp_path / name).symlink_to(ROOT / name)
    grid = [{**UNSEEN, 'epochs': 1, 'method': ['ce', 'csq']}]
    (tmp_path / 'grid.yaml').write_text(json.dumps({'grid': grid, 'modified': True}))
    words = [tmp_path, '--cores', '2', '--configfile', str(tmp_path / 'grid.yaml')]
    made = start(*words)
    assert made.returncode == 0, made.stderr[-3000:]
    rows = read_table(table_of(tmp_path / 'reports', 'digits'))
    assert len(rows) == 10 and {row['method'] for row in rows} == {'ce', 'csq'}
    again = start(*words)
    assert '2 of 2 runs are recorded' in again.stderr and 'Nothing to be done' in again.stderr
