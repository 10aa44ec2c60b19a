"""From tables to a comparison: what is averaged, what never is, what is refused, what others
report."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from programs import Python
from scipy import stats
from typer.testing import CliRunner

from dcwh import results
from dcwh.cli import app
from dcwh.config import resolve
from dcwh.experiment import execute
from dcwh.methods import METHODS, register

pytestmark = pytest.mark.usefixtures('begun')

ROOT = Path(__file__).parents[1]
SCORES = {0: 0.91, 1: 0.95, 2: 0.93}  # by seed


def result(score, source='digits', protocol='full', **settings):
    "A result with an invented mAP."
    config = resolve(**{'dataset': source, 'bits': 16, **settings})
    return {
        'config': {**config.model_dump(), 'hash': config.hash},
        'protocol': {
            'source': source,
            'source_hash': 'x',
            'missing': 0,
            'name': protocol,
            'query': 10,
            'train': 20,
            'database': 20,
            'classes': 10,
            'labels_per_image': 'one',
            'top_k': None,
            'split_hash': f'split {config.seed}',
        },
        'metrics': {
            'map': score,
            'map_optimistic': score + 0.01,
            'map_pessimistic': score - 0.02,
            'precision_radius_2': 0.5,
            'queries_empty_radius_2': 0,
            'queries_without_relevant': 0,
            'normaliser': 'all',
        },
        'history': [{'epoch': epoch, 'loss': 1 / epoch} for epoch in (1, 2)],
        'manifest': {'versions': {}, 'device': 'none', 'seconds': {}},
    }


def made(folder, score, study='comparison', **settings):
    "The same, in the table of its data set."
    return results.record(result(score, **settings), folder, study)


def left(folder, score, **settings):
    "The same as the file that a run leaves."
    found = result(score, **settings)
    file = Path(folder) / results.run_name(results.check_result(found)) / 'result.json'
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(found))
    return file


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Two methods at two lengths with three seeds, one run with other epochs, one on another set."
    place = tmp_path_factory.mktemp('reports')
    for seed, score in SCORES.items():
        for bits in (16, 32):
            made(place, score, seed=seed, bits=bits)
            made(place, score - 0.05 - seed / 100, seed=seed, bits=bits, method='ce')
    made(place, 0.7, epochs=3)
    made(place, 0.88, source='folder/cifar10-jpeg', bits=48, method='dcwh-learned')
    return place


@pytest.fixture(scope='module')
def runs(folder):
    return results.read_results(folder)


@pytest.fixture(scope='module')
def table(runs):
    return results.summary(runs)


@pytest.fixture(scope='module')
def others():
    return results.published(ROOT / 'data/published.csv')


def row(table, **values):
    chosen = np.logical_and.reduce([table[name] == value for name, value in values.items()])
    assert chosen.sum() == 1
    return table[chosen].iloc[0]


def test_mean_and_interval_over_seeds(table):
    cell, scores = row(table, method='dcwh', bits=16, setting='default'), list(SCORES.values())
    low, high = stats.t.interval(0.95, 2, loc=np.mean(scores), scale=stats.sem(scores))
    assert cell.n == 3 and cell['map'] == pytest.approx(0.93)
    assert cell.interval == pytest.approx((high - low) / 2)
    assert cell.interval == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-6)  # by hand: s is .02
    assert cell.map_optimistic == pytest.approx(0.94)
    assert cell.map_pessimistic == pytest.approx(0.91)


def test_one_seed_has_no_interval(table):
    cell = row(table, bits=48)
    assert cell.n == 1 and np.isnan(cell.interval)
    cells = results.comparison(table)
    assert row(cells, dataset='folder/cifar10-jpeg').text == '0.880'
    assert row(cells, dataset='folder/cifar10-jpeg').group.endswith(', 1 seed')
    plain = row(cells, method='dcwh', bits=16, group='full, backbone small, 3 seeds')
    assert plain.text == '0.930 ± 0.050' and plain.best


CHANGES = (
    {'epochs': 3},
    {'lr': 0.5},
    {'recipe': 'quick'},
    {'recipe': 'paper'},
    {'backbone': 'resnet18'},
    {'image_size': 32},
    {'settings': {'sigma': 1}},
    {'settings': {'centres': 'exact'}},
    {'train_per_class': 10},
    {'weights': 'some.safetensors'},
)


@pytest.mark.parametrize('change', CHANGES, ids=str)
def test_two_settings_never_share_a_cell(tmp_path, change):
    made(tmp_path, 0.9)
    made(tmp_path, 0.8, seed=1)
    made(tmp_path, 0.5, seed=1, **change)
    table = results.summary(results.read_results(tmp_path))
    assert sorted(table.n) == [1, 2]
    assert len(table[['protocol', 'setting']].drop_duplicates()) == 2
    cells = results.comparison(table)
    lines = cells[['group', 'method', 'column']].drop_duplicates()
    assert len(lines) == len(cells) == 2


def test_seed_place_and_workers_do_share_one(tmp_path):
    made(tmp_path, 0.9)
    made(tmp_path, 0.8, seed=1, data_dir='elsewhere', workers=7)
    assert results.summary(results.read_results(tmp_path)).n.tolist() == [2]


def test_few_training_images_are_another_protocol(tmp_path, others):
    made(tmp_path, 0.9, source='cifar10', train_per_class=10, bits=48)
    table = results.summary(results.read_results(tmp_path))
    assert table.protocol.tolist() == ['full, 10 training images a class']
    assert results.beside(table, others).empty
    cell = results.comparison(table, others).iloc[0]
    assert cell.protocol == 'full' and 'few training images' in cell.group
    assert cell.column == '10 images per class, 48 bits'


def test_torn_and_foreign_files_are_named(tmp_path):
    for seed in (0, 1, 2):
        file = left(tmp_path / 'runs', 0.5, seed=seed)
    whole = file.read_text()
    texts = {'torn': whole[:300], 'list': '[1, 2]', 'other': '{"config": {}, "history": []}'}
    for name, text in texts.items():
        (tmp_path / 'runs' / name).mkdir()
        (tmp_path / 'runs' / name / 'result.json').write_text(text)
    with pytest.raises(ValueError) as error:
        results.read_results(tmp_path / 'runs')
    said = str(error.value).splitlines()
    assert len(said) == 3
    for name in texts:
        assert any(f'{name}/result.json' in line for line in said)


LIES = (
    ('config', 'bits', 64),
    ('config', 'method', 'dpsh'),
    ('config', 'hash', '0' * 16),
    ('config', 'bits', None),
    ('metrics', 'map', 1.5),
    ('metrics', 'map', 'high'),
    ('metrics', 'map', None),
    ('protocol', 'source', 7),
)


@pytest.mark.parametrize('part, name, value', LIES, ids=str)
def test_a_changed_result_is_no_result(tmp_path, part, name, value):
    file = left(tmp_path, 0.5, seed=9)
    lie = json.loads(file.read_text())
    lie[part][name] = value
    file.write_text(json.dumps(lie))
    with pytest.raises(ValueError) as error:
        results.read_results(tmp_path)
    assert str(file) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'taken, found', [(None, 2), (['conv1'], 2), ('no', 2), (False, 0)], ids=str
)
def test_a_history_of_another_version_may_hold_another_taken(taken, found):
    "Centres are new in every epoch after those that hold them, where no epoch says otherwise."
    past = result(0.5, method='dcwh', settings={'centres_hold': 0.0}, centres_every=1)
    past['history'] = [
        {'epoch': epoch, 'loss': 1.0, 'held': False, 'taken': taken} for epoch in (1, 2)
    ]
    assert results.facts(past)['centres_found'] == found


IMPOSSIBLE = {  # column: values that no run could have
    'top_k': ('10', '0'),
    'classes': ('0', '1', '21'),
    'query': ('0', '-3'),
    'train': ('0', '9'),
    'missing_images': ('-1',),
    'queries_empty_radius_2': ('11', '-1'),
    'queries_without_relevant': ('11',),
    'distinct_codes': ('21',),
    'epochs_held': ('-4', '31'),
    'centres_found': ('31',),
    'normaliser': ('foo', 'found', ''),
    'split_hash': ('',),
    'seconds_training': ('1e999', 'inf', '-1', 'nan'),
    'peak_memory_mb': ('-1',),
    'map': ('1.5', '-.1', '.2', '.95'),
    'map_optimistic': ('.8', '1.1'),
    'map_pessimistic': ('.95', '-.2'),
    'map_with_relevant': ('2', '.3', '.91'),
    'overlap': ('1.2',),
    'precision_radius_2': ('1.01',),
    'distance_within': ('17', '-1', '1e999'),
    'passed': ('1.1',),
    'gradient_first': ('-1', '1e999'),
    'protocol_name': ('sampled', 'official'),
}


@pytest.mark.parametrize('column, value', [(c, v) for c in IMPOSSIBLE for v in IMPOSSIBLE[c]])
def test_numbers_that_no_run_could_have_are_no_row(tmp_path, column, value):
    made(tmp_path, 0.9)
    (texts,) = csv.DictReader((tmp_path / 'digits.csv').read_text().splitlines())
    assert texts['labels_per_image'] == 'one'
    texts[column] = value
    with open(tmp_path / 'digits.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, list(texts))
        writer.writeheader()
        writer.writerow(texts)
    with pytest.raises(ValueError) as error:
        results.read_table(tmp_path / 'digits.csv')
    assert 'digits.csv, line 2: ' in str(error.value) and '\n' not in str(error.value)
    short = column.removeprefix('seconds_').removeprefix('protocol_').removesuffix('_images')
    assert short in str(error.value) or value in str(error.value)


NAMED = (  # data set, protocol, its name in a result, k
    ('nuswide21', 'official', 'nuswide21', 5000),
    ('coco80', 'official', 'coco80-80-159', 5000),
    ('nuswide21', 'official', 'nuswide21-80-159, 1 missing, validation', 5000),
    ('lists/pairs', 'official', 'pairs-80-159', None),
    ('csv/mine', 'official', 'official', None),
    ('digits', 'sampled', 'sampled-50-100', None),
    ('cifar10', 'sampled', 'sampled', None),
    ('cifar10', 'disjoint', 'disjoint, validation', None),
    ('coco80', 'full', 'full', None),
)


@pytest.mark.parametrize('source, protocol, name, k', NAMED)
def test_every_protocol_can_be_recorded(tmp_path, source, protocol, name, k):
    found = result(0.9, source, name)
    config = resolve(dataset=source, bits=16, settings={'protocol': protocol})
    found['config'] = {**config.model_dump(), 'hash': config.hash}
    found['protocol']['top_k'] = k
    found['metrics']['normaliser'] = 'found' if k else 'all'
    file = results.record(found, tmp_path)
    assert results.read_table(file)[0]['protocol_name'] == name
    if k:  # what is cut at k has ends that are no bounds
        found['metrics'] |= {'map_optimistic': 0.8, 'map_pessimistic': 0.95}
        results.check_result(found)
    found['protocol']['top_k'] = 10
    with pytest.raises(ValueError, match='top_k is 10'):
        results.check_result(found)


TEXT = st.text(
    st.sampled_from(' \t\r\n",;\'a') | st.characters(codec='utf-8', exclude_characters='\0'),
    min_size=1,
)
TEXTS = st.fixed_dictionaries(
    dict.fromkeys(('data_dir', 'lists_dir', 'source_hash', 'split_hash', 'device', 'python'), TEXT)
)


def result_with(texts, **settings):
    "A result with texts in its configuration, its protocol and its manifest."
    places = {name: texts[name] for name in texts if name in ('data_dir', 'lists_dir', 'weights')}
    source = 'lists/x' if 'lists_dir' in texts else 'digits'
    found = result(0.9, source=source, **settings, settings=places)
    for name in ('source_hash', 'split_hash'):
        found['protocol'][name] = texts.get(name, 'x')
    versions = {'python': texts.get('python', '3')}
    found['manifest'] |= {'device': texts.get('device', 'none'), 'versions': versions}
    return found


@settings(max_examples=50, deadline=None, derandomize=True)
@given(TEXTS)
@example({'weights': 'w2.safetensors '})
@example({'data_dir': 'a\rb'})
@example({'data_dir': ' lead'})
@example({'data_dir': '\x85', 'source_hash': '\ufeff', 'split_hash': '\r\n', 'device': '""'})
@example({'source_hash': '\u2028 ', 'device': '\xa0"', 'python': "#;'"})
def test_every_text_is_read_back_as_it_was_recorded(tmp_path_factory, texts):
    folder, found = tmp_path_factory.mktemp('t'), result_with(texts)
    made(folder, 0.9, source=found['config']['dataset'], seed=1)
    file = results.record(found, folder)
    rows = results.read_table(file)
    assert results.row_of(found) in rows and len(rows) == 2
    written = file.read_bytes()
    results.write_rows(file, rows)
    assert file.read_bytes() == written


@pytest.mark.parametrize('name', ['source_hash', 'split_hash', 'device', 'python'])
def test_a_zero_byte_is_refused_and_the_table_stays(tmp_path, name):
    file = made(tmp_path, 0.9)
    before = file.read_bytes()
    found = result_with({name: 'a\0b'}, seed=1)
    with pytest.raises(ValueError, match=f'seed1-.* has a zero byte in {name}') as error:
        results.record(found, tmp_path)
    assert str(error.value).isprintable()
    with pytest.raises(ValueError, match='zero byte'):
        results.write_rows(file, [results.row_of(found)])
    assert file.read_bytes() == before and [*tmp_path.glob('*.csv')] == [file]


def test_a_table_that_would_be_read_otherwise_replaces_nothing(tmp_path, monkeypatch):
    file = made(tmp_path, 0.9)
    before = file.read_bytes()
    monkeypatch.setattr(results, 'as_cell', str)  # a writer that forgets quotes
    for text in (' blank', 'a\rb', 'a,b', '"a'):
        with pytest.raises(ValueError) as error:
            results.record(result_with({'data_dir': text}, seed=1), tmp_path)
        assert str(error.value).isprintable()
    assert file.read_bytes() == before
    assert not [*tmp_path.glob('*.part'), *tmp_path.glob('.*.part')]


COMMITTED = ('cifar10-jpeg', 'digit-pairs', 'digits', 'tiny-imagenet100')


@pytest.mark.parametrize('name', COMMITTED)
def test_a_committed_table_is_spelt_as_it_would_be_written(tmp_path, name):
    "Columns that came later aside: each cell is in quotes where it would be, and only there."
    committed = ROOT / f'reports/{name}.csv'
    file = tmp_path / committed.name
    results.write_rows(file, results.read_table(committed))
    with open(committed, newline='') as was, open(file, newline='') as now:
        old, new = list(csv.DictReader(was)), list(csv.DictReader(now))
    assert [{column: row[column] for column in old[0]} for row in new] == old
    plain = io.StringIO()
    writer = csv.writer(plain, lineterminator='\n')
    writer.writerows([[*new[0]], *(row.values() for row in new)])
    assert file.read_text() == plain.getvalue()


def test_a_table_of_another_ending_is_not_passed_by(tmp_path):
    made(tmp_path, 0.9)
    (tmp_path / 'digits.csv').rename(tmp_path / 'digits.CSV')
    config = resolve(dataset='digits', bits=16)
    readers = (
        lambda: results.read_results(tmp_path),
        lambda: results.tables_hash(tmp_path),
        lambda: results.row_of_config(config, tmp_path),
        lambda: made(tmp_path, 0.9),
    )
    for read in readers:
        with pytest.raises(ValueError, match='digits.CSV: the name of a table ends in .csv'):
            read()
    assert [file.name for file in tmp_path.glob('d*')] == ['digits.CSV']


def test_what_record_refuses_is_named_by_its_file(tmp_path):
    odd = {'passed': [], 'gradient': 'x', 'class_gradient': -1.0, 'held': 'yes'}
    for seed, (name, value) in enumerate(odd.items()):
        file = left(tmp_path / 'runs', 0.5, seed=seed)
        found = json.loads(file.read_text())
        found['history'][-1][name] = value
        file.write_text(json.dumps(found))
    file = left(tmp_path / 'runs', 0.5, seed=7)
    (tmp_path / 'runs/digits-default/file').write_text('')
    words = ['record', str(tmp_path / 'runs'), '--reports', str(tmp_path / 'reports')]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == len(odd)
    for line, name in zip(sorted(done.stderr.splitlines()), odd, strict=True):
        assert 'result.json: ' in line and f'history.1.{name} is ' in line
    found = json.loads(file.read_text())
    found['metrics']['map'] = 0.505
    file.write_text(json.dumps(found))
    done = CliRunner().invoke(app, words)
    assert f'{file}: ' in done.stderr and 'is recorded in' in done.stderr
    done = CliRunner().invoke(app, [*words[:-1], str(file / 'reports')])
    assert f'{file}: ' in done.stderr and 'Errno' not in done.stderr


def test_a_result_of_arrays_is_refused_in_one_line():
    for part, name in (('metrics', 'normaliser'), ('config', 'hash'), ('protocol', 'source')):
        found = result(0.9)
        found[part][name] = np.eye(30)
        with pytest.raises(ValueError, match=name) as error:
            results.check_result(found)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('wrong', [None, 3, b'a', {}, 'x' * 300], ids=repr)
def test_what_is_no_path_and_no_table_is_said(wrong):
    readers = [
        results.read_results,
        results.read_table,
        results.read_result,
        results.tables_in,
        results.tables_hash,
    ]
    if wrong is None:
        assert len(results.published(wrong)) > 40  # the table that comes with dcwh
    else:
        readers.append(results.published)
    for read in readers:
        with pytest.raises((ValueError, OSError), match='give') as error:
            read(wrong)
        assert '\n' not in str(error.value) and 'Errno' not in str(error.value)
    frames = (
        results.summary,
        results.protocols,
        results.comparison,
        lambda table: results.paired(table, 'a', 'b'),
        lambda t: results.standings(t, 'a'),
    )
    for sum_up in frames:
        with pytest.raises(ValueError, match='give what'):
            sum_up(wrong)


def test_a_table_without_rows_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr('dcwh.experiment.execute', lambda *given, **more: None)
    made(tmp_path / 'reports', 0.9)
    file = tmp_path / 'reports/digits.csv'
    file.write_text(file.read_text().splitlines()[0])
    assert results.read_table(file) == []
    words = [
        'compare',
        str(tmp_path / 'reports'),
        '--out',
        str(tmp_path / 'out.ipynb'),
        '--published',
        str(ROOT / 'data/published.csv'),
        '--template',
        str(ROOT / 'nbs/templates/compare.ipynb'),
    ]
    done = CliRunner().invoke(app, words)
    assert (
        done.exit_code == 2 and f'no row of a table and no result in {file.parent};' in done.stderr
    )
    made(tmp_path / 'other', 0.9)
    bare = tmp_path / 'other/bare.csv'
    bare.write_text(file.read_text())
    words[1] = str(bare.parent)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and done.stderr == f'{bare} has no row\n', done.output


def test_a_folder_without_results_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr('dcwh.experiment.execute', lambda *given, **more: None)
    made(tmp_path / 'reports', 0.9)
    model = tmp_path / 'runs/digits-default/a-run/model'  # a folder too deep
    model.mkdir(parents=True)
    out = str(tmp_path / 'out.ipynb')
    done = CliRunner().invoke(app, ['compare', str(tmp_path / 'reports'), str(model), '--out', out])
    assert done.exit_code == 0 and done.stderr == f'{model} has no row of a table and no result\n'
    done = CliRunner().invoke(app, ['compare', str(model), '--out', out])
    assert (
        done.exit_code == 2 and f'no row of a table and no result in {model}; give' in done.stderr
    )


def test_a_run_with_other_numbers_than_its_row_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr('dcwh.experiment.execute', lambda *given, **more: None)
    reports, runs = tmp_path / 'reports', tmp_path / 'runs'
    for seed in (0, 1):
        made(reports, 0.9, seed=seed)
    words = [
        'compare',
        str(reports),
        str(runs),
        '--out',
        str(tmp_path / 'out.ipynb'),
        '--published',
        str(ROOT / 'data/published.csv'),
        '--template',
        str(ROOT / 'nbs/templates/compare.ipynb'),
    ]
    left(runs, 0.9 + 1e-15)  # a last digit that another sum has
    assert CliRunner().invoke(app, words).stderr == ''
    assert results.record(result(0.9 + 1e-15), reports) == reports / 'digits.csv'
    name = left(runs, 0.85, seed=1).relative_to(runs).parent
    said = CliRunner().invoke(app, words).stderr
    assert said == (
        'finished runs that have other numbers than their rows in the tables: 1 '
        f'({name}); the rows are shown\n'
    )
    assert results.read_results(reports, runs)['map'].tolist() == [0.9, 0.9]


def test_a_named_run_is_no_further_seed(tmp_path):
    "It was read otherwise, which changes its hash. The template of named runs joins them so."
    for seed in (0, 1, 2):
        made(tmp_path / 'reports', 0.9, source='lists/x', seed=seed)
    run = left(tmp_path / 'runs', 0.9, source='lists/x', settings={'missing': 'skip'}).parent
    both = pd.concat([results.read_results(tmp_path / 'reports'), results.read_results(run)])
    assert both['hash'].nunique() == 4
    with pytest.warns(UserWarning, match='left out, as the same run is there'):
        once = results.each_seed_once(both)
    assert results.summary(once)['n'].tolist() == [3]
    template = json.loads((ROOT / 'nbs/templates/overlay.ipynb').read_text())
    assert 'both = results.each_seed_once(both)' in str(template)


def test_runs_on_validation_images_are_no_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr('dcwh.experiment.execute', lambda *given, **more: None)
    left(tmp_path / 'val', 0.9, evaluate_on='validation')
    done = CliRunner().invoke(app, ['compare', str(tmp_path / 'val')])
    assert done.exit_code == 2 and 'val are of study tuning, and a comparison' in done.stderr


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    (tmp_path / 'file').touch()
    for name in ('nowhere', 'file'):
        with pytest.raises(FileNotFoundError, match=f'{name} is no.*give a folder'):
            results.read_results(tmp_path / name)
    (tmp_path / 'empty').mkdir()
    nothing = results.read_results(tmp_path / 'empty')
    assert nothing.empty and results.summary(nothing).empty


@pytest.mark.parametrize(
    'part, name, said',
    [
        ('protocol', 'source_hash', 'data set of one name, digits'),
        ('manifest', 'weights_sha256', 'file of weights of one name'),
    ],
)
def test_one_name_for_two_sets_of_images_or_weights_is_refused(tmp_path, part, name, said):
    for seed in (0, 1):
        file = left(tmp_path, 0.5, seed=seed)
        changed = json.loads(file.read_text())
        changed[part][name] = str(seed) * 16
        file.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=said):
        results.read_results(tmp_path)


def test_the_same_run_in_two_tables_is_refused(tmp_path):
    made(tmp_path / 'a', 0.91)
    made(tmp_path / 'b', 0.91)
    with pytest.raises(ValueError, match='a/digits.csv and in .*b/digits.csv; keep one'):
        results.read_results(tmp_path / 'a', tmp_path / 'b')


def test_tuning_and_ablation_are_left_out_unless_asked_for(tmp_path):
    made(tmp_path, 0.9)
    made(tmp_path, 0.1, 'tuning', seed=7)
    made(tmp_path, 0.1, 'ablation', seed=8)
    assert results.read_results(tmp_path)['seed'].tolist() == [0]
    assert results.read_results(tmp_path, studies=('tuning',))['seed'].tolist() == [7]
    assert len(results.read_results(tmp_path, studies=('comparison', 'ablation'))) == 2


def test_paired_difference_is_smaller_than_the_intervals_say(runs):
    pair = row(results.paired(runs, 'dcwh', 'ce'), bits=16)
    half = stats.t.ppf(0.975, 2) * stats.sem([0.05, 0.06, 0.07])
    assert pair.n == 3 and pair.difference == pytest.approx(0.06)
    assert pair.interval == pytest.approx(half)
    assert results.paired(runs, 'dcwh-learned', 'ce').empty


def test_published_numbers_are_those_of_their_file(others):
    kinds = {'bits': int, 'map': float, 'top_k': 'Int64'}
    file = ROOT / 'data/published.csv'
    plain = pd.read_csv(file, keep_default_na=False, na_values={'top_k': ['']})
    assert len(others) > 40
    pd.testing.assert_frame_equal(others, plain.astype(kinds), check_exact=True)


@pytest.mark.parametrize(
    'wrong, said',
    [
        ({'map': '89.4'}, 'map is 89.4; a share is at most 1'),
        ({'map': 'nan'}, "map is 'nan'"),
        ({'map': '-0.5'}, "map is '-0.5'"),
        ({'bits': '16.5'}, "bits is '16.5'"),
        ({'bits': '-16'}, 'bits is -16'),
        ({'top_k': '5000.5'}, "top_k is '5000.5'"),
        ({'top_k': 'all'}, "top_k is 'all'"),
        ({'top_k': '9' * 5000}, 'top_k is '),
        ({'source': '"  "'}, 'source is empty'),
        ({'method': '"A'}, 'a quote opens and is not closed'),
        ({'note': 'a,b'}, '11 columns, where the first line has 10'),
    ],
)
def test_a_published_number_that_is_none_is_named_by_its_line(tmp_path, wrong, said):
    head, good = (ROOT / 'data/published.csv').read_text().splitlines()[:2]
    texts = dict(zip(head.split(','), good.split(',')[:10], strict=True)) | wrong
    file = tmp_path / 'numbers.csv'
    file.write_text(f'{head}\n{",".join(texts.values())}\n')
    with pytest.raises(ValueError, match=re.escape(f'{file}, line 2: {said}')) as error:
        results.published(file)
    assert str(error.value).isprintable()


def test_published_numbers_stand_beside_with_their_differences(table, others):
    cells = results.comparison(table, others)
    theirs = cells[cells.source != '']
    assert set(theirs.dataset) == {'folder/cifar10-jpeg'} and set(theirs.protocol) == {'full'}
    quoted = row(cells, method='DCWH (paper as quoted)', bits=48)
    assert quoted.text == '0.952'
    assert quoted.group.startswith(
        'full, published (README of github.com/mzhang367/dcwh): '
        'images of cifar10; backbone googlenet'
    )
    lines = cells[cells.dataset == 'folder/cifar10-jpeg'].group.drop_duplicates().tolist()
    assert 'published' not in lines[0] and all('published' in line for line in lines[1:])


def test_intervals_end_at_one(tmp_path):
    for seed, score in enumerate((0.9, 0.999, 0.99)):
        made(tmp_path, score - 0.02, seed=seed)
    cells = results.comparison(results.summary(results.read_results(tmp_path)))
    assert re.fullmatch(r'0\.943 \(0\.\d{3} to 1\)', cells.text[0])


def outputs(notebook):
    cells = json.loads(notebook.read_text())['cells']
    return [output for cell in cells for output in cell.get('outputs', [])]


def said(shown):
    "All that outputs say in words or tables."
    texts = [output.get('text', output.get('data', {}).get('text/html', '')) for output in shown]
    return ''.join(''.join(text) for text in texts).replace('&nbsp;', ' ')


def compare(folder, out):
    parameters = {'folders': [str(folder)], 'published': str(ROOT / 'data/published.csv')}
    execute(ROOT / 'nbs/templates/compare.ipynb', out, parameters)
    return outputs(out)


def test_comparison_as_a_notebook(folder, tmp_path):
    shown = compare(folder, tmp_path / 'out.ipynb')
    words = re.sub('</?small>', '', said(shown))
    assert '14 runs of 3 methods on 2 data sets' in words and results.tables_hash(folder) in words
    assert '<b>0.930 ± 0.050</b>' in words and 'README of github.com/mzhang367/dcwh' in words
    assert sum('image/png' in output.get('data', {}) for output in shown) == 1


def test_a_folder_that_papermill_gives_is_one_text(folder, tmp_path):
    out = tmp_path / 'out.ipynb'
    for template, own in (('compare', {}), ('overlay', {'runs': []})):
        parameters = {'folders': str(folder), **own}
        execute(ROOT / f'nbs/templates/{template}.ipynb', out, parameters)
        assert '<b>0.930' in re.sub('</?small>', '', said(outputs(out)))


def test_a_run_with_settings_of_its_own_has_a_row_of_its_own(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'reports')
    made(tmp_path / 'reports', 0.95, lr=0.5)
    words = said(compare(tmp_path / 'reports', tmp_path / 'out.ipynb'))
    assert words.count('lr=0.5') == 2  # in both tables


def test_comparison_without_results(tmp_path):
    (tmp_path / 'nothing').mkdir()
    shown = compare(tmp_path / 'nothing', tmp_path / 'out.ipynb')
    assert 'There are no results in' in said(shown) and 'tables of' not in said(shown)
    assert not any('image/png' in output.get('data', {}) for output in shown)


def test_the_committed_comparison_is_small_and_of_these_tables():
    file = ROOT / 'reports/compare.ipynb'
    assert file.stat().st_size < 900_000
    current = results.tables_hash(ROOT / 'reports') in file.read_text()
    assert current, 'the tables have changed; run: dcwh compare reports --out reports/compare.ipynb'


# tables and those who write them

RECORDING = """
import json, sys
from dcwh.results import record
from dcwh.config import resolve
result = json.loads(sys.stdin.readline())
for seed in range(1000):
    config = resolve(dataset='digits', bits=16, seed=seed)
    result['config'] = {**config.model_dump(), 'hash': config.hash}
    record(result, sys.argv[1])
    print(seed, flush=True)
"""


@pytest.mark.parametrize('after', [1, 4])
def test_a_kill_loses_no_row(tmp_path, after):
    process = Python(RECORDING, tmp_path)
    process.stdin.write(json.dumps(result(0.9)) + '\n')
    process.stdin.flush()
    said = [int(process.stdout.readline()) for _ in range(after)]
    process.kill()
    process.end()
    kept = [row['seed'] for row in results.read_table(tmp_path / 'digits.csv')]
    assert set(said) <= set(kept) and len(kept) == len(set(kept))
    made(tmp_path, 0.9, seed=2000)  # and others go on
    assert len(results.read_table(tmp_path / 'digits.csv')) == len(kept) + 1
    assert not list(tmp_path.glob('*.part')) and not list(tmp_path.glob('.*.part'))


def test_two_people_add_rows_without_a_conflict(tmp_path):
    def git(*words):
        names = ['-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'init.defaultBranch=main']
        return subprocess.run(
            ['git', *names, *words], cwd=tmp_path, check=True, capture_output=True
        )

    shutil.copy(ROOT / '.gitattributes', tmp_path)
    git('init')

    def commit(branch, *seeds):
        for seed in seeds:
            made(tmp_path / 'reports', 0.9, seed=seed)
        git('add', '.'), git('commit', '-m', branch)

    commit('both', 0, 9)
    before = (tmp_path / 'reports/digits.csv').read_text().splitlines()
    git('checkout', '-b', 'one'), commit('one', 4)
    after = (tmp_path / 'reports/digits.csv').read_text().splitlines()
    assert len([line for line in after if line not in before]) == 1 and set(before) <= set(after)
    git('checkout', 'main'), commit('other', 5, 8)
    git('merge', 'one')
    rows = results.read_table(tmp_path / 'reports/digits.csv')
    assert sorted(row['seed'] for row in rows) == [0, 4, 5, 8, 9]


def test_tables_are_read_and_summed_up_with_pandas_alone(folder):
    code = """
import sys
for name in (
    'seaborn', 'matplotlib', 'scipy', 'sklearn', 'threadpoolctl', 'IPython', 'papermill'
):
    sys.modules[name] = None
from dcwh.results import comparison, read_results, standings, summary
runs = read_results(sys.argv[1])
print(len(runs), len(summary(runs)), len(comparison(summary(runs))), len(standings(runs, 'dcwh')))
"""
    done = subprocess.run([sys.executable, '-c', code, folder], capture_output=True, text=True)
    assert done.stdout.split() == ['14', '6', '6', '2'], done.stderr


def test_a_run_needs_no_pandas(tmp_path):
    code = """
import sys
sys.modules['pandas'] = None
from dcwh.experiment import recorded
from dcwh.results import read_results
from dcwh.config import resolve
print(recorded(resolve(dataset='digits', bits=16), sys.argv[1], sys.argv[2])[0]['metrics']['map'])
try: read_results(sys.argv[1])
except ImportError as e: print(e)
"""
    made(tmp_path, 0.9)
    done = subprocess.run(
        [sys.executable, '-c', code, tmp_path, tmp_path], capture_output=True, text=True
    )
    assert (
        done.stdout.startswith('0.9\npandas is missing')
        and "pip install '.[report]'" in done.stdout
    ), done.stderr


def test_settings_that_define_a_registered_method_are_no_change():
    "The method was left out of every standing."

    def wider(config, num_classes, images, generator):
        "dcwh with means of the whole training set."
        return METHODS['dcwh'].build(config, num_classes, images, generator)

    register('wider', wider, settings={'centres': 'exact'})
    try:
        config = resolve(dataset='digits', bits=16, method='wider').model_dump()
        assert results.setting(config, own=False) == 'default'
        assert results.setting(config | {'epochs': 7}, own=False) == 'default, epochs=7'
    finally:
        del METHODS['wider']
    assert results.setting(config, own=False) == 'default, centres=exact'
