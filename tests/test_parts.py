"""Datasets of codes that are scored part by part: by the command line, by Ray, from an object
store; while they grow, and where they cannot be read."""

import json
import pickle
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from dcwh.cli import app, save_codes
from dcwh.codes import Codes
from dcwh.evaluation import evaluate
from dcwh.parts import CodeParts, Folder, _pinned, folder_of, ray_cluster, tally
from dcwh.search import CodeIndex, as_arrow

CLASSES = np.array(['ant', 'bee', 'cow', 'dog'])


def some_codes(n, seed, bits=32):
    rng = np.random.default_rng(seed)
    ids = np.array([f'{seed}/{i}.jpg' for i in range(n)])
    return Codes.from_outputs(rng.standard_normal((n, bits)), rng.integers(0, 4, n), ids, 'aaaa')


def names_of(codes):
    return {'label': CLASSES[codes.labels]}


def write_parquet(codes, path, storage_options=None):
    file = BytesIO()
    parquet.write_table(as_arrow(codes, names_of(codes)), file)
    folder, name = folder_of(str(path), storage_options)
    folder.write(name, file.getvalue())


def do(*words, code=0):
    "A command in this process; its answer, and what it said beside."
    done = CliRunner().invoke(app, ['evaluate', *map(str, words), '--json'])
    assert done.exit_code == code, done.output
    if code:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        return done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture
def place(tmp_path, monkeypatch):
    "Queries, and a database as one file, as two, as a folder of Parquet and as a Lance table."
    monkeypatch.chdir(tmp_path)
    query, database = some_codes(20, 1), some_codes(300, 2)
    parts = database[:200], database[200:]
    (tmp_path / 'codes').mkdir()
    save_codes(query, names_of(query), tmp_path / 'q.npz')
    save_codes(database, names_of(database), tmp_path / 'd.npz')
    for number, part in enumerate(parts):
        save_codes(part, names_of(part), tmp_path / f'd{number}.npz')
        write_parquet(part, tmp_path / 'codes' / f'part-{number}.parquet')
    CodeIndex.build(database, 'lance', names_of(database), path='d.lance')
    return query, database


DATASETS = (
    ['d0.npz', 'd1.npz'],
    ['codes'],
    ['d.lance'],
    ['codes/part-0.parquet', 'codes/part-1.parquet'],
)


@pytest.mark.parametrize('dataset', DATASETS, ids=str)
@pytest.mark.parametrize('more', ([], ['--top-k', 50], ['--first', 16]), ids=str)
def test_a_dataset_gives_the_numbers_of_one_file(place, dataset, more):
    assert do('q.npz', *dataset, *more) == do('q.npz', 'd.npz', *more)


def test_labels_in_the_files(place):
    query, database = place
    query.save('q-own.npz')
    database.save('d-own.npz')
    for number, part in enumerate((database[:7], database[7:])):
        part.save(f'own{number}.npz')
    whole = do('q-own.npz', 'd-own.npz')
    assert do('q-own.npz', 'own0.npz', 'own1.npz') == whole
    assert 'labels of the database are no names' in do('q.npz', 'own0.npz', 'own1.npz', code=2)
    assert 'q-own.csv is not there, and the labels' in do('q-own.npz', 'codes', code=2)
    CodeIndex.build(database, 'lance', {'label': database.labels}, path='numbers.lance')
    assert do('q-own.npz', 'numbers.lance', '--query-table', 'none') == whole
    save_codes(query, {'label': query.labels.astype(str)}, Path('named.npz'))
    assert do('named.npz', 'numbers.lance') == whole


def test_several_labels_on_either_side(place):
    "One label meets several, and some parts have images of one label only."
    query, database = place
    rng = np.random.default_rng(5)
    texts = [
        '; '.join(CLASSES[np.unique(rng.integers(0, 4, 1 + (i > 150) * 2))])
        for i in range(len(database))
    ]
    save_codes(query, {'labels': [f'{text};ewe' for text in texts[-20:]]}, Path('q-several.npz'))
    save_codes(database, {'labels': texts}, Path('several.npz'))
    CodeIndex.build(database, 'lance', {'labels': texts}, path='several.lance')
    for number, part in enumerate((slice(0, 100), slice(100, 300))):
        save_codes(database[part], {'labels': texts[part]}, Path(f'several{number}.npz'))
    for asked in ('q.npz', 'q-several.npz'):
        whole = do(asked, 'several.npz')
        assert do(asked, 'several.lance') == whole
        assert do(asked, 'several0.npz', 'several1.npz') == whole
    assert do('q-several.npz', 'd.lance') == do('q-several.npz', 'd.npz')


def test_queries_in_the_database_and_equal_codes_are_said(place):
    query, database = place
    twins = database[195:205]
    save_codes(twins, names_of(twins), Path('twins.npz'))
    said = do('twins.npz', 'd.npz')[1]
    assert '10 of 10 queries have name and code of an image in the database' in said
    for dataset in DATASETS:
        assert do('twins.npz', *dataset)[1] == said
    again = do('d0.npz', 'd0.npz', 'd1.npz')[1]
    assert '200 of 200 queries' in again
    equal = database[np.zeros(30, int)]
    equal = Codes(equal.packed, 32, equal.labels, np.arange(30))
    for number in (0, 1):
        equal.save(f'equal{number}.npz')
    query.save('own.npz')
    assert 'all codes of the database are equal' in do('own.npz', 'equal0.npz', 'equal1.npz')[1]


@pytest.mark.parametrize('sequence', (list, tuple, iter, dict.fromkeys), ids=lambda s: s.__name__)
def test_files_come_in_any_sequence(place, sequence):
    parts = CodeParts.open(sequence(['d0.npz', 'd1.npz']))
    assert [piece.where for piece in parts.pieces] == ['d0.npz', 'd1.npz'] and len(parts) == 300


def test_an_image_that_would_count_twice_is_said(place):
    "A file that is given twice is refused, and files that share images are told."
    _, database = place
    save_codes(database[190:], names_of(database[190:]), Path('d2.npz'))
    Path('link.npz').symlink_to('d1.npz')
    for dataset, said in (
        (['d0.npz', 'd1.npz', 'd1.npz'], 'd1.npz is given twice; give each file once'),
        (['codes', 'codes/part-0.parquet'], 'part-0.parquet is given twice; give each file once'),
        (['d1.npz', 'link.npz'], 'link.npz is given twice, as d1.npz; give each file once'),
    ):
        assert said in do('q.npz', *dataset, code=2)
    twice = '10 images of the database with the id of another there: an image that stands twice'
    assert twice in do('q.npz', 'd0.npz', 'd2.npz')[1]
    write_parquet(database[190:210], 'codes/part-2.parquet')
    for engine in ('here', 'ray'):
        said = do('q.npz', 'codes', '--engine', engine)[1]
        assert twice.replace('10', '20') in said
    Path('codes/part-2.parquet').unlink()
    for name, ids in (('a', range(100)), ('b', range(50)), ('c', range(50, 100))):
        part = Codes(database.packed[: len(ids)], 32, database.labels[: len(ids)], np.array(ids))
        write_parquet(part, f'{name}.parquet')
    for engine in ('here', 'ray'):  # a file does not go on where the one before ended
        said = do('q.npz', 'a.parquet', 'b.parquet', 'c.parquet', '--engine', engine)[1]
        assert twice.replace('10', '50') in said
    for number in (-1, -2):  # of one hash in Python
        alone = database[:1]
        Codes(alone.packed, alone.bits, alone.labels, np.array([number])).save(f'id{number}.npz')
    files = ['id-1.npz', 'id-2.npz']
    assert 'twice' not in do('q.npz', *files, '--query-table', 'none')[1]
    database[[*range(300), 7, 7, 8]].save('twice.npz')
    said = do('q.npz', 'twice.npz', '--database-table', 'd.csv')[1]
    assert '3 images of the database with the id of another' in said


def test_a_parquet_file_and_its_copy_are_said(place):
    assert 'again' not in do('q.npz', 'codes')[1]
    shutil.copy('codes/part-1.parquet', 'codes/part-2.parquet')
    said = do('q.npz', 'codes')[1]
    assert 'codes/part-2.parquet holds the images of codes/part-1.parquet again' in said


def test_no_place_of_several_is_left_out(place):
    Path('empty').mkdir()
    for dataset, said in (
        (['d0.npz', 'codes', 'd.lance'], 'd.lance is no dataset of codes'),
        (['d0.npz', 'codes', 'empty'], 'empty is no dataset of codes'),
        (['codes', 'd0.npz'], 'd0.npz are of two kinds; give files of one kind'),
    ):
        assert said in do('q.npz', *dataset, code=2)


def test_files_in_folders_of_a_folder_are_not_passed_by(place):
    "They were left out, without a word. What a writer keeps for itself still is."
    Path('codes/more').mkdir()
    Path('codes/part-1.parquet').rename('codes/more/part-1.parquet')
    said = 'codes holds more/part-1.parquet in a folder of its own'
    assert said in do('q.npz', 'codes', code=2)
    Path('codes/more').rename('codes/_more')
    assert do('q.npz', 'codes') == do('q.npz', 'd0.npz')


def test_numbers_in_a_column_are_names(place):
    "A run numbers its classes in the order of their texts: 10 before 2."
    query, database = place
    numbers = np.array([2, 3, 10, 11])
    order = {str(n): i for i, n in enumerate(sorted(map(str, numbers)))}
    of_run = np.array([order[str(n)] for n in numbers])
    Codes(query.packed, 32, of_run[query.labels], query.ids, 'aaaa').save('run.npz')
    save_codes(query, {'label': numbers[query.labels]}, Path('named.npz'))
    CodeIndex.build(database, 'lance', {'label': numbers[database.labels]}, path='n.lance')
    said = 'run.csv is not there, and the labels of the database are in a column, where a number'
    assert said in do('run.npz', 'n.lance', code=2)
    known = do('q.npz', 'd.lance')[0]
    assert do('named.npz', 'n.lance')[0] == known
    Codes(query.packed, 32, numbers[query.labels], query.ids, 'aaaa').save('same.npz')
    assert do('same.npz', 'n.lance', '--query-table', 'none')[0] == known


def test_what_is_refused_before_anything_is_counted(place, monkeypatch):
    query, database = place
    other = Codes(database.packed, 32, database.labels, database.ids, 'bbbb')
    save_codes(other, names_of(other), Path('other.npz'))
    save_codes(database.first(16), names_of(database), Path('short.npz'))
    gaps = CLASSES[database.labels].astype('U3')
    gaps[250] = ''
    CodeIndex.build(database, 'lance', {'label': gaps}, path='gaps.lance')
    monkeypatch.setattr('dcwh.parts.histograms_of_parts', None)
    for dataset, said in (
        (['d.npz', 'other.npz'], 'other.npz is of model bbbb and d.npz of model aaaa'),
        (['d.npz', 'short.npz'], 'short.npz and d.npz are no parts of one dataset (bits: 16, 32)'),
        (['d.npz', 'nowhere.npz'], 'nowhere.npz is not there'),
        (['gaps.lance'], 'an image has an empty label'),
        (['nowhere.lance'], 'nowhere.lance'),
        (['codes', '--engine', 'spark'], "unknown engine 'spark'; known are here, ray"),
        (['codes', '--database-table', 'd.csv'], '--database-table is d.csv'),
        (['codes', '--query-table', 'none'], 'the queries are without a table'),
        (['codes', '--first', 64], 'bits is 64 and codes have 32'),
    ):
        assert said in do('q.npz', *dataset, code=2)


@pytest.mark.whole
def test_tasks_of_ray_count_the_same(place):
    pytest.importorskip('ray')
    query, database = place
    twins = Codes(database.packed, 32, database.labels, database.ids, 'aaaa')[195:205]
    save_codes(twins, names_of(twins), Path('twins.npz'))
    with ray_cluster():
        for name in ('q.npz', 'twins.npz'):
            for dataset in DATASETS:
                assert do(name, *dataset, '--engine', 'ray') == do(name, 'd.npz')
        parts = CodeParts.open('d.lance', 'ray', rows=7).numbered(CLASSES)
        found = evaluate(query, parts, 50, graded=True)
        assert found.to_dict() == evaluate(query, database, 50, graded=True).to_dict()
        assert tally(parts, twins).seen.in_both == 10
        parts = CodeParts.open('codes', 'ray').numbered(CLASSES)
        write_parquet(query, 'codes/part-1.parquet')
        with pytest.raises(ValueError, match='part-1.parquet was changed since'):
            evaluate(query, parts)


def test_a_table_that_was_made_anew_is_not_the_one_that_was_opened(place):
    "In this process, and in another, to which the parts were sent."
    query, database = place
    sent = pickle.dumps(CodeParts.open('d.lance').numbered(CLASSES))
    _pinned.cache_clear()
    assert evaluate(query, pickle.loads(sent)).map == evaluate(query, database).map
    shutil.rmtree('d.lance')
    CodeIndex.build(some_codes(300, 3), 'lance', names_of(database), path='d.lance')
    _pinned.cache_clear()
    with pytest.raises(ValueError, match='d.lance was made anew since the dataset was opened'):
        evaluate(query, pickle.loads(sent))


def parquet_in(bucket, name, *parts):
    for number, part in enumerate(parts):
        write_parquet(part, f's3://photos/{name}/part-{number}.parquet', bucket)
    return f's3://photos/{name}'


@pytest.mark.whole
def test_a_bucket(place, bucket, monkeypatch):
    """A folder of Parquet and a Lance table in an object store: scored, by what the environment
    says too; growth is not seen; a part that changed is an error."""
    options, server = bucket
    query, database = place
    folder = parquet_in(options, 'codes', database[:200], database[200:])
    table = 's3://photos/codes.lance'
    index = CodeIndex.build(
        database, 'lance', names_of(database), path=table, storage_options=options
    )
    whole = evaluate(query, database).to_dict()
    for where in (folder, table):
        parts = CodeParts.open(where, rows=128, storage_options=options).numbered(CLASSES)
        more = some_codes(30, 3)
        if where == table:
            index.add(more, names_of(more))
            index.optimize()
        else:
            write_parquet(more, f'{folder}/part-2.parquet', options)
        assert evaluate(query, parts).to_dict() == whole
        assert len(CodeParts.open(where, storage_options=options)) == 330
    parts = CodeParts.open(folder, storage_options=options).numbered(CLASSES)
    write_parquet(more, f'{folder}/part-1.parquet', options)
    with pytest.raises(ValueError, match='part-1.parquet was changed since'):
        evaluate(query, parts)
    for name, value in options.items():
        monkeypatch.setenv(f'AWS_{name.upper()}', value)
    mine = [*place[1:], more]
    joint = Codes(
        np.concatenate([c.packed for c in mine]),
        32,
        np.concatenate([c.labels for c in mine]),
        np.concatenate([c.ids for c in mine]),
        'aaaa',
    )
    assert do('q.npz', table)[0]['map'] == evaluate(query, joint).map


@pytest.mark.whole
def test_npz_files_in_a_bucket(place, bucket, monkeypatch):
    """Files of codes that were copied into an object store, with their tables: one, several, a
    folder; a table that is missing, a file that is no .npz, and one that changed."""
    options, server = bucket
    _, database = place
    codes = Folder('s3://photos/npz', options)
    for name in ('d0.npz', 'd0.csv', 'd1.npz', 'd1.csv'):
        codes.write(name, Path(name).read_bytes())
    lone = Folder('s3://photos/lone', options)
    lone.write('d.npz', Path('d.npz').read_bytes())
    database.save('own.npz')
    lone.write('own.npz', Path('own.npz').read_bytes())
    lone.write('text.npz', b'text')
    parts = CodeParts.open(codes.place, storage_options=options)
    for name, value in options.items():
        monkeypatch.setenv(f'AWS_{name.upper()}', value)
    whole = do('q.npz', 'd.npz')
    assert do('q.npz', codes.place) == whole
    assert do('q.npz', codes.path('d0.npz'), codes.path('d1.npz')) == whole
    assert do('q.npz', 's3://photos/lone/own.npz', '--query-table', 'none')[0]['database'] == 300
    for name, said in (
        ('d.npz', 's3://photos/lone/d.csv, the table of s3://photos/lone/d.npz, is not there'),
        ('text.npz', 's3://photos/lone/text.npz is no .npz of plain arrays'),
        ('nothing.npz', 's3://photos/lone/nothing.npz is not there'),
    ):
        assert said in do('q.npz', lone.path(name), code=2)
    codes.write('d1.npz', Path('d0.npz').read_bytes())
    with pytest.raises(ValueError, match='npz/d1.npz was changed since the dataset was opened'):
        list(parts)


@pytest.mark.whole
def test_a_bucket_that_cannot_be_read(place, bucket, monkeypatch):
    "No such place, no rights, nothing that answers: each is one line, before anything is counted."
    import requests

    options, server = bucket
    for name, value in options.items():
        monkeypatch.setenv(f'AWS_{name.upper()}', value)
    _, database = place
    folder = parquet_in(options, 'rights', database)  # a store outlives its server
    CodeIndex.build(database, 'lance', names_of(database), path=f'{folder}.lance')
    for where in ('s3://photos/nothing', 's3://photos/nothing.lance', 's3://nobody/codes'):
        assert where in do('q.npz', where, code=2)
    requests.post(f'{options["endpoint"]}/moto-api/reset-auth', data=b'0')
    try:
        for where in (folder, f'{folder}.lance'):
            assert where in do('q.npz', where, code=2)
    finally:
        requests.post(f'{options["endpoint"]}/moto-api/reset-auth', data=b'inf')
    server.stop()
    for where in (folder, f'{folder}.lance'):
        assert where in do('q.npz', where, code=2)
    server.start()
