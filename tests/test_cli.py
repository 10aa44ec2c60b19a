"""The command line: what it refuses before any work, what it never writes over, and that text
stays text on the way to a number."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

import dcwh.files
from dcwh import cli
from dcwh.__main__ import main
from dcwh.cli import app, columns_of, labelled, save_codes
from dcwh.codes import Codes
from dcwh.config import RECIPES, Config
from dcwh.evaluation import evaluate
from dcwh.methods import METHODS, register
from dcwh.model import HashModel
from dcwh.search import INDEX_KINDS, CodeIndex
from dcwh.sharing import OnnxModel

CLASSES = ('ant', 'bee', 'cow')


def do(*words):
    "A command in this process."
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(done, *said):
    "One line, exit code 2, and every word of `said` in it."
    assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1, (
        done.exit_code,
        done.output,
    )
    for word in said:
        assert word in done.stderr, (word, done.stderr)
    return True


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder with a model and photos of three classes; commands run in it."
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    HashModel('small', 16, weights='none', image_size=16).save_pretrained('model')
    rng = np.random.default_rng(0)
    for c, name in enumerate(CLASSES):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 60, (16, 16, 3)) + 150 * (np.arange(3) == c)
            Image.fromarray(pixels.astype('uint8')).save(f'photos/{name}/{i}.png')
    return tmp_path


def encode(*more, images='photos', out='c.npz'):
    return do('encode', 'model', images, '--out', out, '--workers', 0, *more)


def write_list(columns, rows, name='list.csv'):
    with open(name, 'w') as file:
        file.write('\n'.join([columns, *rows]) + '\n')


def images_labelled(**labels):
    "A list of two photos of each class, with other labels."
    return [f'photos/{c}/{i}.png,{label}' for c, label in labels.items() for i in range(2)]


def test_codes_and_table_stay_together(place):
    assert encode().exit_code == 0
    table = (place / 'c.csv').read_text()
    assert table.splitlines()[:2] == ['id,label', 'ant/0.png,ant'] and sorted(
        os.listdir(place)
    ) == ['c.csv', 'c.npz', 'model', 'photos']
    assert do('index', 'build', 'one.index', 'c.npz').exit_code == 0
    (place / 'c.csv').write_text(table.replace('ant/0.png,ant', 'ant/0.png,bee'))
    assert refused(do('index', 'build', 'two.index', 'c.npz'), 'c.csv', 'was changed', '--table')
    assert refused(do('evaluate', 'c.npz', 'c.npz'), 'c.csv', 'was changed')
    assert do('index', 'build', 'two.index', 'c.npz', '--table', 'c.csv').exit_code == 0
    assert CodeIndex.load('two.index').details(['ant/0.png'])['label'].tolist() == ['bee']
    assert refused(encode(), 'c.csv is there, and is not the table')  # it was edited by hand
    (place / 'c.csv').unlink()
    assert refused(do('index', 'build', 'three.index', 'c.npz'), 'c.csv', 'is not there')
    assert do('index', 'build', 'three.index', 'c.npz', '--table', 'none').exit_code == 0
    assert (
        CodeIndex.load('three.index').columns == ()
        and encode().exit_code == 0
        and (place / 'c.csv').read_text() == table
    )


def test_two_that_write_the_same_codes_leave_one_pair(tmp_path):
    out, rng = tmp_path / 'c.npz', np.random.default_rng(0)

    def write(name):
        codes = Codes.from_outputs(
            rng.standard_normal((3, 8)), ids=np.array([f'{name}{i}' for i in range(3)])
        )
        for _ in range(20):
            save_codes(codes, {'label': [name] * 3}, out)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, 'abcd'))
    assert columns_of(Codes.load(out), out)['label'] == [Codes.load(out).ids[0][0]] * 3
    assert sorted(os.listdir(tmp_path)) == ['c.csv', 'c.npz']


@pytest.mark.parametrize('killed_at', ['c.npz', 'c.csv'])
def test_a_kill_between_codes_and_table_is_noticed_and_mended(place, monkeypatch, killed_at):
    write_list('path,label', images_labelled(ant='old', bee='old'))
    assert encode(images='list.csv').exit_code == 0
    write_list('path,label', images_labelled(ant='new', bee='new'))
    rename = os.replace

    def killed(source, target):
        if str(target).endswith(killed_at):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(dcwh.files.os, 'replace', killed)
    assert encode(images='list.csv').exit_code not in (0, 2)
    monkeypatch.setattr(dcwh.files.os, 'replace', rename)
    built = do('index', 'build', 'x.index', 'c.npz')
    assert (
        refused(built, 'c.csv')
        if killed_at == 'c.csv'
        else CodeIndex.load('x.index').values('label') == ['old']
    )
    assert (
        encode(images='list.csv').exit_code == 0
        and do('index', 'build', 'y.index', 'c.npz').exit_code == 0
    )
    assert CodeIndex.load('y.index').values('label') == ['new'] and not [
        n for n in os.listdir(place) if n.endswith('.part')
    ]


def test_nothing_is_written_over(place):
    write_list('path,label', images_labelled(ant='a', bee='b'), 'photos.csv')
    before = (place / 'photos.csv').read_text()
    assert refused(encode(images='photos.csv', out='photos.npz'), 'photos.csv', 'names the images')
    assert refused(encode(out='photos.npz'), 'photos.csv is there')  # somebody's own table
    os.symlink('photos.csv', 'link.csv')
    assert refused(encode(images='photos.csv', out='link.npz'), 'names the images')
    np.savez('other.npz', weights=np.ones(3))
    assert refused(encode(out='other.npz'), 'other.npz')
    assert (place / 'photos.csv').read_text() == before and np.load('other.npz').files == [
        'weights'
    ]


def test_places_and_columns_are_looked_at_before_an_image_is(place, monkeypatch):
    def encoding(*args, **options):
        raise AssertionError('an image was encoded')

    monkeypatch.setattr(HashModel, 'outputs_at', encoding)
    (place / 'taken.npz').mkdir()
    (place / 'file').touch()
    for out in ('x.csv', 'codes.v1', 'codes', 'taken.npz', 'file/c.npz', '/proc/c.npz'):
        assert refused(encode(out=out), out.partition('/')[0])
    for head in (
        'id,path,label',
        'path,code,label',
        'path,two words,label',
        'path,label,label',
        'path,label,',
        'path,distance',
    ):
        write_list(head, [','.join(['photos/ant/0.png'] * len(head.split(',')))])
        assert refused(encode(images='list.csv'), 'list.csv'), head
    assert refused(encode(images='nowhere'), 'nowhere')
    for model in (
        'nowhere',
        'runs/digits-default/dcwh-16/model',
        'x.onnx',
        'photos',
        'me/my-model',
    ):
        assert refused(do('encode', model, 'photos'), model)
    assert refused(
        do('search', 'nowhere.index', 'photos/ant/0.png', '--model', 'model'), 'nowhere.index'
    )
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert refused(encode('--precision', 'fp8'), 'precision')


def test_an_odd_name_survives_the_table(place):
    odd = ['a,b.png', 'a"b.png', 'a\rb.png', "a'b ü.png", ' a.png']
    for name in odd:
        os.rename(
            f'photos/ant/{len(os.listdir("photos/ant")) - 1}.png', f'photos/ant/{name}'
        ) if name == odd[0] else Image.new('RGB', (16, 16)).save(f'photos/ant/{name}')
    assert encode().exit_code == 0 and do('index', 'build', 'x.index', 'c.npz').exit_code == 0
    assert {f'ant/{name}' for name in odd} <= set(CodeIndex.load('x.index').ids.tolist())


def by_hand(labels, queries=20, codes=None):
    """The files of two sides, made elsewhere, with names in tables; and the mAP of the same with
    numbers."""
    rng = np.random.default_rng(1)
    names = sorted(set(labels))
    h, y = rng.standard_normal((len(labels), 32)), np.array([names.index(name) for name in labels])
    sides = slice(0, queries), slice(queries, None)
    for file, part in zip(('q', 'd'), sides, strict=True):
        Codes.from_outputs(h[part], ids=np.array([f'{file}{i}' for i in range(len(y[part]))])).save(
            f'{file}.npz'
        )
    return y, evaluate(*(Codes.from_outputs(h[part], y[part]) for part in sides)).map, sides


def tables(labels, sides, column='label'):
    for file, part in zip(('q', 'd'), sides, strict=True):
        write_list(
            f'id,{column}',
            [f'{file}{i},{label}' for i, label in enumerate(labels[part])],
            f'{file}.csv',
        )


def score():
    done = do('evaluate', 'q.npz', 'd.npz', '--json')
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)['map']


@pytest.mark.parametrize(
    'names',
    [
        ('a', 'b', 'c', 'd'),
        ('1.1', '1.10', '1.2', '1.20'),
        ('1_1', '11', '1_2', '12'),
        ('1e3', '1000', '1E3', '1000.0'),
        ('007', '7', '07', '7.0'),
        ('true', 'True', 'null', 'nan'),
        ('9' * 22, '9' * 23, '1' + '0' * 21, '-1'),
    ],
)
def test_class_names_are_text(tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    labels = [names[i] for i in np.random.default_rng(0).integers(0, 4, 220)]
    _, expected, sides = by_hand(labels)
    tables(labels, sides)
    assert score() == expected
    tables([f' {label} ' for label in labels], sides)
    assert score() == expected


def test_several_labels_meet_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = [CLASSES[i] for i in np.random.default_rng(0).integers(0, 3, 220)]
    y, _, sides = by_hand(labels)
    tables(
        [label if i < 20 else f'{label}; {CLASSES[0]}' for i, label in enumerate(labels)],
        sides,
        'labels',
    )
    member = np.eye(3, dtype=bool)[y]
    member[20:, 0] = True
    codes = [Codes.load(f'{file}.npz') for file in 'qd']
    expected = evaluate(
        *(
            Codes(c.packed, c.bits, member[part], c.ids)
            for c, part in zip(codes, sides, strict=True)
        )
    ).map
    assert score() == expected
    np.savez('q.npz', packed=codes[0].packed, bits=32, labels=y[sides[0]])  # numbers beside rows
    np.savez('d.npz', packed=codes[1].packed, bits=32, labels=member[sides[1]])
    for file in 'qd':
        os.unlink(f'{file}.csv')
    assert score() == expected


def test_a_class_that_is_written_otherwise_on_the_other_side_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codes = Codes.from_outputs(np.random.default_rng(1).normal(size=(60, 16)))
    for asked, held, said in (
        (('01', '02', '10'), ('1', '2', '10'), 'have a class 01 and the database 1: names are'),
        (('1', '10'), ('1.0', '10.0'), 'have a class 1 and the database 1.0: names are texts'),
        (('1.1', '1.10'), ('1.1', '1.10'), ''),
        (('007', '7'), ('7', 'seven'), ''),
    ):
        for name, names, part in (('q', asked, slice(20)), ('d', held, slice(20, None))):
            labels = np.array(names)[np.arange(60)[part] % len(names)]
            save_codes(codes[part], {'label': labels}, Path(f'{name}.npz'))
        for more in ([], ['d2.npz']):
            shutil.copy('d.npz', 'd2.npz')
            shutil.copy('d.csv', 'd2.csv')
            done = do('evaluate', 'q.npz', 'd.npz', *more)
            assert said in done.stderr and ('two classes' in done.stderr) == bool(said)
    words = ('--query-labels', 'y.npy', '--engine', 'here')
    np.save('y.npy', np.arange(20))
    done = do('evaluate', 'q.npz', 'd.npz', 'd2.npz', *words)
    assert refused(done, 'queries are without a table', 'leave out --query-labels')


def test_labels_that_are_named_are_taken_and_no_table_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fine = np.random.default_rng(0).integers(0, 8, 60)
    names = np.array([f'class {c}' for c in fine])
    codes = Codes.from_outputs(np.random.default_rng(1).normal(size=(60, 16)))
    for name, part in (('q', slice(20)), ('d', slice(20, None))):
        save_codes(codes[part], {'label': names[part]}, Path(f'{name}.npz'))
        np.save(f'{name}-coarse.npy', fine[part] % 2)
    coarse = [
        Codes(c.packed, 16, fine[p] % 2, c.ids)
        for c, p in ((codes[:20], slice(20)), (codes[20:], slice(20, None)))
    ]
    told = ['--query-labels', 'q-coarse.npy', '--database-labels', 'd-coarse.npy', '--json']
    done = do('evaluate', 'q.npz', 'd.npz', *told)
    assert json.loads(done.stdout)['map'] == dcwh.evaluate(*coarse).map
    assert json.loads(do('evaluate', 'q.npz', 'd.npz', '--json').stdout)['map'] < 0.3
    assert refused(do('evaluate', 'q.npz', 'd.npz', *told[:2]), 'one side is without a table')
    assert refused(
        do('evaluate', 'q.npz', 'd.npz', *told[:2], '--query-table', 'q.csv'),
        '--query-labels is q-coarse.npy and --query-table q.csv; give the one',
    )


def test_an_empty_label_and_queries_in_the_database_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = [CLASSES[i] for i in np.random.default_rng(0).integers(0, 3, 60)]
    _, _, sides = by_hand(labels)
    tables(['', *labels[1:]], sides)
    assert refused(do('evaluate', 'q.npz', 'd.npz'), 'q.csv', 'empty label')
    write_list('id', [f'q{i}' for i in range(20)], 'bare.csv')
    assert refused(
        do('evaluate', 'q.npz', 'd.npz', '--query-table', 'bare.csv'),
        'bare.csv has no column label',
    )
    os.unlink('q.csv')
    assert refused(
        do('evaluate', 'q.npz', 'd.npz'), 'q.csv is not there, and the other side has names'
    )
    bare = do('evaluate', 'q.npz', 'd.npz', '--database-table', 'none')
    assert refused(bare, 'q.npz has no labels, so nothing is relevant; encode images in folders')
    for file in 'qd':  # with numbers inside both, names are not needed
        codes = Codes.load(f'{file}.npz')
        replace(codes, labels=np.arange(len(codes)) % 3).save(f'n{file}.npz')
    own = ['evaluate', 'nq.npz', 'nd.npz', '--database-table', 'd.csv']
    assert refused(do(*own), 'nq.csv is not there', 'or say none for both')
    assert 'none for both' not in do('evaluate', 'q.npz', 'd.npz').stderr
    tables(labels, sides)
    assert '20 of 20 queries are in the database too' in do('evaluate', 'q.npz', 'q.npz').stderr
    assert do('evaluate', 'q.npz', 'd.npz').stderr == ''
    np.savez('n.npz', codes=np.random.default_rng(0).normal(size=(9, 8)), labels=np.arange(9) % 3)
    np.savez('m.npz', codes=np.random.default_rng(1).normal(size=(9, 8)), labels=np.arange(9) % 3)
    assert (
        do('evaluate', 'n.npz', 'm.npz').stderr == ''
    )  # rows of different files without names are different images
    assert '9 of 9 queries' in do('evaluate', 'n.npz', 'n.npz').stderr
    table = do('evaluate', 'n.npz', 'm.npz').stdout
    assert all(len(line.split()) <= 2 for line in table.splitlines()), (
        'a name has run into its number'
    )


def test_many_classes_take_no_matrix():
    names, ends = [[f'class {i % 20_000}'] for i in range(40_000)], 10_000
    sides = [Codes.from_packed(np.zeros((n, 1), np.uint8), 8) for n in (ends, 30_000)]
    columns = [
        {'label': np.array([name for (name,) in part])} for part in (names[:ends], names[ends:])
    ]
    query, database = labelled(sides, columns, (Path('q.npz'), Path('d.npz')))
    assert (
        query.labels.dtype == database.labels.dtype == np.int64
        and (query.labels == database.labels[10_000:20_000]).all()
    )


@pytest.mark.parametrize('where', ['x.index', 'x.lance'])
def test_conditions_and_ids_are_read_by_their_type(place, where):
    rows = [
        f'photos/{c}/{i}.png,{label},20{i}'
        for c, label in zip(CLASSES, ('7', 'true', 'owl'), strict=True)
        for i in range(4)
    ]
    write_list('path,label,year', rows)
    assert encode(images='list.csv').exit_code == 0
    assert (
        do(
            'index', 'build', where, 'c.npz', '--kind', 'flat' if where == 'x.index' else 'lance'
        ).exit_code
        == 0
    )

    def found(*conditions):
        asked = [word for condition in conditions for word in ('--where', condition)]
        return do(
            'search',
            where,
            'photos/ant/0.png',
            '--model',
            'model',
            '-k',
            2_000_000_000,
            *asked,
            '--json',
        )

    def number(*conditions):
        return len(json.loads(found(*conditions).stdout)['answers'][0]['nearest'])

    assert (
        number() == 12
        and number('label=7') == number('label=true') == 4
        and number('year=201') == 3
    )
    assert (
        number('label=7', 'label=owl') == 8
        and number('label=7', 'year=203') == 1
        and number('label=7.0') == 0
    )
    for wrong in ('year=abc', 'year=2.5', 'colour=red', 'label'):
        assert refused(found(wrong), wrong.partition('=')[0]), wrong
    Codes.from_bits(np.eye(4)).save('numbers.npz')
    kind = 'flat' if where == 'x.index' else 'lance'
    assert do('index', 'build', f'n{where}', 'numbers.npz', '--kind', kind).exit_code == 0
    assert json.loads(do('index', 'delete', f'n{where}', '3', '--json').stdout)['images'] == 3
    for wrong in ('3', 'abc', '1.0', '99'):
        assert refused(do('index', 'delete', f'n{where}', wrong))


def test_an_index_is_refused_before_it_is_built(place):
    assert encode().exit_code == 0
    for kind, option in (
        ('ivf', 'nprobe=4'),
        ('flat', 'lists=4'),
        ('flat', 'root=x'),
        ('ivf', 'lists=abc'),
        ('hnsw', 'links=1'),
        ('multihash', 'substring=20'),
        ('ivf', 'probes=0'),
        ('hnsw', 'x'),
    ):
        assert refused(
            do('index', 'build', 'x.index', 'c.npz', '--kind', kind, '--set', option),
            option.partition('=')[0],
        ), (kind, option)
    assert refused(do('index', 'build', 'x.index', 'c.npz', '--images', 'nowhere'), 'nowhere')
    for uri in ('s3://bucket/x.lance', 'file:///tmp/x.index', 'hf://me/x'):
        assert (
            refused(do('index', 'build', uri, 'c.npz'), uri, 'kind lance')
            and not Path(uri.partition('/')[0]).exists()
        )
    assert refused(do('index', 'build', '', 'c.npz'), 'no path') and refused(
        do('index', 'build', 'memory://x.lance', 'c.npz', '--kind', 'lance'), 'would be lost'
    )
    assert refused(do('index', 'build', 'photos', 'c.npz'), 'photos') and refused(
        do('index', 'build', 'x.index', 'nowhere.npz'), 'nowhere.npz'
    )
    assert (
        refused(do('index', 'build', 'x.index', 'c.npz', '--kind', 'tree'), 'tree')
        and not (place / 'x.index').exists()
    )


def test_published_numbers_are_looked_at_before_the_notebook_is_executed(place, monkeypatch):
    monkeypatch.setattr('dcwh.experiment.execute', lambda *given, **more: 1 / 0)
    Path('reports').mkdir()
    Path('theirs.csv').write_text('dataset,map\ndigits,0.5\n')
    assert refused(do('compare', '--published', 'theirs.csv'), 'theirs.csv, line 1: there is no')
    assert refused(do('compare', '--published', 'none.csv'), 'none.csv is not there')
    assert refused(do('compare', 'theirs.csv'), 'theirs.csv is no folder; give a folder of tables')


def test_a_comparison_of_no_folder_is_refused(tmp_path):
    assert refused(do('compare', tmp_path / 'nowhere'), 'nowhere is not there')
    assert refused(
        do('compare', tmp_path, '--published', tmp_path / 'none.csv'), 'none.csv is not there'
    )


def test_queries_that_look_alike_are_no_matter_to_warn_of(place):
    assert encode().exit_code == 0
    assert do('index', 'build', 'x.index', 'c.npz', '--images', 'photos').exit_code == 0
    found = do('search', 'x.index', *['photos/bee/1.png'] * 2, '--model', 'model')
    assert found.exit_code == 0 and not found.stderr


def test_codes_of_other_lengths_are_refused_before_their_labels_are_looked_for(
    tmp_path, monkeypatch
):
    "Or a table is asked for that would not help."
    monkeypatch.chdir(tmp_path)
    labels = ['a', 'b'] * 20
    tables(labels, by_hand(labels)[2])
    Path('q.csv').unlink()
    rng = np.random.default_rng(0)
    Codes.from_outputs(rng.standard_normal((9, 24)), np.arange(9) % 2).save('q.npz')
    said = 'query has 24 bits and database 32; both sides need the same code length'
    assert refused(do('evaluate', 'q.npz', 'd.npz'), said)


def test_a_sheet_replaces_nothing_but_a_sheet(place):
    assert (
        encode().exit_code == 0
        and do('index', 'build', 'x.index', 'c.npz', '--images', 'photos').exit_code == 0
    )

    def draw(sheet):
        return do('search', 'x.index', 'mine.png', '--model', 'model', '--sheet', sheet)

    for name in ('mine.png', 'holiday.jpg', 'scan.jpeg'):
        Image.new('RGB', (16, 16)).save(name)
    (place / 'notes.png').write_text('not even an image')
    (place / 'empty.jpg').touch()
    os.symlink('holiday.jpg', 'link.jpg')
    before = {
        file: (place / file).read_bytes()
        for file in (
            'photos/bee/1.png',
            'mine.png',
            'holiday.jpg',
            'scan.jpeg',
            'notes.png',
            'empty.jpg',
            'link.jpg',
        )
    }
    for sheet in before:
        assert refused(draw(sheet), sheet, 'would replace'), sheet
    assert {file: (place / file).read_bytes() for file in before} == before
    for sheet in ('a.png', 'b.jpg', 'c.JPEG'):
        for _ in range(2):
            assert draw(sheet).exit_code == 0, sheet
        with Image.open(sheet) as image:
            assert image.format == ('PNG' if sheet == 'a.png' else 'JPEG') and image.width > 300
    many = do(
        'search', 'x.index', *['mine.png'] * 401, '--model', 'nowhere', '--sheet', 'new.png'
    )  # before the model is asked for
    assert refused(many, '401 images that ask and 10 answers', 'too large')
    Image.open('a.png').convert('RGB').save('a.png')  # drawn on, and saved by another program
    assert refused(draw('a.png'), 'would replace') and refused(
        draw('x.pdf'), 'neither .png nor .jpg'
    )


def test_a_table_that_merely_lies_there_is_not_taken(place):
    h = np.random.default_rng(0).normal(size=(6, 16))
    for file, labels in (('q', [0, 1] * 3), ('d', [0, 0, 0, 1, 1, 1])):
        np.savez(f'{file}.npz', codes=h if file == 'q' else -h[::-1], labels=labels)
    right = json.loads(do('evaluate', 'q.npz', 'd.npz', '--json').stdout)['map']
    for file in 'qd':
        write_list('id,label', [f'{i},{"xy"[i % 2]}' for i in range(6)], f'{file}.csv')
    assert refused(do('evaluate', 'q.npz', 'd.npz'), 'q.csv lies beside it', '--query-table')
    assert (
        json.loads(
            do(
                'evaluate',
                'q.npz',
                'd.npz',
                '--query-table',
                'none',
                '--database-table',
                'none',
                '--json',
            ).stdout
        )['map']
        == right
    )
    assert (
        do(
            'evaluate', 'q.npz', 'd.npz', '--query-table', 'q.csv', '--database-table', 'd.csv'
        ).exit_code
        == 0
    )
    Codes.from_outputs(h).save('u.npz')
    write_list('id,label', [f'{i},a' for i in range(7)], 'u.csv')
    assert refused(
        do('index', 'build', 'u.index', 'u.npz'), 'u.csv names 7 images and u.npz holds 6'
    )
    assert refused(encode(out='q.npz'), 'q.csv is there')
    os.unlink('q.csv')
    assert refused(encode(out='q.npz'), 'encode did not write it')  # somebody's own codes


def test_codes_of_two_models_are_not_scored(tmp_path):
    for file, model in (('q', 'aaaa'), ('d', 'bbbb')):
        Codes.from_outputs(
            np.random.default_rng(0).normal(size=(6, 16)), np.arange(6) % 2, model=model
        ).save(tmp_path / f'{file}.npz')
    assert refused(do('evaluate', tmp_path / 'q.npz', tmp_path / 'd.npz'), 'two models')


def test_means_over_answerable_queries_follow_the_normaliser(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / 'q.npz', codes=rng.normal(size=(4, 16)), labels=[0, 1, 2, 9])
    np.savez(tmp_path / 'd.npz', codes=rng.normal(size=(20, 16)), labels=rng.integers(0, 3, 20))
    for normaliser in ('found', 'min', 'all'):
        found = json.loads(
            do(
                'evaluate',
                tmp_path / 'q.npz',
                tmp_path / 'd.npz',
                '--top-k',
                5,
                '--normaliser',
                normaliser,
                '--json',
            ).stdout
        )
        assert found['queries_without_relevant'] == 1 and found[
            'map_with_relevant'
        ] == pytest.approx(found['map'] * 4 / 3)


def test_an_empty_folder_is_not_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(do('compare', ''), 'a folder is empty', 'name a folder of tables or of runs')
    assert os.listdir() == []


def test_a_file_is_not_written_below_a_folder_called_s3(tmp_path, monkeypatch):
    "A Path of s3://bucket/codes.npz is s3:/bucket/codes.npz, on this machine."
    monkeypatch.chdir(tmp_path)
    Codes.from_outputs(np.random.default_rng(0).normal(size=(6, 16))).save('q.npz')
    for command in (
        ('encode', 'model', '.', '--out', 's3://bucket/codes.npz'),
        ('compare', '.', '--out', 's3://bucket/compare.ipynb'),
        ('export', 'model', 's3://bucket/model.onnx'),
        ('run', '--runs', 's3://bucket/runs', '--detail', 'none'),
    ):
        assert refused(do(*command), 'it is a URI')
    assert os.listdir() == ['q.npz']


def test_a_report_that_is_not_made_cannot_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = do('run', '--recipe', 'quick', '--detail', 'none', '--report', 'mine.ipynb')
    assert refused(said, '--detail none makes no report')
    said = do('run', '--recipe', 'quick', '--record', '--reports', '')
    assert refused(said, '--reports is empty')
    assert not os.listdir()


def test_options_that_say_nothing_are_refused(place):
    for words, said in (
        (['run', '--dataset', ''], '--dataset is empty; give a name'),
        (['run', '--method', ''], '--method is empty; give a name'),
        (['run', '--study', 'trial'], '--study is of a row; give --record, too'),
        (['run', '--modified'], '--modified is of a row; give --record, too'),
        (['encode', 'model', 'photos', '--out', ''], "--out is ''; give a name that ends in .npz"),
        (['encode', 'model', 'photos', '--out', '.npz'], '.npz does not end in .npz after a name'),
        (
            ['encode', 'model', 'photos', '--out', 'd', '--engine', 'here', '--actors', 2],
            'actors is 2, which is for engine ray',
        ),
        (
            ['data', 'describe', 'digits', '--missing', 'skip'],
            'missing is skip, and digits has no',
        ),
        (
            ['data', 'check', 'csv/x', '--lists-dir', 'a'],
            'lists_dir is a, and csv/x has no lists',
        ),
    ):
        assert refused(do(*words), said)
    write_list('path,label,split', ['gone.png,a,train'])
    said = do('data', 'describe', 'csv/x', '--data-dir', 'list.csv')
    assert refused(said, 'gone.png is not there; paths are relative')


def test_a_place_of_another_kind_is_called_what_it_is(place):
    encode()
    for words, said in (
        (['index', 'build', 'photos', 'c.npz'], 'photos is a folder; give the name of a file'),
        (['index', 'build', 'y/', 'c.npz'], 'y/ is a folder, by its /'),
        (['index', 'build', 'y', 'c.npz', '--images', 's3://b/p'], 'root is s3://b/p, a URI'),
        (['evaluate', 'c.npz', 'c.npz', '--query-table', 'none'], 'one side is without a table'),
        (['compare', 'photos', '--published', 'photos'], 'photos cannot be read (it is a'),
    ):
        assert refused(do(*words), said)
    dcwh.run(dcwh.resolve({'epochs': 1}, dataset='digits', bits=16, recipe='quick'), 'runs')
    for reports in ('s3://b/r', 'c.npz'):
        done = do('record', 'runs', '--modified', '--reports', reports)
        assert done.exit_code == 1 and 'cannot be written' in done.stderr, done.output
    assert not Path('s3:').exists()
    Path('a\nb').mkdir()
    done = encode(out='a\nb/c.npz')
    assert done.exit_code == 0 and 'a\\nb/c.npz' in done.stdout


def test_a_set_whose_split_leaves_images_out_is_checked_as_it_is(tmp_path, monkeypatch):
    "Such as lists of queries, training images and a database that have other images each."
    monkeypatch.chdir(tmp_path)
    for shade, file in enumerate(('test', 'train', 'database')):
        for name, label in ((f'{file}-ant.png', '1 0'), (f'{file}-bee.png', '0 1')):
            Image.new('L', (8, 8), 50 * shade).save(name)
            with open(f'{file}.txt', 'a') as f:
                f.write(f'{name} {label}\n')
    found = do('data', 'check', 'lists/x', '--data-dir', '.')
    assert found.exit_code == 0 and 'train with --set protocol=official' in found.stdout
    full = do('data', 'check', 'lists/x', '--data-dir', '.', '--protocol', 'full')
    assert full.exit_code == 1 and 'set protocol=official' in full.output


def test_labels_that_no_index_could_hold_are_refused_before_encoding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for label in ('caf\u00e9', 'cafe\u0301'):
        Path('images', label).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(f'images/{label}/one.png')
    said = do('encode', 'no-model', 'images', '--out', 'codes.npz')
    assert refused(said, 'look the same')


def test_classes_that_no_query_shares_with_the_database_are_said(tmp_path):
    "Such as names on one side, and their numbers on the other: the mAP is 0."
    bits = np.random.default_rng(0).normal(size=(6, 16))
    for file, labels in (('q', [0] * 6), ('one', [1, 1, 1, 1, 1, 0]), ('none', [1, 2, 1, 2, 1, 2])):
        Codes.from_outputs(bits, np.array(labels)).save(tmp_path / f'{file}.npz')
    for database, warned in (('one', False), ('none', True)):
        done = do('evaluate', tmp_path / 'q.npz', tmp_path / f'{database}.npz')
        assert ('no query has a relevant image in the database' in done.stderr) == warned


def test_over_the_whole_database_the_normaliser_is_all(tmp_path):
    "There every normaliser divides by all that is relevant, and `to_dict` says so too."
    bits = np.random.default_rng(0).normal(size=(6, 16))
    np.savez(tmp_path / 'q.npz', codes=bits, labels=np.arange(6) % 2)
    for more, said in (((), 'all'), (('--normaliser', 'min'), 'all'), (('--top-k', 3), 'found')):
        done = do('evaluate', tmp_path / 'q.npz', tmp_path / 'q.npz', *more, '--json')
        assert json.loads(done.stdout)['normaliser'] == said


def test_a_text_is_not_the_number_of_a_row(tmp_path):
    "Queries called '0' to '5' are in no database that has numbered rows and no ids."
    bits = np.random.default_rng(0).normal(size=(6, 16))
    labels = np.arange(6) % 2
    names = [str(i) for i in range(6)]
    Codes.from_outputs(bits, labels, np.array(names)).save(tmp_path / 'named.npz')
    Codes.from_outputs(bits[::-1], labels, np.array(names[::-1])).save(tmp_path / 'same.npz')
    Codes.from_outputs(-bits, labels, np.array(names)).save(tmp_path / 'other.npz')
    np.savez(tmp_path / 'bare.npz', codes=-bits, labels=labels)
    for pair in (('named', 'bare'), ('bare', 'named')):
        done = do('evaluate', *(tmp_path / f'{name}.npz' for name in pair))
        assert done.exit_code == 0 and done.stderr == '', done.output
    done = do('evaluate', tmp_path / 'named.npz', tmp_path / 'same.npz')
    assert '6 of 6 queries have name and code of an image in the database' in done.stderr
    done = do('evaluate', tmp_path / 'named.npz', tmp_path / 'other.npz')
    assert done.exit_code == 0 and done.stderr == ''  # names of files in two folders


def test_whole_numbers_as_ids_are_names_in_any_order(tmp_path):
    "Tables are read by id, not by row; and ids 3, 1, 2 are not in a database of numbered rows."
    rng = np.random.default_rng(0)
    h, labels, ids = rng.normal(size=(3, 16)), np.array([0, 1, 0]), np.array([3, 1, 2])
    base, of_base = rng.normal(size=(8, 16)), np.arange(8) % 2
    np.savez(tmp_path / 'bare.npz', codes=base, labels=of_base)
    Codes.from_outputs(h, labels, ids).save(tmp_path / 'labelled.npz')
    done = do('evaluate', tmp_path / 'labelled.npz', tmp_path / 'bare.npz', '--json')
    assert done.exit_code == 0 and done.stderr == '', done.output
    right = json.loads(done.stdout)['map']
    Codes.from_outputs(h, ids=ids).save(tmp_path / 'named.npz')
    (tmp_path / 'named.csv').write_text('id,label\n1,b\n2,a\n3,a\n')
    Codes.from_outputs(base).save(tmp_path / 'rows.npz')
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    rows = ''.join(f'{i},{"ab"[i % 2]}\n' for i in order)
    (tmp_path / 'rows.csv').write_text(f'id,label\n{rows}')
    done = do('evaluate', tmp_path / 'named.npz', tmp_path / 'rows.npz', '--json')
    assert done.stderr == '' and json.loads(done.stdout)['map'] == right, done.output
    Codes.from_outputs(base[ids], of_base[ids], ids).save(tmp_path / 'part.npz')  # it is
    done = do('evaluate', tmp_path / 'part.npz', tmp_path / 'bare.npz')
    assert '3 of 3 queries have name and code of an image in the database' in done.stderr


def test_the_version_is_printed_and_nothing_heavy_is_imported(tmp_path):
    assert do('--version').stdout == f'{dcwh.__version__}\n'
    heavy = 'torch', 'numpy', 'numba', 'pandas', 'pydantic'
    code = (
        'import sys; from dcwh.cli import app\n'
        'for word in ("--version", "--help"):\n'
        '    app([word], standalone_mode=False)\n'
        f'    assert not [name for name in {heavy} if name in sys.modules]\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and dcwh.__version__ in done.stdout, done.stderr


def test_a_file_that_holds_no_codes_is_said_to_hold_none(tmp_path):
    labels = np.arange(4) % 2
    np.savez(tmp_path / 'none.npz', codes=np.zeros((0, 16), np.uint8), labels=labels[:0])
    np.savez(tmp_path / 'd.npz', codes=np.eye(4), labels=labels)
    said = refused(do('evaluate', tmp_path / 'none.npz', tmp_path / 'd.npz'), 'holds no codes')
    assert said


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('mine.ipynb', 'is there, and is no executed report'),
        ('table.csv', 'is no name of a report'),
    ],
)
def test_a_report_replaces_nothing_but_a_report(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text('{"cells": []}')
    assert refused(do('run', '--recipe', 'quick', '--report', name), said)
    assert refused(do('compare', tmp_path, '--published', name, '--out', name), said)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing was run


def test_a_cell_of_your_own_template_that_fails_is_no_bug_of_dcwh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = json.loads((Path(__file__).parents[1] / 'nbs/templates/run.ipynb').read_text())
    (cell,) = (c for c in content['cells'] if 'parameters' in c['metadata'].get('tags', []))
    failing = {**cell, 'id': 'failing', 'metadata': {}, 'source': ['1 / 0']}
    (tmp_path / 'mine.ipynb').write_text(json.dumps({**content, 'cells': [cell, failing]}))
    words = ['run', '--recipe', 'quick', '--bits', 8, '--set', 'epochs=1']
    done = do(*words, '--template', 'mine.ipynb', '--report', 'report.ipynb')
    said = 'mine.ipynb: a cell fails (ZeroDivisionError: division by zero)'
    assert done.exit_code == 2 and done.stderr.splitlines()[-1] == said, done.output
    assert 'ZeroDivisionError' in (tmp_path / 'report.ipynb').read_text()


def test_a_comparison_replaces_nothing_that_it_reads(tmp_path):
    root = Path(__file__).parents[1]
    for name in ('nbs/templates/compare.ipynb', 'data/published.csv'):
        (tmp_path / Path(name).name).write_bytes((root / name).read_bytes())
    given = [
        'compare',
        tmp_path,
        '--published',
        tmp_path / 'published.csv',
        '--template',
        tmp_path / 'compare.ipynb',
    ]
    for out in ('published.csv', 'compare.ipynb', 'a.json'):
        assert refused(do(*given, '--out', tmp_path / out), out)
    other = root / 'nbs/templates/run.ipynb'
    assert refused(
        do(*given[:-1], other, '--out', tmp_path / 'new.ipynb'), 'run.ipynb has no parameter'
    )


def tree(place, *names):
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(place / name)


@pytest.mark.parametrize(
    'names',
    [
        ['a/0.png', 'a/1.png', 'b/0.png'],  # one image in a class
        ['train/a/0.png', 'train/b/0.png', 'test/a/1.png', 'test/c/0.png'],  # a class only in test
        [f'{c}/{i}.png' for c in 'ab' for i in range(3)],
    ],
)
def test_check_finds_what_describe_refuses(tmp_path, names):
    tree(tmp_path, *names)
    told = do('data', 'describe', 'folder/x', '--data-dir', tmp_path)
    found = do('data', 'check', 'folder/x', '--data-dir', tmp_path, '--workers', 0)
    assert (found.exit_code, found.stderr) == (told.exit_code and 1, told.stderr)
    assert ('every image can be read' in found.stdout) == (told.exit_code == 0)
    for protocol in ('sampled', 'disjoint', 'official'):
        told = do('data', 'describe', 'folder/x', '--data-dir', tmp_path, '--protocol', protocol)
        found = do(
            'data',
            'check',
            'folder/x',
            '--data-dir',
            tmp_path,
            '--workers',
            0,
            '--protocol',
            protocol,
        )
        assert found.stderr == told.stderr and (found.exit_code == 0) == (told.exit_code == 0), (
            protocol
        )


@pytest.mark.parametrize(
    'words',
    [
        [''],
        ['digits', '--missing', ''],
        ['digits', '--protocol', 'half'],
        ['folder/'],
        ['folder/x'],
        ['folder/x', '--data-dir', ''],
        ['lists/x', '--missing', 'no'],
    ],
)
def test_check_and_describe_refuse_in_the_same_words(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no images are
    told, found = do('data', 'describe', *words), do('data', 'check', *words)
    assert refused(found) and found.stderr == told.stderr


LONG = ('x' * 300, 'd/' * 3000)


def test_names_that_no_file_can_have_are_said(place):
    assert encode().exit_code == 0 and do('index', 'build', 'x.index', 'c.npz').exit_code == 0
    for long in LONG:
        for words in (
            ['data', 'describe', f'folder/{long}', '--data-dir', 'photos'],
            ['data', 'check', f'folder/{long}'],
            ['data', 'check', 'folder/x', '--data-dir', long],
            ['data', 'check', 'csv/x', '--data-dir', long],
            ['data', 'describe', 'lists/x', '--lists-dir', long],
            ['data', 'fetch', 'cifar10', '--data-dir', long],
            ['encode', long, 'photos'],
            ['encode', 'model', long],
            ['encode', 'model', 'photos', '--out', f'{long}.npz'],
            ['index', 'build', long, 'c.npz'],
            ['index', 'build', 'y.index', f'{long}.npz'],
            ['index', 'build', 'y.index', 'c.npz', '--table', long],
            ['index', 'build', 'y.index', 'c.npz', '--images', long],
            ['index', 'show', long],
            ['index', 'add', long, 'c.npz'],
            ['index', 'delete', long, '1'],
            ['search', 'x.index', long, '--model', 'model'],
            ['search', long, 'photos/ant/0.png', '--model', 'model'],
            ['search', 'x.index', 'photos/ant/0.png', '--model', long],
            ['evaluate', f'{long}.npz', 'c.npz'],
            ['evaluate', 'c.npz', 'c.npz', '--query-table', long],
            ['serve', long, '--model', 'model'],
        ):
            assert refused(do(*words), long[:10]) and 'Errno' not in do(*words).stderr, words
        write_list('path,label', [f'{long}.png,a', 'photos/bee/1.png,b'])
        assert refused(
            do('data', 'check', 'csv/x', '--data-dir', 'list.csv'), 'line 2', 'is not there'
        )
        done = encode(images='list.csv', out='d.npz')
        assert done.exit_code == 1 and done.stderr.startswith(
            'left out: xxx' if long in done.stderr and long[0] == 'x' else 'left out: '
        )
        for name in ('d.npz', 'd.csv'):
            (place / name).unlink()
    for words in (
        ['data', 'check', 'folder/a\0b'],
        ['encode', 'mo\0del', 'photos'],
        ['index', 'show', 'x\0.index'],
    ):
        assert refused(do(*words), 'zero byte'), words


@pytest.mark.parametrize('more', [('--workers', '0'), ('--engine', 'here')])
def test_images_of_an_empty_name_are_not_those_of_this_folder(place, more):
    done = do('encode', 'model', '', '--out', 'c.npz', *more)
    assert refused(done, "images is ''; give a folder of images or a CSV")


def test_a_home_that_the_shell_has_left_is_refused(place):
    "As in --out=~/codes.npz, which made a folder called ~ here."
    done = do('encode', 'model', 'photos', '--out=~/codes.npz')
    assert refused(done, "out is '~/codes.npz', and ~ is no home here; give the whole path")
    assert not (place / '~').exists()
    assert encode(out='~codes.npz').exit_code == 0


def test_a_model_without_a_name_is_refused(place):
    assert encode().exit_code == 0 and do('index', 'build', 'x.index', 'c.npz').exit_code == 0
    for words in (
        ('encode', '', 'photos'),
        ('serve', 'x.index', '--model', ''),
        ('search', 'x.index', 'photos/ant/0.png', '--model', ' '),
    ):
        assert refused(do(*words), "model is '", 'give a folder of a saved model')


def test_a_name_that_is_no_text_is_printed_with_escapes(place):
    done = encode(out='\udcff.npz')
    assert done.exit_code == 0 and '\\xff.npz' in done.stdout


def test_a_name_from_elsewhere_reaches_no_terminal_raw(place):
    "A folder of runs, a table beside codes: their names and texts may hold anything."
    red = '\x1b[31m'
    odd = place / f'runs/{red}\n/b'
    odd.mkdir(parents=True)
    (odd / 'result.json').write_text('{')
    found = [do('record', 'runs')]
    assert 'is torn' in found[0].stderr and found[0].exit_code == 1
    result = dcwh.run(dcwh.resolve({'epochs': 1}, dataset='digits', bits=16, recipe='quick'), place)
    (odd / 'result.json').write_text(json.dumps(result))
    found.append(do('record', 'runs', '--modified'))
    assert 'reports/digits.csv: ' in found[1].stdout
    Codes.from_bits(np.eye(8), ids=np.array([f'{red}{i}' for i in range(8)])).save('a.npz')
    Path('a.csv').write_text('id,note\n' + ''.join(f'{red}{i},"{red}\nb"\n' for i in range(8)))
    found += [do('index', 'build', 'a.index', 'a.npz', '--table', 'a.csv')]
    found += [do('index', 'add', 'a.index', 'a.npz', '--table', 'a.csv')]
    for done in found:
        assert '\x1b' not in done.output, done.output
        assert len(done.output.splitlines()) == 1 or done is found[2]


def test_an_odd_place_is_said_in_one_line(place):
    for words in (
        ['data', 'check', 'folder/x', '--data-dir', 'a\nb'],
        ['data', 'describe', 'csv/x', '--data-dir', 'a\nb'],
        ['data', 'check', 'lists/x', '--data-dir', 'a\nb'],
        ['encode', 'model', 'a\nb'],
    ):
        assert refused(do(*words), 'a\\nb')
    (place / 'a\nb').mkdir()
    assert refused(do('data', 'check', 'folder/x', '--data-dir', 'a\nb'), 'a\\nb holds no image')
    tree(place / 'a\nb', '0.png')
    assert refused(do('data', 'check', 'folder/x', '--data-dir', 'a\nb'), 'image of a\\nb not at')
    odd = (
        ['evaluate', 'a\nb', 'c.npz'],
        ['index', 'show', 'a\nb'],
        ['encode', 'a\nb', 'photos'],
        ['index', 'build', 'x.index', 'a\nb'],
        ['record', 'a\nb'],
        ['compare', '.', '--published', 'a\nb'],
        ['search', 'a\nb', 'c.png', '--model', 'model'],
        ['serve', 'a\nb', '--model', 'model'],
    )
    for words in odd:
        assert refused(do(*words), 'a\\nb')
    assert refused(
        do('data', 'check', 'csv/x', '--data-dir', '/proc/self/mem'),
        '/proc/self/mem cannot be read',
    )


def test_files_that_are_no_images_are_named(place):
    for name in ('a.tga', 'b.PSD', 'c.svg', 'd.heic', 'e.raw'):
        (place / 'photos/ant' / name).write_bytes(b'something')
    for name in ('notes.txt', 'README', 'Thumbs.db', '.DS_Store'):
        (place / 'photos/ant' / name).touch()
    found = do('data', 'check', 'folder/x', '--data-dir', 'photos', '--workers', 0)
    assert (
        found.exit_code == 1
        and found.stderr.startswith('5 images of folder/x cannot be read')
        and len(found.stderr.splitlines()) == 6
    )
    done = encode()
    assert (
        done.exit_code == 1
        and len(done.stderr.splitlines()) == 5
        and all(
            line.startswith('left out: photos/ant/') and 'are not read' in line
            for line in done.stderr.splitlines()
        )
    )
    for name in ('a.tga', 'b.PSD', 'c.svg', 'd.heic', 'e.raw'):
        (place / 'photos/ant' / name).unlink()
    for name in ('clip.mov', 'scan'):
        (place / 'photos/bee' / name).write_bytes(b'something')
    for done in (encode(), do('data', 'describe', 'folder/x', '--data-dir', 'photos')):
        assert (
            done.exit_code == 0
            and done.stderr.startswith('2 files below photos left out')
            and done.stderr.endswith('the first bee/clip.mov\n')
        )


def asked_as_json(*words):
    "The JSON object that a command answers with."
    done = do(*words, '--json')
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_methods_are_listed_with_their_papers():
    (rows,) = asked_as_json('methods').values()
    assert [row['method'] for row in rows] == list(METHODS)
    assert all(all(row.values()) for row in rows)
    table = do('methods').stdout
    assert '`' not in table + do('settings').stdout  # that is Markdown
    assert table.startswith('method ') and 'several labels' in table.splitlines()[0]
    assert all(f'\n{name} ' in table for name in METHODS)

    def plain(num_classes, bits):
        """Mine, in a line.

        And more."""

    try:
        register('mine', plain, 'nobody')
        (*_, last) = asked_as_json('methods')['methods']
    finally:
        METHODS.pop('mine', None)
    assert list(last.values()) == ['mine', 'Mine, in a line', 'nobody', '']


def test_settings_are_those_of_the_configuration():
    (rows,) = asked_as_json('settings').values()
    assert [row['name'] for row in rows] == list(Config.model_fields)
    lines = do('settings').stdout.splitlines()
    names = [line.split()[0] for line in lines[1:] if not line.startswith(' ')]
    assert names == list(Config.model_fields)
    (row,) = asked_as_json('settings', 'bits')['settings']
    assert (row['default'], row['origin']) == (16, 'dcwh run')
    (row,) = asked_as_json('settings', 'lr', '--method', 'dtsh')['settings']
    assert row['default'] == dcwh.resolve(bits=8, method='dtsh').lr
    assert row['origin'] == 'digits.yaml, dtsh'
    lines = do('settings', 'flip', '--dataset', 'folder/x').stdout.splitlines()
    assert ['default', 'true'] in [line.split() for line in lines]
    assert refused(do('settings', 'learning_rate'), 'learning_rate', 'known are dataset')
    assert refused(do('settings', 'epoch'), "unknown setting 'epoch' (did you mean epochs?); known")
    assert refused(do('run', '--set', 'epoch=3'), 'did you mean epochs?')
    assert refused(do('run', '--set', 'bits=12'), 'give --bits 12, without --set')
    assert refused(do('settings', '--dataset', 'nowhere'), 'nowhere')


def commands(command=None, words=()):
    "The words of every command, and its help as it is written."
    command = command or typer.main.get_command(app)
    yield words, command.help
    for name, inner in getattr(command, 'commands', {}).items():
        yield from commands(inner, (*words, name))


def examples_in(text):
    "The lines of a help that stand after a backspace: they are not wrapped."
    blocks = [block.split('\n') for block in text.split('\n\n')]
    return [line for first, *rest in blocks if first.strip() == '\b' for line in rest if line]


@pytest.mark.parametrize('columns', (60, 80, 120))
def test_help_fits_a_terminal_and_breaks_no_example(columns, monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', str(columns))
    for words, text in commands():
        app([*words, '--help'], standalone_mode=False)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns, words
        examples = examples_in(text)
        assert examples or words in (('data',), ('index',)), f'{words} has no example'
        assert [line for line in examples if f'  {line}' not in lines] == [], words
        for command in '\n'.join(examples).replace('\\\n', '').splitlines():
            assert shlex.split(command)[0] in ('dcwh', 'accelerate'), command


def completed(*words):
    "What bash is told after the last word of a command line."
    wanted = {'_DCWH_COMPLETE': 'complete_bash', 'COMP_WORDS': ' '.join(['dcwh', *words])}
    done = CliRunner().invoke(app, env=wanted | {'COMP_CWORD': str(len(words))}, prog_name='dcwh')
    return done.stdout.split()


def test_a_shell_completes_commands_and_names(monkeypatch):
    assert {'methods', 'metrics'} & {*completed('me')} == {'methods'}
    assert completed('run', '--method', 'dcwh-s') == ['dcwh-sparse', 'dcwh-sigmoid']
    assert completed('run', '--method', 'mine') == []
    assert completed('run', '--dataset', 'digit') == ['digits', 'digit-pairs']
    assert completed('data', 'describe', 'cifar1') == ['cifar10', 'cifar100']
    assert {*completed('index', 'build', 'x.index', 'x.npz', '--kind', '')} == {*INDEX_KINDS}
    assert {*completed('run', '--method', '')} == {*METHODS}
    assert {*completed('run', '--recipe', '')} == {*RECIPES}
    monkeypatch.setattr('shellingham.detect_shell', lambda: ('bash', '/bin/bash'))
    script = CliRunner().invoke(app, ['--show-completion'], prog_name='dcwh')
    assert script.exit_code == 0 and '_DCWH_COMPLETE=complete_bash' in script.stdout


def test_codes_of_other_programs_are_scored(tmp_path, monkeypatch):
    "The same numbers from .npz, .npy and .mat, of bits and of outputs."
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    h, y = rng.normal(size=(60, 16)), rng.integers(0, 4, 60)
    sides = {'q': slice(0, 20), 'r': slice(20, 60)}
    for side, part in sides.items():
        np.savez(f'{side}.npz', codes=h[part], labels=y[part])
        np.save(f'{side}.npy', h[part] >= 0)
        np.save(f'{side}-y.npy', y[part])
        signs = {'B': np.sign(h[part]), 'L': np.eye(4)[y[part]]}
        savemat(f'{side}.mat', signs)
    both = {f'{side}B': np.sign(h[part]).astype('int8') for side, part in sides.items()}
    savemat('both.mat', both | {f'{side}L': y[part] for side, part in sides.items()})
    labels = '--query-labels', 'q-y.npy', '--database-labels', 'r-y.npy'
    named = '--query-codes', 'qB', '--database-codes', 'rB'
    in_it = '--query-labels', 'qL', '--database-labels', 'rL'
    expected = evaluate(*(Codes.from_outputs(h[part], y[part]) for part in sides.values())).map
    for words in (
        ('q.npz', 'r.npz'),
        ('q.npy', 'r.npy', *labels),
        ('q.mat', 'r.mat'),
        ('both.mat', 'both.mat', *named, *in_it),
        ('q.npz', 'both.mat', '--database-codes', 'rB', '--database-labels', 'rL'),
    ):
        done = do('evaluate', *words, '--json')
        assert done.exit_code == 0 and done.stderr == '', (words, done.stderr)
        assert json.loads(done.stdout)['map'] == expected, words
    assert refused(do('evaluate', 'q.npy', 'r.npy'), 'labels')
    assert refused(do('evaluate', 'both.mat', 'both.mat'), 'both.mat', 'no packed')
    assert refused(
        do('evaluate', 'q.npz', 'r.npz', '--query-codes', 'B'), 'codes, labels, and no B'
    )
    assert refused(
        do('evaluate', 'q.npy', 'r.npy', '--query-labels', 'y.npy'), 'y.npy is not there'
    )
    np.savez('q.npz', outputs=h[sides['q']] > 0, labels=y[sides['q']])
    assert refused(do('evaluate', 'q.npz', 'r.npz'), 'outputs', 'from_bits')
    assert do('index', 'build', 'x.index', 'r.npy').exit_code == 0


@pytest.mark.usefixtures('begun')
def test_named_runs_are_laid_over_each_other(tmp_path, monkeypatch):
    "By folder or result file, with tables beside them or without; a run without codes is told."
    monkeypatch.chdir(tmp_path)
    asked = {'dataset': 'digits', 'recipe': 'quick'}
    for bits, method, k in ((8, 'dcwh', 0), (16, 'dcwh', 0), (8, 'csq', 5)):
        settings = {'epochs': 1, 'map_top_k': k}
        dcwh.run(dcwh.resolve(settings, bits=bits, method=method, **asked), 'runs')
    a, b, c = sorted(path.parent for path in Path('runs').glob('*/*/result.json'))  # csq first
    done = do('compare', a, b / 'result.json', c, '--out', 'over.ipynb')
    assert done.exit_code == 0 and done.stdout == 'over.ipynb\n', done.output
    said = Path('over.ipynb').read_text()
    assert 'csq, 8 bits, seed 0' in said and 'dcwh, 16 bits, seed 0' in said
    assert said.count('"image/png"') == 2  # one task: the curves, and mAP by length
    assert '<td>mAP@5</td>' in said and '<td>mAP</td>' in said
    given = '--method csq --bits 8 --recipe quick --set epochs=1 --set map_top_k=5 --detail none'
    again = do('run', *given.split())
    assert again.stdout.startswith('finished: mAP@5 '), again.output
    (c / 'query.npz').unlink()
    table = Path('tables/digits.csv')
    assert do('record', a, '--reports', table.parent, '--modified').exit_code == 0
    done = do('compare', b, c, table.parent, '--out', 'over.ipynb')
    assert done.exit_code == 0 and done.stderr == '', done.output
    said = Path('over.ipynb').read_text()
    assert 'gone' in said and 'csq, 8 bits' not in said and 'csq' in said
    assert refused(do('compare', a, table), 'digits.csv is no folder')
    (b / 'database.npz').write_bytes(b'torn')
    assert refused(do('compare', b, '--out', 'torn.ipynb'), 'database.npz')
    assert not Path('torn.ipynb').exists()


@pytest.mark.parametrize('ending', ('onnx', 'pt2'))
def test_a_model_is_exported(place, ending):
    out = place / f'm.{ending}'
    assert do('export', 'model', out).stdout.strip() == str(out)
    images = torch.rand(4, 3, 16, 16)
    model = HashModel.from_pretrained('model').eval()
    if ending == 'onnx':
        found = OnnxModel(out)(images)
        assert refused(do('export', out, 'again.onnx'), 'an export already')
    else:
        found = torch.export.load(out).module()(images)
    assert torch.allclose(found, model(images), atol=1e-4)
    assert refused(do('export', 'model', out), 'is there already')


def test_what_cannot_be_exported_is_said_before_the_work(place, monkeypatch):
    monkeypatch.setattr(HashModel, 'from_pretrained', lambda path: pytest.fail('was loaded'))
    for words, said in (
        (('model', 'm.pt'), 'm.pt ends neither in .onnx nor in .pt2'),
        (('model', 'photos/ant/0.png/m.onnx'), 'm.onnx'),
        (('', 'm.onnx'), "model is ''"),
    ):
        assert refused(do('export', *words), said)
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert refused(do('export', 'nowhere', 'm.onnx'), 'nowhere')


def test_a_run_is_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dcwh.run(dcwh.resolve({'epochs': 1}, dataset='digits', bits=8, recipe='quick'), 'runs')
    (run,) = (path.parent for path in Path('runs').glob('*/*/result.json'))
    for words, said in (
        (('--repo-id', 'me/x'), 'needs a licence'),
        (('--repo-id', 'me', '--license', 'mit'), 'repo_id is'),
        (('--public',), 'give --repo-id'),
    ):
        assert refused(do('publish', run, 'out', *words), said)
    assert not Path('out').exists()
    done = do('publish', run / 'result.json', 'out', '--license', 'mit')
    assert done.stdout == 'out: README.md, config.json, model.safetensors\n' and not done.stderr
    assert 'license: mit' in Path('out/README.md').read_text()
    assert HashModel.from_pretrained('out').bits == 8
    assert refused(do('publish', run, 'out'), 'is there already')
    assert 'names no licence' in do('publish', run, 'bare').stderr


@pytest.mark.parametrize('module', ['typer', 'torch.autograd'])
def test_ctrl_c_in_an_import_stops_the_command_in_a_line(module, tmp_path):
    "Also in that of torch, which catches some interrupts and breaks later."
    program = f"""
import os, runpy, signal, sys
class Finder:
    def find_spec(name, *more):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError('made of an interrupt')
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests ignore it
sys.meta_path.insert(0, Finder)
sys.argv = ['dcwh', 'run', '--recipe', 'quick', '--detail', 'none']
runpy.run_module('dcwh', run_name='__main__')
"""
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (130, '')
    assert done.stderr in ('stopped\n', 'stopped; the same command goes on\n')


def test_ctrl_c_before_the_command_begins_stops_in_a_line(monkeypatch, capsys):
    "Where typer reads the command line it would end with 130 and say nothing."

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('sys.argv', ['dcwh', 'methods'])
    monkeypatch.setattr('typer.core.TyperGroup.invoke', interrupt)
    monkeypatch.setattr('dcwh.__main__.signal.signal', lambda *_: None)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr() == ('', 'stopped\n')


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full here')
@pytest.mark.parametrize('words', [['--version'], ['--help'], ['methods', '--help'], ['methods']])
def test_what_cannot_be_printed_is_said_in_a_line(words):
    with open('/dev/full', 'w') as full:
        program = [sys.executable, '-m', 'dcwh', *words]
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, '[Errno 28] No space left on device\n')


def test_a_reader_that_has_seen_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, '-m', 'dcwh', 'settings'], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, '')


def test_answers_show_distances_whole():
    line = cli._line({'id': 'a.png', 'distance': 12_345})
    assert line.split() == ['12345', 'a.png'] and cli._caption({'distance': 12_345}) == '12345'
    assert cli._line({'id': 'a.png', 'distance': 1.23456}).split()[0] == '1.235'


def test_a_warning_that_python_makes_an_error_is_no_bug(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / 'q.npz', codes=rng.normal(size=(9, 8)), labels=np.arange(9) % 3)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        done = do('evaluate', str(tmp_path / 'q.npz'), str(tmp_path / 'q.npz'))
    assert done.exit_code == 2 and 'queries are in the database too' in done.stderr
    assert 'bug' not in done.stderr
