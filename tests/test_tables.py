"""A table of results in other hands: merged by git, edited cell by cell, given as a text."""

import csv
import json
import os
import shutil
import subprocess
from itertools import permutations
from pathlib import Path

import pytest

from dcwh import experiment
from dcwh import results as module
from dcwh.config import resolve
from dcwh.data import PARTS
from dcwh.results import (
    check_result,
    comparison,
    paired,
    protocols,
    read_results,
    read_table,
    record,
    row_of_config,
    standing_cells,
    standings,
    summary,
    widths,
)
from dcwh.sources import as_cell

ROOT = Path(__file__).parents[1]


def invented(score=0.8, **settings):
    "A result, usually on digits, with an invented mAP; its parts have that of the whole."
    config = resolve(**{'dataset': 'digits', 'bits': 16, **settings})
    sizes = {'query': 359, 'database': 1438, 'classes': 10}
    metrics = {
        'map': score,
        'map_optimistic': score + 0.01,
        'map_pessimistic': score - 0.02,
        'precision_radius_2': 0.5,
        'queries_empty_radius_2': 0,
        'queries_without_relevant': 0,
        'distance_within': 4.0,
        'distinct_codes': 40,
        'normaliser': 'all',
    }
    made = {
        'config': {**config.model_dump(), 'hash': config.hash},
        'protocol': {
            'source': config.dataset,
            'source_hash': '62eb172a75fecaf7',  # as in reports/digits.csv
            'missing': 0,
            'name': 'full',
            'train': 1100,
            'labels_per_image': 'one',
            'top_k': None,
            'split_hash': f'split {config.seed}',
            **sizes,
        },
        'metrics': metrics,
        'history': [],
        'manifest': {'versions': {}, 'device': 'none', 'seconds': {}},
    }
    if config.unseen:
        made['protocol']['seen'] = 8
        of = {'seen': (300, 1155, 8), 'unseen': (59, 283, 2), 'all': (359, 1438, 10)}
        made['parts'] = {}
        for part in PARTS:
            query, database = (of[kind] for kind in part.split('@'))
            own = {'query': query[0], 'database': database[1], 'classes': database[2]}
            made['parts'][part] = own | {'metrics': metrics}
    if config.method == 'dcwh-nested':
        made['parts'] = {
            f'{bits} bits': sizes
            | {'metrics': metrics | {'distance_within': bits / 10, 'distinct_codes': bits}}
            for bits in (16, 24)
        }
    return made


# merged by git


def git(folder, *words):
    own = ('-c', 'user.name=x', '-c', 'user.email=x@x.org')
    done = subprocess.run(['git', '-C', folder, *own, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def merged(folder, base, ours, theirs):
    "A table of two branches that git has merged, as .gitattributes says: each recorded results."
    reports, file = folder / 'reports', folder / 'reports/digits.csv'
    reports.mkdir(parents=True)
    shutil.copy(ROOT / '.gitattributes', folder)
    file.write_text(base)
    git(folder, 'init', '-q', '-b', 'main')
    git(folder, 'add', '-A')
    git(folder, 'commit', '-qm', 'base')
    git(folder, 'branch', 'theirs')
    for branch, found in (('main', ours), ('theirs', theirs)):
        git(folder, 'checkout', '-q', branch)
        for result in found:
            record(result, reports, modified=True)
        git(folder, 'commit', '-qam', branch)
    git(folder, 'checkout', '-q', 'main')
    git(folder, 'merge', '-q', 'theirs', '-m', 'merge')
    return file


def as_before(columns, rows=12):
    "The first lines of a table of this repository, without some later columns."
    with open(ROOT / 'reports/digits.csv', newline='') as file:
        head, *lines = list(csv.reader(file))[: rows + 1]
    kept = [n for n, name in enumerate(head) if name not in columns]
    lines = [[line[n] for n in kept] for line in (head, *lines)]
    return ''.join(','.join(text and as_cell(text) for text in line) + '\n' for line in lines)


@pytest.mark.parametrize(
    'ours, theirs',
    [
        pair
        for two in (
            ([{'unseen': 0.2}], [{'seed': 7}]),  # later columns on one side
            ([{'unseen': 0.2}, {'seed': 8}], [{'tf32': True}, {'seed': 8}]),  # others on each
            ([{'seed': 7}], [{'seed': 8}]),  # on none
            ([{'unseen': 0.2}], [{'unseen': 0.2, 'seed': 3}]),  # the same on both
        )
        for pair in permutations(two)
    ],
)
def test_a_table_that_git_merged_loses_no_row(tmp_path, ours, theirs):
    base = as_before(('part', 'seen'))
    known = len(base.splitlines()) - 1
    made = [[invented(**changes) for changes in side] for side in (ours, theirs)]
    file = merged(tmp_path, base, *made)
    rows = read_table(file)
    expected = {check_result(result).hash: result for side in made for result in side}
    number = sum(1 + len(result.get('parts', {})) for result in expected.values())
    assert len(rows) == known + number
    for result in expected.values():
        row = row_of_config(check_result(result), file.parent)
        assert row['map'] == 0.8 and row['part'] is None
    assert len(read_results(file.parent)) > 0
    record(made[0][0], file.parent, modified=True)  # puts it in order
    lines = file.read_text().splitlines()
    assert sum(line.startswith('run,') for line in lines) == 1 and len(lines) == len(rows) + 1
    order = sorted(rows, key=lambda row: row['run'])  # a stable sort
    assert read_table(file) == order
    assert [line.partition(',')[0] for line in lines[1:]] == [row['run'] for row in order]


def test_other_numbers_in_a_merged_table_are_refused(tmp_path):
    base = as_before(('part', 'seen'))
    sides = [invented(), invented(unseen=0.2)], [invented(0.7)]
    file = merged(tmp_path, base, *sides)
    said = r'line \d+: .* stands twice, first in .*line \d+; keep one'
    for ask in (
        lambda: read_table(file),
        lambda: row_of_config(check_result(invented()), file.parent),
        lambda: record(invented(seed=5), file.parent, modified=True),
    ):
        with pytest.raises(ValueError, match=said):
            ask()


def test_a_later_head_is_checked_as_the_first(tmp_path):
    file = tmp_path / 'digits.csv'
    text = as_before((), 2)
    head, first, second = text.splitlines()
    for content, said in (
        (f'{head}\n{first}\n{head},brier\n{second},1\n', 'line 3: unknown columns brier'),
        (f'{head}\n{first}\n{head.removesuffix(",accelerate")}\n', 'line 3: columns accelerate'),
        (f'{head}\n{first}\n{head}\n{second},1\n', 'where line 3 has'),
        (f'{head}\n{first}\n{head}\n{first}\n', 'line 4: .* stands twice, first in .*line 2'),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=said):
            read_table(file)
    file.write_text(f'{head}\n{first}\n{head}\n{second}\n')
    assert len(read_table(file)) == 2


# the rows of one run


def edited(file, changes):
    "A table with other texts: (part, column) -> text."
    with open(file, newline='') as old:
        rows = list(csv.DictReader(old))
    for row in rows:
        row |= {column: text for (part, column), text in changes.items() if part == row['part']}
    lines = [[*rows[0]], *(row.values() for row in rows)]
    file.write_text(
        ''.join(','.join(text and as_cell(text) for text in line) + '\n' for line in lines)
    )


@pytest.mark.parametrize(
    'changes, said',
    [
        ({('seen@seen', 'split_hash'): 'x'}, 'line 3: split_hash is x, and of its whole .*line 2'),
        ({('seen@seen', 'source_hash'): 'x'}, 'line 3: source_hash is x'),
        ({('seen@all', 'model'): 'other'}, 'line 4: model is other'),
        ({('seen@all', 'commit'): 'f' * 40}, 'line 4: commit is f+'),
        ({('unseen@all', 'device'): 'other'}, 'line 6: device is other'),
        ({('unseen@all', 'study'): 'ablation'}, 'line 6: study is ablation'),
        ({('unseen@all', 'train'): '1200'}, 'line 6: train is 1200'),
        (
            {('seen@all', 'map'): '0.9', ('seen@all', 'map_optimistic'): '0.9'},
            'line 2: .*map of seen@all and unseen@all make up 0.8',
        ),
        (
            {('seen@all', 'queries_empty_radius_2'): '3'},
            'line 2: .*queries_empty_radius_2 of seen@all and unseen@all make up 3',
        ),
        (
            {
                ('seen@seen', 'part'): 'unseen@unseen',
                ('unseen@unseen', 'part'): 'seen@seen',
            },
            'line 2: .*classes of seen@seen is 2, and of seen 8',
        ),
        (
            {('seen@seen', 'query'): '299', ('unseen@unseen', 'query'): '60'},
            'query of seen@seen is 299, and of seen@all 300',
        ),
        ({('seen@all', 'classes'): '9'}, 'classes of seen@all is 9, and of the whole 10'),
        (
            {('unseen@all', 'database'): '1400'},
            'database of unseen@all is 1400, and of the whole 1438',
        ),
        ({('', 'seen'): '7'}, 'line 2: .*seen is 7; unseen is 0.2 of 10 classes'),
    ],
)
def test_parts_make_up_their_whole(tmp_path, changes, said):
    result = invented(unseen=0.2)
    file = record(result, tmp_path, modified=True)
    assert len(read_table(file)) == 5
    edited(file, changes)
    for ask in (lambda: read_table(file), lambda: row_of_config(check_result(result), tmp_path)):
        with pytest.raises(ValueError, match=said):
            ask()


def test_a_result_whose_parts_contradict_it_is_none():
    for name, of, value, said in (
        ('seen@all', 'classes', 7, 'classes of seen@all is 7'),
        ('unseen@all', 'database', 1400, 'database of unseen@all is 1400'),
    ):
        result = invented(unseen=0.2)
        result['parts'][name] = result['parts'][name] | {of: value}
        with pytest.raises(ValueError, match=said):
            check_result(result)
    result = invented(unseen=0.2)
    result['protocol']['seen'] = 3
    with pytest.raises(ValueError, match='seen is 3; unseen is 0.2 of 10 classes'):
        check_result(result)


@pytest.mark.parametrize(
    'changes, said',
    [
        ({('16 bits', 'device'): 'other'}, 'line 3: device is other'),
        ({('24 bits', 'query'): '300'}, '24 bits are of .*; they should be of the same images'),
        ({('16 bits', 'distinct_codes'): '30'}, 'distinct_codes of 16 bits is 30, and of 24 bits'),
        ({('24 bits', 'distance_within'): '5'}, 'distance_within of 24 bits is 5.0, and of the wh'),
        ({('16 bits', 'distance_between'): '17'}, 'distance_between is 17.0, and bits is 16'),
    ],
)
def test_shorter_codes_are_of_the_same_run(tmp_path, changes, said):
    result = invented(method='dcwh-nested', bits=32)
    file = record(result, tmp_path, modified=True)
    assert [row['part'] for row in read_table(file)] == [None, '16 bits', '24 bits']
    edited(file, changes)
    with pytest.raises(ValueError, match=said):
        read_table(file)


# what is given where a list, or another table, is due


def test_a_text_is_one_name():
    reports = ROOT / 'reports'
    results = read_results(reports, studies='comparison')
    assert results.equals(read_results(reports)) and len(results)
    alone = standings(results, 'dcwh', 'dpsh')
    assert alone.equals(standings(results, 'dcwh', ['dpsh'])) and set(alone['other']) == {'dpsh'}


def test_a_table_of_another_function_is_refused(tmp_path):
    record(invented(), tmp_path)
    results = read_results(tmp_path)
    table = summary(results)
    for wrong, ask in (
        (table, summary),
        (table, protocols),
        (table, lambda of: standings(of, 'dcwh')),
        (table, lambda of: paired(of, 'dcwh', 'ce')),
        (results, comparison),
        (results, widths),
        (table, standing_cells),
    ):
        with pytest.raises(ValueError, match='is a DataFrame without .*; give what') as said:
            ask(wrong)
        assert '\n' not in str(said.value)


def test_other_tasks_are_in_no_table_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'workflow'))
    import result_tables

    own = invented()
    few, cut = invented(train_images=400), invented(map_top_k=50)
    cut['protocol']['top_k'], cut['metrics']['normaliser'] = 50, 'found'
    for result in (
        own,
        few,
        cut,
        invented(unseen=0.2),
        invented(train_per_class=5),
        invented(method='dcwh-nested', bits=32),
    ):
        record(result, tmp_path)
    assert len(read_results(tmp_path)) == 12
    kept = result_tables.recorded(tmp_path)
    assert kept['hash'].tolist()[:1] == [check_result(own).hash]
    assert list(zip(kept['method'], kept['part'], strict=True)) == [
        ('dcwh', ''),
        ('dcwh-nested', ''),
    ]
    record(invented(seed=1, lr=0.5), tmp_path)
    with pytest.raises(ValueError, match='dcwh was run on digits at .* bits with several settings'):
        result_tables.recorded(tmp_path)


def test_every_setting_has_a_name_of_its_own(tmp_path):
    others = {'padding': 1}, {'resize': 20}, {'lr': 0.0012345678}, {'lr': 0.0012345679}
    for number, settings in enumerate([{}, *others]):
        for seed in (0, 1):
            for method in ('dcwh', 'ce'):
                score = 0.9 - number / 10 + seed / 100
                record(invented(score, method=method, seed=seed, **settings), tmp_path)
    results = read_results(tmp_path)
    cells = comparison(summary(results))
    assert len(cells) == 10 and not cells.duplicated(['group', 'method', 'column']).any()
    assert sum('padding=1' in group for group in cells['group']) == 2
    pairs = paired(results, 'dcwh', 'ce')
    assert not pairs.duplicated(['shared', 'compared']).any() and set(pairs['n']) == {2}
    marks = standing_cells(standings(results, 'dcwh'))
    assert not marks.duplicated(['group', 'method', 'column']).any()


def test_a_seed_counts_once_wherever_its_files_were(tmp_path):
    listed = {'dataset': 'lists/x', 'backbone': 'resnet18'}
    for seed, place in enumerate(('/here', '/here', '/there')):
        weights = f'{place}/w.safetensors'
        record(invented(0.9, seed=seed, weights=weights, **listed), tmp_path)
    (row,) = summary(read_results(tmp_path)).to_dict('records')
    assert row['n'] == 3
    again = {'workers': 3, 'missing': 'skip', 'weights': '/elsewhere/w.safetensors'}
    record(invented(0.5, seed=2, **listed, **again), tmp_path)
    with pytest.warns(UserWarning, match='left out, as the same run .* missing: x-default/'):
        (row,) = summary(read_results(tmp_path)).to_dict('records')
    assert row['n'] == 3


def test_a_comparison_counts_runs_and_not_their_parts(tmp_path, capsys):
    notebook = json.loads((ROOT / 'nbs/templates/compare.ipynb').read_text())
    cells = [''.join(cell['source']) for cell in notebook['cells']]
    cell = next(cell for cell in cells if 'read_results(*folders)' in cell)
    record(invented(unseen=0.2), tmp_path)
    given = {'os': os, 'experiment': experiment, 'results': module, 'published': ''}
    given['folders'] = [str(tmp_path)]
    exec(cell, given)
    assert capsys.readouterr().out.startswith('1 run of 1 method on 1 data set, in ')
    record(invented(seed=1), tmp_path)
    exec(cell, given)
    assert capsys.readouterr().out.startswith('2 runs of 1 method on 1 data set, in ')
