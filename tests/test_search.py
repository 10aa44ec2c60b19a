"""Indexes under faults: killed while saving, two writers at once, options that cannot work,
files that lie, an object store that answers and one that does not."""

import copy
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import unicodedata
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import getsource
from pathlib import Path
from uuid import uuid4

import faiss
import numpy as np
import pytest
from faiss import serialize_index_binary
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Python, python
from typer.testing import CliRunner

from dcwh.app import described
from dcwh.cli import app
from dcwh.codes import Codes, hamming
from dcwh.parts import CodeParts
from dcwh.search import INDEX_KINDS, OPTIONS, STRUCTURES, CodeIndex, changing, option_lines


def codes(n, first=0, seed=0):
    h = np.random.default_rng([seed, first]).standard_normal((n, 64))
    ids = np.array([f'{i}.jpg' for i in range(first, first + n)])
    return Codes.from_outputs(h, ids=ids, model='aaaa')


PARTS = f"""
import sys
import numpy as np
from dcwh.codes import Codes
from dcwh.search import CodeIndex
{getsource(codes)}
"""


@pytest.mark.parametrize('kind', ('flat', 'ivf'))
def test_killed_while_saving(tmp_path, kind):
    "Whenever the kill comes, the file is that of before or that of after."
    path = tmp_path / 'photos.index'
    options = {'lists': 20} if kind == 'ivf' else {}
    CodeIndex.build(codes(50_000), kind, **options).save(path)
    program = """
index = CodeIndex.load(sys.argv[1])
index.add(codes(200_000, 50_000))
print('saving', flush=True)
while True: index.save(sys.argv[1])
"""
    sizes, torn, delays = set(), 0, np.linspace(0.001, 0.2, 5)
    for attempt in range(50):  # five, and more where none of them hit a write
        if attempt >= len(delays) and torn:
            break
        writer = Python(PARTS + program, path)
        assert writer.stdout.readline().strip() == 'saving'
        time.sleep(delays[attempt % len(delays)])
        writer.kill()
        writer.end()
        sizes.add(len(index := CodeIndex.load(path)))
        assert index.search(codes(1), 1)[1].tolist() == [['0.jpg']]
        left = (f for f in tmp_path.glob('.photos.index.*') if f.suffix != '.lock')
        torn += len(list(left))
        if len(index) > 50_000:  # the next one starts from the smaller state again
            path.unlink()
            CodeIndex.build(codes(50_000), kind, **options).save(path)
    assert sizes <= {50_000, 250_000} and torn, 'no kill hit a write; the test shows nothing'


def test_two_writers(tmp_path):
    """Of two that extend the same state at the same moment, one saves and the other is told;
    nothing of the first is lost."""
    path = tmp_path / 'photos.index'
    CodeIndex.build(codes(1000)).save(path)
    program = """
index = CodeIndex.load(sys.argv[1])
index.add(codes(1000, int(sys.argv[2])))
print('ready', flush=True)
sys.stdin.readline()
try: index.save(sys.argv[1])
except OSError as e: print('refused', e)
else: print('saved')
"""
    writers = [Python(PARTS + program, path, first) for first in (1000, 2000)]
    for writer in writers:
        assert writer.stdout.readline().strip() == 'ready'
    for writer in writers:
        writer.stdin.write('\n')
        writer.stdin.flush()
    said = [writer.end()[1] for writer in writers]
    assert sorted(s.split()[0] for s in said) == ['refused', 'saved'], said
    winner = next(
        first for first, s in zip((1000, 2000), said, strict=True) if s.startswith('saved')
    )
    index = CodeIndex.load(path)
    assert len(index) == 2000 and len(index.codes_of([f'{winner}.jpg', f'{winner + 999}.jpg'])) == 2


def test_two_writers_of_a_table(tmp_path):
    "LanceDB keeps what both have added."
    path = tmp_path / 'photos.lance'
    CodeIndex.build(codes(1000), 'lance', path=path)
    program = """
index = CodeIndex.load(sys.argv[1])
for n in range(5): index.add(codes(10, int(sys.argv[2]) + 10 * n))
"""
    writers = [Python(PARTS + program, path, first) for first in (1000, 2000)]
    ends = [writer.end() for writer in writers]
    assert [code for code, _ in ends] == [0, 0], ends
    assert len(CodeIndex.load(path)) == 1100


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError):
        CodeIndex.build(codes(10)).save(tmp_path / 'file' / 'photos.index')


def test_a_table_that_cannot_be_read_is_not_damaged(tmp_path, monkeypatch):
    index = built('lance', some_codes(5), folder=tmp_path)
    scan = os.scandir

    def refuse(path):
        if str(path) == index.path:
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)  # as for a user who may not; root may
    with pytest.raises(PermissionError, match='Permission denied'):
        CodeIndex.load(index.path)


class Overloaded(BaseHTTPRequestHandler):
    "An object store that has no time, and counts how often it is asked."

    asked = 0

    def do_GET(self):
        Overloaded.asked += 1
        self.send_error(503)

    def log_message(self, *given):
        pass


def test_an_object_store_that_does_not_answer():
    options = {'allow_http': 'true', 'region': 'us-east-1'}
    options |= {'access_key_id': 'a', 'secret_access_key': 'b'}
    with ThreadingHTTPServer(('127.0.0.1', 0), Overloaded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for port in (9, server.server_port):
            options['endpoint'] = f'http://127.0.0.1:{port}'
            with pytest.raises(OSError, match='cannot be opened'):
                CodeIndex.load('s3://photos/index.lance', storage_options=options)
        server.shutdown()
    assert 0 < Overloaded.asked < 30  # 18 times; LanceDB alone would go on 66 times


@pytest.mark.whole
def test_an_object_store(bucket):
    """Built, extended, filtered, deleted from and opened again, by another process too; and when
    the server goes, an error says so."""
    options, server = bucket
    where, label = 's3://photos/all/index.lance', np.array(['cat', 'dog'] * 500)
    index = CodeIndex.build(
        codes(1000), 'lance', {'label': label}, path=where, storage_options=options
    )
    index.add(codes(1000, 1000), {'label': label})
    exact = CodeIndex.build(codes(1000), 'flat', {'label': label})
    exact.add(codes(1000, 1000), {'label': label})
    for filters in (None, {'label': 'dog'}):
        assert (
            index.search(codes(20, 0), 5, filters)[0] == exact.search(codes(20, 0), 5, filters)[0]
        ).all()
    program = f"""
index = CodeIndex.load('{where}', storage_options={options!r})
index.delete(['0.jpg'])
print(len(index), index.search(codes(1), 1)[1].tolist() != [['0.jpg']])
"""
    _, said = python(PARTS + program)
    assert said.split() == ['1999', 'True'], said
    again = CodeIndex.load(where, storage_options=options)
    assert (len(again), again.bits, again.model) == (1999, 64, 'aaaa')
    assert (
        '0.jpg'
        in CodeIndex.load(where, version=index.table.version, storage_options=options).search(
            codes(1), 1
        )[1]
    )
    shell = subprocess.run(
        [Path(sys.executable).with_name('dcwh'), 'index', 'show', where],
        capture_output=True,
        text=True,
        env=os.environ | {f'AWS_{name.upper()}': value for name, value in options.items()},
    )
    assert shell.returncode == 0 and 'images            1999' in shell.stdout, (
        shell
    )  # what the environment says is enough
    with pytest.raises(FileNotFoundError, match='no index at'):
        CodeIndex.load('s3://photos/all/other.lance', storage_options=options)
    with pytest.raises(FileExistsError, match='is there already'):
        CodeIndex.build(codes(10), 'lance', path=where, storage_options=options)
    server.stop()
    with pytest.raises(OSError, match='cannot be opened'):
        CodeIndex.load(where, storage_options=options)
    server.start()


READER = (
    PARTS
    + """
where, options = sys.argv[1], eval(sys.argv[2])
index = CodeIndex.load(where, storage_options=options)
first = index.search(codes(20), 5)
print(len(index), flush=True)
for word in sys.stdin:
    if word.strip() == 'refresh':
        index.refresh()
        print(len(index), flush=True)
        first = index.search(codes(20), 5)
    if word.strip() == 'search':
        again = [index.search(codes(20), 5) for _ in range(3)]
        same = all((a == b).all() for found in again for a, b in zip(found, first))
        print(len(index), same, (first[0][:, 0] == 0).all(), flush=True)
"""
)
WRITER = (
    PARTS
    + """
where, options = sys.argv[1], eval(sys.argv[2])
index = CodeIndex.load(where, storage_options=options)
for word in sys.stdin:
    if word.strip() == 'add':
        for n in range(5): index.add(codes(200, len(index)))
    if word.strip() == 'tidy': index.optimize(lists=20)
    print(len(index), flush=True)
"""
)


@pytest.mark.whole
def test_readers_while_a_table_in_a_bucket_grows(bucket):
    """Several processes search while another adds, compacts and makes lists. Each sees one state
    until it asks for the newest; a version from before the compaction can still be opened."""
    options, _ = bucket
    where = 's3://photos/growing.lance'
    index = CodeIndex.build(codes(1000), 'lance', path=where, storage_options=options)
    first = index.table.version
    readers = [Python(READER, where, options) for _ in range(2)]
    writer = Python(WRITER, where, options)

    def tell(process, word):
        process.stdin.write(f'{word}\n')
        process.stdin.flush()

    def said(process):
        return process.stdout.readline().split()

    assert [said(reader) for reader in readers] == [['1000']] * 2
    for word, before, after in (('add', 1000, 2000), ('tidy', 2000, 2000), ('add', 2000, 3000)):
        tell(writer, word)
        for reader in readers:  # while the writer is at work
            tell(reader, 'search')
        for reader in readers:
            assert said(reader) == [str(before), 'True', 'True']
        assert said(writer) == [str(after)]
        for reader in readers:
            tell(reader, 'search')
            assert said(reader) == [str(before), 'True', 'True']
            tell(reader, 'refresh')
            assert said(reader) == [str(after)]
    for process in (*readers, writer):
        assert process.end()[0] == 0
    index.refresh()
    assert len(index) == 3000 and index.table.lance.list_indices()
    own = codes(200, 2800)
    assert (index.search(own, 1)[0] == 0).all()  # what came after the lists were made
    assert len(CodeIndex.load(where, version=first, storage_options=options)) == 1000


def test_many_codes_get_lists_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr('dcwh.search.LISTED', 900)
    index = CodeIndex.build(codes(899), 'lance', path=tmp_path / 'many.lance')
    index.optimize()
    assert not index.table.lance.list_indices()
    index.add(codes(1, 899))
    index.optimize(lists=0)
    assert not index.table.lance.list_indices()
    index.optimize()
    (made,) = index.table.lance.list_indices()
    stats = index.table.lance.index_stats(made.name)
    assert (stats.index_type, stats.num_indexed_rows) == ('IVF_FLAT', 900)
    index.add(codes(50, 900))
    index.optimize()  # which takes in what is new, and makes no lists anew
    stats = index.table.lance.index_stats(made.name)
    assert (stats.num_indexed_rows, stats.num_unindexed_rows) == (950, 0)


# ---- what is accepted works, what cannot work is refused


def some_codes(n, bits=32, first=0, seed=0):
    packed = np.packbits(np.random.default_rng([seed, first]).random((n, bits)) < 0.5, axis=1)
    return Codes(packed, bits, None, np.array([f'{i}.jpg' for i in range(first, first + n)]))


def columns_of(n):
    "A column of each type, with values that a careless reader would change."
    labels = ['7', 'true', "it's", 'a\\b', '1.10', 'null', '', '`x`']
    return {
        'label': np.array([labels[i % 8] for i in range(n)]),
        'year': np.arange(n) + 2**62,
        'weight': np.arange(n) / 8,
        'open': np.arange(n) % 2 == 0,
    }


def built(kind, codes, metadata=None, folder=None, **options):
    if kind == 'lance':
        options['path'] = str(folder / f'{uuid4().hex}.lance')
    return CodeIndex.build(codes, kind, metadata, **options)


@st.composite
def cases(draw):
    "A kind, a size, and options from all over their ranges."
    kind = draw(st.sampled_from(list(STRUCTURES)))
    bits, n = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    options = {}
    for name, option in OPTIONS[kind].items():
        if not draw(st.booleans()):
            continue
        highest = option.highest(bits, n)
        ends = st.sampled_from([option.least, highest])
        options[name] = draw(st.one_of(st.integers(option.least, highest), ends))
    return kind, bits, n, options


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases(), st.booleans())
def test_options_in_their_ranges_work(tmp_path_factory, case, alike):
    """Built, saved, opened, extended, emptied by half: something is found, the right thing but
    by hnsw."""
    kind, bits, n, options = case
    codes = some_codes(n, bits)
    if alike:
        codes = Codes(np.repeat(codes.packed[:1], n, 0), bits, None, codes.ids)
    try:
        index = CodeIndex.build(codes, kind, **options)
    except ValueError as e:  # what only goes wrong together
        assert kind == 'multihash' and str(e).startswith(('hashes is', 'flips is')), e
        return
    path = tmp_path_factory.getbasetemp() / f'{uuid4().hex}.index'
    index.save(path)
    again = CodeIndex.load(path)
    path.unlink()
    distances, ids = index.search(codes, n + 5)
    assert distances.shape == ids.shape == (n, n)
    assert (again.search(codes, n)[0] == distances).all()
    assert (distances[:, 0] == 0).all() or kind == 'hnsw' and (distances[:, 0] >= 0).all()
    if kind in ('flat', 'hnsw'):
        assert all(sorted(row) == sorted(codes.ids) for row in ids.tolist())
    again.add(Codes(codes.packed, bits, None, np.array([f'{i}.png' for i in range(n)])))
    again.delete(codes.ids[: n // 2 + 1])
    assert (again.search(codes, 1)[0] >= 0).all() and len(again) == 2 * n - n // 2 - 1
    assert len(again.compacted()) == len(again)


@pytest.mark.parametrize('kind', ['flat', 'hnsw', 'ivf'])
def test_an_index_that_is_exchanged_again_and_again_neither_grows_nor_decays(tmp_path, kind):
    rng = np.random.default_rng(0)

    def codes(n):
        return Codes.from_packed(rng.integers(0, 256, (n, 6)).astype(np.uint8), 48)

    path, queries = tmp_path / 'photos.index', codes(50)
    CodeIndex.build(codes(1500), kind).save(path)
    sizes, first = [path.stat().st_size], CodeIndex.load(path)
    for _ in range(6):
        with changing(path) as index:
            index.delete(index.ids)
            index.add(codes(1500))
        sizes.append(path.stat().st_size)
    assert max(sizes) < 1.1 * sizes[0]
    again = CodeIndex.load(path)
    found = [index.search(queries, 10)[0].mean() for index in (first, again)]
    assert found[1] == pytest.approx(found[0], rel=0.05)  # as near as those of a new one
    with changing(path) as index:
        index.delete(index.ids[:700])
    held = path.stat().st_size
    runner = CliRunner()
    done = runner.invoke(app, ['index', 'optimize', str(path)])
    assert done.exit_code == 0 and path.stat().st_size < 0.7 * held, done.output
    assert len(CodeIndex.load(path)) == 800
    refused = runner.invoke(app, ['index', 'optimize', str(path), '--lists', '3'])
    assert refused.exit_code == 2 and f'{path} is of kind {kind}; --lists is for' in refused.stderr


@pytest.mark.parametrize('kind', INDEX_KINDS)
def test_a_condition_on_labels_asks_for_a_label(tmp_path, kind):
    labels = ['cat', 'cat;dog', 'dog ; cat', 'catfish', 'ice cream;dog', "o'c(at)[1]+#&~-;é", '1.5']
    codes = Codes.from_bits(np.eye(7, 16) > 0)
    options = {'path': tmp_path / 'a.lance'} if kind == 'lance' else {}
    index = CodeIndex.build(codes, kind, {'labels': np.array(labels)}, **options)

    def found(*wanted):
        distances, ids = index.search(codes[:1], 7, {'labels': list(wanted)})
        return sorted(ids[distances >= 0].tolist())

    assert found('cat') == [0, 1, 2] and found('dog') == [1, 2, 4]
    assert found('dog;cat') == found('cat ; dog') == [1, 2]
    assert found('catfish', 'ice cream') == [3, 4]
    assert found("o'c(at)[1]+#&~-") == found('e\u0301') == [5]
    assert found('1.5') == [6] and found('1a5') == found('cat;') == found() == []
    separate = {label.strip() for text in labels for label in text.split(';')}
    assert index.values('labels') == sorted(separate)


def test_a_condition_on_labels_means_the_same_everywhere(tmp_path):
    "Each label in its own Unicode form, and what counts as space around it."
    forms, spaces, third = (
        '\xe9;u\u0308',
        '\x1ca\x1f ; b\x85',
        '\u09dc\u09be; 5 \u212a;\u03b1\u037e',
    )
    made = codes(4), {'labels': np.array([forms, spaces, 'x', third])}
    for kind, options in (('flat', {}), ('lance', {'path': tmp_path / 'a.lance'})):
        index = CodeIndex.build(made[0], kind, made[1], **options)
        asked = [(forms, 0), ('\xe9;\xfc', 0), ('e\u0301;u\u0308', 0), ('a;b', 1)]
        asked += [(third, 3), ('5 K;\u09a1\u09bc\u09be', 3), ('\u09dc\u09be', 3), ('5 \u212a', 3)]
        for wanted, place in asked:
            distances, ids = index.search(made[0][:1], 4, {'labels': wanted})
            assert ids[distances >= 0].tolist() == [f'{place}.jpg'], (kind, wanted)
        for label in index.values('labels'):
            assert (index.search(made[0][:1], 4, {'labels': label})[0] >= 0).sum() == 1, label


def test_a_text_is_found_in_each_of_its_unicode_forms(tmp_path):
    "Composed, in parts, partly composed, and as characters that NFC replaces."
    texts = ['\xe9', 'e\u0302', '\xea\u0323', '\ufa19', '\u212b', 'K', 'e']
    made = codes(len(texts)), {'name': np.array(texts)}
    for kind, options in (('flat', {}), ('lance', {'path': tmp_path / 'a.lance'})):
        index = CodeIndex.build(made[0], kind, made[1], **options)
        for place, text in enumerate(texts):
            forms = {text, *(unicodedata.normalize(form, text) for form in ('NFC', 'NFD'))}
            for form in forms | ({'\u212a'} if text == 'K' else set()):
                distances, ids = index.search(made[0][:1], 7, {'name': [form, 'none']})
                assert ids[distances >= 0].tolist() == [f'{place}.jpg'], (kind, form)


@pytest.mark.parametrize('bits', (64, 16))
def test_a_table_in_the_place_of_another_is_not_taken_for_it(tmp_path, bits):
    "By its path and number of versions alone it is the same."
    path = tmp_path / 'a.lance'
    old = CodeIndex.build(codes(20), 'lance', path=path)
    first, more = old.ids[:1], codes(21)[20:]
    shutil.rmtree(path)
    CodeIndex.build(codes(20).first(bits), 'lance', path=path)
    for change in (lambda: old.add(more), lambda: old.delete(first), old.optimize, old.refresh):
        with pytest.raises(ValueError, match='holds another index since this one was opened'):
            change()
    with pytest.raises(ValueError, match='holds another index'):
        old.search(more)
    assert {*CodeIndex.load(path).ids} == {*codes(20).ids}


def test_all_images_can_be_taken_out_of_lists_by_the_square_root(tmp_path):
    path = tmp_path / 'a.index'
    CodeIndex.build(codes(20), 'ivf', lists=0).save(path)
    with changing(path) as index:
        index.delete(index.ids)
    assert len(CodeIndex.load(path)) == 0


def test_an_index_that_is_sent_to_another_process_says_what_to_do():
    index = CodeIndex.build(Codes.from_bits(np.eye(3, 8) > 0))
    for copied in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match='save it, and load it where it is needed'):
            copied(index)


BAD_OPTIONS = [
    ('flat', {'lists': 2}),
    ('flat', {'gone': 1}),
    ('hnsw', {'links': 1}),
    ('hnsw', {'links': -1}),
    ('hnsw', {'links': 16.0}),
    ('hnsw', {'ef_search': 2**40}),
    ('hnsw', {'structure': None}),
    ('ivf', {'lists': -1}),
    ('ivf', {'lists': 21}),
    ('ivf', {'probes': True}),
    ('ivf', {'probes': '8'}),
    ('multihash', {'substring': 33}),
    ('multihash', {'hashes': 5, 'substring': 8}),
    ('multihash', {'flips': 12, 'substring': 32}),
    ('lance', {'lists': 21}),
    ('lance', {'nprobe': 3}),
    ('lance', {'storage_options': [1]}),
    ('lance', {'path': 7}),
]


@pytest.mark.parametrize(('kind', 'options'), BAD_OPTIONS)
def test_options_that_cannot_work_are_refused(tmp_path, kind, options):
    "In a line that names them, before anything is there."
    place = {'path': str(tmp_path / 'x.lance')} if kind == 'lance' else {}
    with pytest.raises(ValueError, match=next(iter(options))) as said:
        CodeIndex.build(some_codes(20), kind, **(place | options))
    assert '\n' not in str(said.value) and not list(tmp_path.iterdir())


def test_options_are_printed():
    for kind, options in OPTIONS.items():
        lines = option_lines(kind)
        assert [line.split()[0] for line in lines] == list(options)
    with pytest.raises(ValueError, match='known are flat'):
        option_lines('tree')


# ---- k, empty indexes, what is asked


@pytest.mark.parametrize('kind', INDEX_KINDS)
def test_k_is_cut_at_the_size(tmp_path, kind):
    "Nothing of the size of k is made, and an index that was emptied answers with nothing."
    codes, h = some_codes(20), np.random.default_rng(0).standard_normal((3, 32))
    index = built(kind, codes, folder=tmp_path)
    tracemalloc.start()
    for k in (20, 21, 10**12, np.uint8(99)):
        assert [part.shape for part in index.search(codes[:3], k)] == [(3, 20)] * 2
        assert [part.shape for part in index.rerank(h, k, k)] == [(3, 20)] * 2
        assert index.rerank(h, 4, k)[1].shape == (3, 4) and index.search(codes[:0], k)[0].shape == (
            0,
            20,
        )
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()
    for k in (0, -1, True, 2.0, '3', None):
        with pytest.raises(ValueError, match='k is'):
            index.search(codes[:3], k)
        with pytest.raises(ValueError, match='k is'):
            index.rerank(h, k)
        with pytest.raises(ValueError, match='shortlist is'):
            index.rerank(h, 1, k)
    for wrong in (h[:, :31], h[0], h * np.nan, h * 1e30, 'text', h > 0):
        with pytest.raises(ValueError, match='^h '):
            index.rerank(wrong)
    for wrong in (codes.packed, None, some_codes(2, 24), some_codes(2, 40)):
        with pytest.raises(ValueError, match='^codes '):
            index.search(wrong)
    index.delete(index.ids)
    assert len(index) == 0 and index.ids.shape == (0,)
    assert [part.shape for part in (*index.search(codes, 5), *index.rerank(h, 5))] == [
        (20, 0)
    ] * 2 + [(3, 0)] * 2
    index.add(codes)
    assert index.search(codes, 1)[1].shape == (20, 1)


@pytest.mark.parametrize('kind', INDEX_KINDS)
def test_arrays_that_change_later_do_not_reach_an_index(tmp_path, kind):
    "A buffer is filled anew after the index was built of it, and after it was extended by it."
    kept, row = some_codes(100), np.arange(100)
    packed, ids, rows = kept.packed.copy(), kept.ids.astype('U7'), row.copy()
    index = built(kind, Codes(packed, 32, None, ids), {'row': rows}, tmp_path)
    packed[:], ids[:], rows[:] = 0, 'x', -7
    check_held(index, kept, row, tmp_path)
    kept, row = some_codes(100, first=100), np.arange(100, 200)
    packed[:], ids[:], rows[:] = kept.packed, kept.ids, row
    index.add(Codes(packed, 32, None, ids), {'row': rows})
    packed[:], ids[:], rows[:] = 0, 'x', -7
    check_held(index, kept, row, tmp_path)


def check_held(index, codes, row, folder):
    "Search, codes, columns, and what is saved agree."
    distances, found = index.search(codes, 1)
    assert index.kind == 'hnsw' or (distances == 0).all() and (found[:, 0] == codes.ids).all()
    if index.kind != 'lance':
        index.save(folder / 'a.index')
        index = CodeIndex.load(folder / 'a.index')
    assert (index.codes_of(codes.ids).packed == codes.packed).all()
    assert (index.details(codes.ids)['row'] == row).all()
    assert (index.search(codes, 1)[1] == found).all()


def test_a_home_is_no_place_of_an_index(tmp_path, monkeypatch):
    "LanceDB takes ~ for the home, and nothing else does."
    (tmp_path / '~').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    in_memory = CodeIndex.build(codes(5))
    calls = [
        lambda: CodeIndex.build(codes(5), 'lance', path='~/a.lance'),
        lambda: CodeIndex.build(codes(5), 'lance', path=Path('~/a.lance')),
        lambda: CodeIndex.load('~/a.lance'),
        lambda: CodeIndex.load('~/a.index'),
        lambda: in_memory.save('~/a.index'),
        lambda: CodeParts.open('~/a.lance'),
        lambda: CodeParts.open('~/a'),
    ]
    for call in calls:
        with pytest.raises(ValueError, match='~/a.*: ~ is no home here; give the whole path'):
            call()
    assert os.listdir() == ['~'] and not os.listdir('~')
    table = tmp_path / '~/a.lance'
    CodeIndex.build(codes(5), 'lance', path=table)
    assert len(CodeIndex.load(table)) == 5


def test_too_many_answers_are_refused():
    "Before memory is taken."
    index = CodeIndex.build(Codes(np.zeros((100_000, 1), np.uint8), 8, None, np.arange(100_000)))
    many = Codes(np.zeros((10_000, 1), np.uint8), 8, None, np.arange(10_000))
    for call in (
        lambda: index.search(many, 10**9),
        lambda: index.rerank(np.ones((10_000, 8)), 10**9),
    ):
        with pytest.raises(ValueError, match='ask for fewer'):
            call()


@pytest.mark.parametrize('kind', INDEX_KINDS)
def test_no_codes_no_index(tmp_path, kind):
    with pytest.raises(ValueError, match='there are no codes'):
        built(kind, some_codes(1)[:0], folder=tmp_path)


@pytest.mark.parametrize('options', [{}, {'lists': 40}], ids=['whole', 'in lists'])
@pytest.mark.parametrize('kind', INDEX_KINDS)
def test_filters_of_few_images(tmp_path, kind, options):
    "What a filter allows is found, however few images of many that are and however far."
    codes = some_codes(2000)
    if options and 'lists' not in OPTIONS[kind]:
        pytest.skip('it has no lists')
    index = built(kind, codes, {'row': np.arange(2000)}, tmp_path, **options)
    distances, ids = index.search(codes[:20], 3, {'row': [7, 1234]})
    assert (np.sort(ids, 1) == ['', '1234.jpg', '7.jpg']).all()
    assert (distances[:, 2] == -1).all() and (np.diff(distances[:, :2]) >= 0).all()
    pairs = zip(codes[:20].packed, ids[:, :2], distances[:, :2], strict=True)
    for query, names, near in pairs:
        assert (hamming(query[None], index.codes_of(names.tolist()).packed)[0] == near).all()


@pytest.mark.parametrize('kind', INDEX_KINDS)
def test_codes_of_one_image_or_of_a_set(tmp_path, kind):
    codes = some_codes(100)
    index = built(kind, codes, {}, tmp_path)
    for ids in ({'7.jpg'}, frozenset({'7.jpg'}), '7.jpg', ['7.jpg']):
        found = index.codes_of(ids)
        assert found.ids.tolist() == ['7.jpg'] and (found.packed == codes.packed[7]).all()


# ---- types


@pytest.mark.parametrize('kind', ('flat', 'lance'))
def test_columns_keep_their_types(tmp_path, kind):
    "Through saving, opening and adding, to the last digit; and texts are read by them."
    columns = columns_of(24)
    index = built(kind, some_codes(24), columns, tmp_path)
    texts = {
        'label': ['007', '1e3'],
        'year': [str(2**63 - 1), '-5'],
        'weight': ['0.1', '-1e-3'],
        'open': ['true', 'False'],
    }
    index.add(some_codes(2, first=24), index.read_columns(texts))
    if kind == 'flat':
        index.save(tmp_path / 'x.index')
    index = CodeIndex.load(index.path if kind == 'lance' else tmp_path / 'x.index')
    assert index.types == {
        'id': 'text',
        'label': 'text',
        'year': 'int64',
        'weight': 'float64',
        'open': 'bool',
    }
    found = index.details(index.ids)
    order = np.argsort([int(i.removesuffix('.jpg')) for i in index.ids])
    assert found['year'][order].tolist() == [*columns['year'].tolist(), 2**63 - 1, -5]
    assert found['label'][order].tolist() == [*columns['label'].tolist(), '007', '1e3']
    assert found['weight'][order].tolist() == [*columns['weight'].tolist(), 0.1, -0.001]
    assert found['open'][order].tolist() == [*columns['open'].tolist(), True, False]
    for pair, n in (
        ('label=7', 3),
        ('label=true', 3),
        ('label=', 3),
        ('label=1.1', 0),
        ("label=it's", 3),
        ('label=007', 1),
        (f'year={2**62 + 3}', 1),
        ('weight=0.250', 1),
        ('open=true', 13),
        ('label=a=b', 0),
    ):
        assert (index.search(some_codes(1), 30, index.read_where([pair]))[0] >= 0).sum() == n, pair
    assert index.read_where(['year=1', 'year=2', 'label=7']) == {'year': [1, 2], 'label': ['7']}
    for wrong, said in (
        ('year=abc', "column 'year' holds whole numbers, and 'abc'"),
        ('year', 'no condition'),
        ('colour=red', 'no column colour'),
        ('open=1', 'booleans'),
        ('weight=nan', 'numbers'),
        ('id=3', 'no column id'),
    ):
        with pytest.raises(ValueError, match=said):
            index.read_where([wrong])
    for name, value in (('year', 'x'), ('weight', ''), ('open', 'yes')):
        with pytest.raises(ValueError, match=f"column '{name}' .*{value!r}"):
            index.read_columns({name: [value]})


@pytest.mark.parametrize('kind', ('flat', 'lance'))
def test_conditions_of_another_type_are_refused(tmp_path, kind):
    "They could only find nothing. Alike for FAISS and LanceDB."
    index = built(kind, some_codes(24), columns_of(24), tmp_path)
    asked = some_codes(1)
    for where, n in (
        ({'year': [2**62, float(2**62)]}, 1),
        ({'weight': 1}, 1),
        ({'open': np.bool_(True)}, 12),
        ({'label': np.array(['7', 'x'])}, 3),
        ({'label': []}, 0),
        ({'label': {'7'}, 'open': False}, 0),
        ({}, 24),
        (None, 24),
        ({'label': "' OR 1=1 --"}, 0),
    ):
        assert (index.search(asked, 30, where)[0] >= 0).sum() == n, where
    for where in (
        {'label': 7},
        {'label': True},
        {'label': None},
        {'year': '7'},
        {'year': 7.5},
        {'year': True},
        {'year': 2**63},
        {'weight': '1'},
        {'weight': np.nan},
        {'open': 1},
        {'open': 'true'},
        {'label': 'a\0'},
        {'label': ['7', 7]},
        {'year': [[1]]},
        {3: 1},
        ['label'],
        7,
    ):
        with pytest.raises(ValueError) as said:
            index.search(asked, 5, where)
        assert '\n' not in str(said.value)


@pytest.mark.parametrize('kind', ('flat', 'lance'))
def test_ids_that_are_numbers(tmp_path, kind):
    codes = Codes(some_codes(18).packed, 32, None, np.arange(18, dtype=np.uint8))
    index = built(kind, codes, folder=tmp_path)
    index.delete(index.read_ids(['3', '3', '4']))
    assert len(index) == 16 and 3 not in index.ids and index.ids.dtype == np.int64
    for ids in (['5'], [5.0], [True], ['x'], [[5]], None, '5', 'abc'):
        with pytest.raises(ValueError):
            index.delete(ids)
    for wrong in (None, 3, [3]):
        with pytest.raises(ValueError, match='give texts'):
            index.read_ids(wrong)
    assert index.read_ids('12').tolist() == [12]
    for text in ('x', '05', '5.0', ''):
        with pytest.raises(ValueError, match='id holds whole numbers'):
            index.read_ids([text])
    with pytest.raises(ValueError, match='3 is not in the index'):
        index.delete([5, 3])
    with pytest.raises(ValueError, match='id holds text; in the index it holds whole numbers'):
        index.add(some_codes(1))
    assert len(index) == 16


def test_ids_that_an_index_gives_cannot_be_written(tmp_path):
    "Or what is written would be in the index."
    index = built('flat', some_codes(3), folder=tmp_path)
    index.add(replace(some_codes(2), ids=np.array(['new', 'newer'])))
    with pytest.raises(ValueError, match='read-only'):
        index.ids[0] = 'other'


# ---- changes


def test_what_is_known_of_rows_is_kept_up():
    "After any changes an index answers as one built of what is left; what fails changes nothing."
    rng, left = np.random.default_rng(0), {}
    everything, columns = some_codes(300), columns_of(300)
    index = CodeIndex.build(everything[:50], 'flat', {name: v[:50] for name, v in columns.items()})
    left = dict.fromkeys(range(50))
    for _ in range(60):
        there = list(left)
        if rng.random() < 0.5 and len(there) > 5:
            out = rng.choice(there, 5, replace=False)
            index.delete(everything.ids[out])
            for row in out:
                del left[int(row)]
        else:
            new = [int(row) for row in rng.choice(300, 8, replace=False) if row not in left]
            index.add(everything[np.array(new, int)], {name: v[new] for name, v in columns.items()})
            left |= dict.fromkeys(new)
        before = len(index)
        for wrong in (
            {},
            {**columns_of(1), 'label': [1]},
            {**columns_of(1), 'year': ['x']},
            {**columns_of(1), 'weight': [np.inf]},
        ):
            with pytest.raises(ValueError):
                index.add(some_codes(1, first=900), wrong)
        with pytest.raises(ValueError, match='in the index already'):
            index.add(everything[list(left)[:1]], columns_of(1))
        with pytest.raises(ValueError, match='not in the index'):
            index.delete([everything.ids[list(left)[0]], 'x'])
        assert len(index) == before == len(left) == len(
            index.ids
        ) and index.structure.ntotal == len(index.rows.codes)
    rows = list(left)
    assert index.ids.tolist() == everything.ids[rows].tolist()
    assert (index.codes_of(index.ids).packed == everything.packed[rows]).all()
    assert index.details(index.ids)['year'].tolist() == columns['year'][rows].tolist()
    fresh = CodeIndex.build(
        everything[rows], 'flat', {name: v[rows] for name, v in columns.items()}
    )
    assert all(
        (a == b).all()
        for a, b in zip(index.search(everything, 300), fresh.search(everything, 300), strict=True)
    )
    assert index.rows.place == {
        i: row for row, i in enumerate(index.rows.codes.ids.tolist()) if not index.rows.gone[row]
    }


@pytest.mark.parametrize('kind', ('flat', 'lance'))
def test_changes_at_once_are_all_kept(tmp_path, kind):
    "One after the other; and of two that add the same images, one is told."
    path = tmp_path / 'x.lance'
    made = CodeIndex.build(some_codes(20), kind, **({'path': path} if kind == 'lance' else {}))
    made.save(path)
    told = []

    def write(first):
        for n in range(3):
            with changing(path) as index:
                index.add(some_codes(10, first=first + 10 * n))
            try:
                with changing(path) as index:
                    index.add(some_codes(5, first=9000))
            except ValueError as e:
                told.append(str(e))

    writers = [threading.Thread(target=write, args=[first]) for first in (1000, 2000, 3000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    index = CodeIndex.load(path)
    assert len(index) == 20 + 90 + 5 == len(set(index.ids.tolist())) and len(told) == 8
    with pytest.raises(ZeroDivisionError), changing(path) as index:
        index.delete(['0.jpg'] if kind == 'flat' else [])
        raise ZeroDivisionError
    assert len(CodeIndex.load(path)) == 115
    with pytest.raises(FileNotFoundError), changing(tmp_path / 'nowhere' / 'x.index'):
        pass
    assert not (tmp_path / 'nowhere').exists()


@pytest.mark.parametrize('kind', ['hnsw', 'ivf'])
def test_searches_and_changes_take_turns(kind):
    bits = np.random.default_rng(0).integers(0, 2, (3000, 32))
    codes = Codes.from_bits(bits, ids=np.arange(3000))
    index, stopped, faults = CodeIndex.build(codes[:1000], kind), threading.Event(), []

    def search():
        while not stopped.is_set():
            try:
                index.search(codes[:4], 5)
                index.details(np.arange(4))
            except Exception as e:
                faults.append(e)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for start in range(1000, 3000, 10):
        index.add(codes[start : start + 10])
    index.delete(np.arange(2990, 3000))
    stopped.set()
    for thread in threads:
        thread.join()
    assert not faults and len(index) == 2990
    assert index.search(codes[:2990], 1)[0].max() == 0  # each finds its own code


def test_an_index_that_is_being_changed(tmp_path):
    "Others are told, after as many seconds as they want to wait."
    CodeIndex.build(some_codes(20)).save(tmp_path / 'x.index')
    (tmp_path / 'link').symlink_to('x.index')
    with changing(tmp_path / 'x.index') as index:
        with (
            pytest.raises(OSError, match='being written by another'),
            changing(tmp_path / 'link', timeout=0),
        ):
            pass
        index.delete(['0.jpg'])
    with changing(tmp_path / 'link') as index:
        index.delete(['1.jpg'])
    assert len(CodeIndex.load(tmp_path / 'x.index')) == 18 and (tmp_path / 'link').is_symlink()


def test_an_old_version_is_not_changed(tmp_path):
    index = built('lance', some_codes(5), folder=tmp_path)
    index.add(some_codes(5, first=5))
    old = CodeIndex.load(index.path, version=1)
    assert len(old) == 5
    for change in (lambda: old.add(some_codes(1, first=99)), lambda: old.delete(['0.jpg'])):
        with pytest.raises(ValueError, match='opened at version 1'):
            change()
    for version in (99, -1, 'x', True):
        with pytest.raises(ValueError):
            CodeIndex.load(index.path, version=version)


# ---- files that are not believed


def write_parts(path, parts, header):
    if header is not ...:
        parts['header'] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with open(path, 'wb') as file:
        np.savez(file, **parts)


HEADERS = {
    'kind': ['tree', 'lance', None, ['flat']],
    'bits': ['x', True, -1, 31, 24, 10**12, 32.0],
    'options': [[], None, {'lists': 2}, {'root': '/'}],
    'format': [2, '1', True],
    'revision': [None, ''],
    'model': [3],
    'root': [[]],
}
DAMAGES = {
    'packed': lambda a: (a[:-1], a.astype(int), a[:, :3], a.reshape(-1), np.uint8(3)),
    'ids': lambda a: (
        a[:5],
        a.reshape(-1, 1),
        np.arange(len(a)) * 1.5,
        a.astype('S'),
        np.zeros(len(a), bool),
        np.full(len(a), 2**64 - 1, np.uint64),
        np.frombuffer(np.full((len(a), 5), 2**31 - 1, np.uint32).tobytes(), 'U5'),
    ),
    'gone': lambda a: (a[:5], a.astype(int), np.bool_(False)),
    'column:label': lambda a: (a[:5], np.zeros(len(a), complex), np.zeros((len(a), 2))),
    'column:id': lambda a: (np.zeros(40),),
    'header': lambda a: (a[:10], a.astype(float), np.uint8(3)),
}


def test_damaged_files(tmp_path):
    "Whatever is wrong with a file: one line that says so."
    good, path = tmp_path / 'good', tmp_path / 'bad'
    CodeIndex.build(some_codes(40), 'flat', {'label': ['a', 'b'] * 20}).save(good)
    parts = dict(np.load(good))
    header = json.loads(parts['header'].tobytes())
    wrong = [(parts, h) for h in ([1], None, 'x', {})]
    wrong += [
        (parts, header | {name: value}) for name, values in HEADERS.items() for value in values
    ]
    wrong += [(parts, {k: v for k, v in header.items() if k != name}) for name in header]
    wrong += [
        (parts | {name: value}, ...)
        for name, damage in DAMAGES.items()
        for value in damage(parts.get(name))
    ]
    wrong += [
        ({k: v for k, v in parts.items() if k != name}, ...)
        for name in ('packed', 'ids', 'gone', 'header')
    ]
    for damaged in wrong:
        write_parts(path, dict(damaged[0]), damaged[1])
        with pytest.raises(ValueError, match='damaged, or is no index|has format') as said:
            CodeIndex.load(path)
        assert '\n' not in str(said.value) and str(said.value).startswith(str(path))
    write_parts(
        path,
        parts | {'column:old': np.arange(40, dtype=np.uint8), 'ids': np.arange(40, dtype='>i4')},
        header,
    )
    assert CodeIndex.load(path).types == {
        'id': 'int64',
        'label': 'text',
        'old': 'int64',
    }  # right, if not as written today


@pytest.mark.parametrize('kind', ('hnsw', 'ivf'))
def test_structures_that_are_not_believed(tmp_path, kind):
    "FAISS's bytes, of other codes or with any byte changed: refused, or searched without harm."
    path, codes = tmp_path / 'x.index', some_codes(60)
    CodeIndex.build(codes, kind).save(path)
    parts = dict(np.load(path))
    other = CodeIndex.build(codes, {'hnsw': 'ivf', 'ivf': 'hnsw'}[kind])
    backwards = Codes(codes.packed[::-1], 32, None, codes.ids)
    strange = [
        serialize_index_binary(i.structure)
        for i in (other, CodeIndex.build(codes[:30], kind), CodeIndex.build(backwards, kind))
    ]
    strange += [parts['structure'][:n] for n in (0, 50, -1)] + [parts['structure'].astype(int)]
    for structure in strange:
        write_parts(path, parts | {'structure': structure}, ...)
        with pytest.raises(ValueError, match='damaged, or is no index'):
            CodeIndex.load(path)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(150):
        structure = parts['structure'].copy()
        structure[rng.integers(len(structure))] = rng.integers(256)
        write_parts(path, parts | {'structure': structure}, ...)
        try:
            index = CodeIndex.load(path)
            index.add(some_codes(3, first=100))
            assert index.search(codes, 5)[1].shape == (60, 5)
        except ValueError as e:
            assert 'damaged, or is no index' in str(e)
            refused += 1
    assert refused > 50


def torn(name, position, value):
    "Changes one number of an array of FAISS."

    def tear(structure):
        array = faiss.vector_to_array(getattr(structure.hnsw, name))
        array[position] = value
        faiss.copy_array_to_vector(array, getattr(structure.hnsw, name))

    return tear


def set_of(name, value):
    "Sets a number of a graph."
    return lambda structure: setattr(structure.hnsw, name, value)


def probabilities(number):
    "Gives a graph so many probabilities of levels. New codes would get a level that is not there."
    table = np.zeros(number)
    return lambda structure: faiss.copy_array_to_vector(table, structure.hnsw.assign_probas)


def between_levels(structure):
    "Lets a link of an upper level lead to a code that is not there."
    graph = structure.hnsw
    levels, offsets = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.offsets)
    upper = int(np.flatnonzero(levels > 1)[0])
    position = int(offsets[upper]) + faiss.vector_to_array(graph.cum_nneighbor_per_level)[1]
    torn('neighbors', position, int(np.flatnonzero(levels == 1)[0]))(structure)


TEARS = {
    'link beyond': torn('neighbors', 0, 300),
    'link below': torn('neighbors', 0, -2),
    'offset': torn('offsets', 5, 0),
    'first offset': torn('offsets', 0, 3),
    'last offset': torn('offsets', -1, 10**6),
    'no level': torn('levels', 3, 0),
    'high level': torn('levels', 3, 50),
    'fewer links of a level': torn('cum_nneighbor_per_level', 1, 0),
    'links before the first': torn('cum_nneighbor_per_level', 0, -5),
    'links of a level without end': torn('cum_nneighbor_per_level', 2, 5000),
    'entry beyond': set_of('entry_point', 300),
    'no entry': set_of('entry_point', -1),
    'too many levels': set_of('max_level', 40),
    'no levels': set_of('max_level', -1),
    'no probabilities': probabilities(0),
    'too many probabilities': probabilities(100),
    'links between levels': between_levels,
}


@pytest.mark.parametrize('tear', TEARS.values(), ids=TEARS)
def test_graphs_that_are_torn(tmp_path, tear):
    "By FAISS or by us: a graph that would lead a search or an addition astray is refused."
    index = CodeIndex.build(some_codes(300), 'hnsw', links=4)
    tear(index.structure)
    index.save(tmp_path / 'x.index')
    with pytest.raises(ValueError, match='damaged, or is no index'):
        CodeIndex.load(tmp_path / 'x.index')


def test_a_code_in_two_places(tmp_path):
    "It would be found twice: refused, also where both are in the same list."
    for other in (False, True):
        index = CodeIndex.build(some_codes(60), 'ivf')
        lists = index.structure.invlists
        first, second, *_ = filter(lists.list_size, range(lists.nlist))
        row = int(faiss.rev_swig_ptr(lists.get_ids(first), 1)[0])
        code = faiss.swig_ptr(index.rows.codes.packed[row])
        lists.add_entry(second if other else first, row, code)
        index.save(tmp_path / f'{other}.index')
        with pytest.raises(ValueError, match='does not hold each code once'):
            CodeIndex.load(tmp_path / f'{other}.index')


@pytest.mark.parametrize(
    ('member', 'shape', 'descr'),
    [
        ('ids', (40,), '<U100000000'),
        ('ids', (10**12,), '<i8'),
        ('ids', (10**18,), '<U0'),
        ('packed', (10**12, 4), '|u1'),
        ('packed', (10**15, 0), '|u1'),
        ('gone', (-1, -40), '|b1'),
        ('ids', (40,), '|O'),
    ],
)
def test_files_that_would_fill_the_memory(tmp_path, member, shape, descr):
    "A part that says it is larger than it is. Nothing is allocated for it."
    CodeIndex.build(some_codes(40)).save(tmp_path / 'good')
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        start, {'descr': descr, 'fortran_order': False, 'shape': shape}
    )
    with zipfile.ZipFile(tmp_path / 'good') as good, zipfile.ZipFile(tmp_path / 'bad', 'w') as bad:
        for name in good.namelist():
            bad.writestr(
                name, start.getvalue() + bytes(40) if name == f'{member}.npy' else good.read(name)
            )
    with pytest.raises(ValueError, match='damaged, or is no index'):
        CodeIndex.load(tmp_path / 'bad')


def test_compressed_files_are_refused(tmp_path):
    "They may be a thousand times as large in memory."
    CodeIndex.build(Codes(np.zeros((10_000, 4), np.uint8), 32, None, np.arange(10_000))).save(
        tmp_path / 'good'
    )
    with open(tmp_path / 'bad', 'wb') as file:
        np.savez_compressed(file, **np.load(tmp_path / 'good'))
    with pytest.raises(ValueError, match='larger than the file'):
        CodeIndex.load(tmp_path / 'bad')


def test_what_is_there_decides_on_the_kind(tmp_path):
    "Not the name: a file called .lance is a file, and a folder of something else is named as such."
    CodeIndex.build(some_codes(5)).save(tmp_path / 'x.lance')
    assert CodeIndex.load(tmp_path / 'x.lance').kind == 'flat'
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'empty.lance').mkdir()
    (tmp_path / 'text.lance').write_text('a letter')
    np.save(tmp_path / 'x.npy', np.zeros(3))
    os.mkfifo(tmp_path / 'pipe')
    for name, said in (
        ('folder', 'is a folder and no index'),
        ('empty.lance', 'is there, and no whole index; remove it'),
        ('text.lance', 'damaged, or is no index'),
        ('x.npy', 'damaged, or is no index'),
        ('pipe', 'is no file'),
    ):
        with pytest.raises(ValueError, match=said) as raised:
            CodeIndex.load(tmp_path / name)
        assert '\n' not in str(raised.value)
    for name in ('nowhere.lance', 'nowhere', 'x.npy/x'):
        with pytest.raises(FileNotFoundError, match='no index at'):
            CodeIndex.load(tmp_path / name)
    for path in (None, 3, '', 'a\0b'):
        with pytest.raises(ValueError, match='no path'):
            CodeIndex.load(path)
    with pytest.raises(OSError, match='it is a folder'):
        CodeIndex.build(some_codes(5)).save(tmp_path / 'folder')


def test_errors_of_lancedb_are_a_line(tmp_path):
    index = built('lance', some_codes(5), {'year': np.arange(5)}, tmp_path)
    for where in ('foo = 3', 'year =', "year = 'x'"):
        with pytest.raises(ValueError, match='LanceDB says') as said:
            index.search(some_codes(1), 3, where)
        assert (
            '\n' not in str(said.value)
            and '.rs' not in str(said.value)
            and 'cargo' not in str(said.value)
        )
    shutil.rmtree(index.path)
    for call in (
        lambda: index.search(some_codes(1)),
        lambda: index.add(some_codes(1, first=9), {'year': [1]}),
    ):
        with pytest.raises(OSError, match='LanceDB says') as said:
            call()
        assert '\n' not in str(said.value) and '.rs' not in str(said.value)
    for path in ('photos', 'my photos.lance', '.lance', 'ü.lance', ''):
        with pytest.raises(ValueError, match='lance'):
            CodeIndex.build(some_codes(5), 'lance', path=path)
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='cannot be made'):
        CodeIndex.build(some_codes(5), 'lance', path=tmp_path / 'file' / 'x.lance')


def test_a_lance_index_that_could_not_be_made_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / 'x.lance'

    def full(self, name, table, **more):
        Path(self.uri, 'x.lance/data').mkdir(parents=True)
        raise RuntimeError('File too large (os error 27)')

    with monkeypatch.context() as patch:
        patch.setattr('lancedb.db.LanceDBConnection.create_table', full)
        with pytest.raises(OSError, match=f'^{path} cannot be opened .*File too large'):
            CodeIndex.build(codes(10), 'lance', path=path)
    assert [name for name in os.listdir(tmp_path) if not name.endswith('.lock')] == []
    (path / 'data').mkdir(parents=True)  # of somebody, or of an earlier version that was killed
    torn = 'x.lance is there, and no whole index; remove it'
    with pytest.raises(FileExistsError, match=torn):
        CodeIndex.build(codes(10), 'lance', path=path)
    with pytest.raises(ValueError, match=torn):
        CodeIndex.load(path)


def test_a_lance_index_is_where_the_system_says(tmp_path, monkeypatch):
    "Not where the text of its path would lead: .. behind a link is the parent of its target."
    monkeypatch.chdir(tmp_path)
    Path('other/real').mkdir(parents=True)
    Path('link').symlink_to('other/real')
    CodeIndex.build(codes(7), 'lance', path='z.lance')
    made = CodeIndex.build(codes(3, 100), 'lance', path='link/../z.lance')
    assert len(made) == 3 and made.search(codes(1, 100), 1)[1].tolist() == [['100.jpg']]
    assert len(CodeIndex.load('link/../z.lance')) == len(CodeIndex.load('other/z.lance')) == 3
    assert len(CodeIndex.load('z.lance')) == 7


def test_a_lance_index_is_there_with_its_lists_or_not_at_all(tmp_path):
    program = """
import lancedb.table
make = lancedb.table.LanceTable.create_index
def slow(self, *given, **more):
    print('lists', flush=True)
    if sys.argv[2] == 'stop': time.sleep(9999)
    return make(self, *given, **more)
lancedb.table.LanceTable.create_index = slow
CodeIndex.build(codes(2000), 'lance', path=sys.argv[1], lists=8)
"""
    path = tmp_path / 'x.lance'
    for end in (signal.SIGKILL, signal.SIGINT):
        writer = Python(PARTS + 'import time' + program, path, 'stop')
        assert writer.stdout.readline().strip() == 'lists'
        writer.send_signal(end)
        writer.end()
        assert not path.exists()
    code, said = python(PARTS + program, path, 'go')
    assert code == 0, said
    assert [name for name in os.listdir(tmp_path) if not name.endswith('.lock')] == ['x.lance']
    index = CodeIndex.load(path)
    assert len(index) == 2000 and len(index.table.lance.list_indices()) == 1


@pytest.mark.parametrize('kind', OPTIONS)
def test_an_index_never_holds_codes_of_two_models(tmp_path, kind):
    "What it was built of decides, for every kind; codes without a model are on your own word."
    place = {'path': tmp_path / 'x.lance'} if kind == 'lance' else {}
    of_model = {
        name: replace(codes(5, n), model=name) for n, name in ((900, 'aaaa'), (950, 'bbbb'))
    }
    unnamed = CodeIndex.build(replace(codes(50), model=''), kind, **place)
    path = place.get('path', tmp_path / 'x.index')
    unnamed.save(path)
    for index in (unnamed, CodeIndex.load(path)):
        for name, new in of_model.items():
            with pytest.raises(ValueError, match=f'are of model {name}, and those of the index'):
                index.add(new)
            assert index.search(new, 1)[1].shape == (5, 1)
        assert index.model == '' and len(index) == 50
        assert index.codes_of(index.ids).model == ''
    new = replace(codes(5, 900), model='')
    unnamed.add(new)
    shutil.rmtree(path, ignore_errors=True)
    named = CodeIndex.build(codes(50), kind, **place)
    named.add(new)
    with pytest.raises(ValueError, match='of model bbbb cannot be compared'):
        named.add(of_model['bbbb'])
    assert named.model == 'aaaa' and len(named) == 55


@pytest.mark.parametrize(
    'images, said', [(125, '1 kB'), (124_999, '1 MB'), (125_000, '1 MB'), (60_000, '480 kB')]
)
def test_sizes_on_the_page_have_no_exponent(images, said):
    class Index:
        bits, kind, model = 64, 'flat', ''

        def __len__(self):
            return images

    assert f', {said} of codes ' in described(Index())
