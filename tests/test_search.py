"""Indexes under faults: killed while saving, two writers at once, an object store that answers and one that does not."""
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dcwh.codes import Codes
from dcwh.search import CodeIndex

PARTS = '''
import sys
import numpy as np
from dcwh.codes import Codes
from dcwh.search import CodeIndex
def codes(n, first=0, seed=0): return Codes.from_outputs(np.random.default_rng([seed, first]).standard_normal((n, 64)), ids=np.array([f'{i}.jpg' for i in range(first, first + n)]), model='aaaa')
'''
exec(PARTS)


def python(program, *args, **options):
    return subprocess.Popen([sys.executable, '-c', PARTS + program, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


@pytest.mark.parametrize('kind', ('flat', 'ivf'))
def test_killed_while_saving(tmp_path, kind):
    "Whenever the kill comes, the file is that of before or that of after."
    path = tmp_path / 'photos.index'
    CodeIndex.build(codes(50_000), kind, **({'lists': 20} if kind == 'ivf' else {})).save(path)
    program = '''
index = CodeIndex.load(sys.argv[1])
index.add(codes(200_000, 50_000))
print('saving', flush=True)
while True: index.save(sys.argv[1])
'''
    sizes, torn = set(), 0
    for delay in np.linspace(.001, .2, 5):
        writer = python(program, path)
        assert writer.stdout.readline().strip() == 'saving'
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        sizes.add(len(index := CodeIndex.load(path)))
        assert index.search(codes(1), 1)[1].tolist() == [['0.jpg']]
        torn += len([f for f in tmp_path.iterdir() if f.name.startswith('.photos.index.') and f.suffix != '.lock'])
        if len(index) > 50_000:   # the next one starts from the smaller state again
            path.unlink()
            CodeIndex.build(codes(50_000), kind, **({'lists': 20} if kind == 'ivf' else {})).save(path)
    assert sizes <= {50_000, 250_000} and torn, 'no kill hit a write; the test shows nothing'


def test_two_writers(tmp_path):
    "Of two that extend the same state at the same moment, one saves and the other is told; nothing of the first is lost."
    path = tmp_path / 'photos.index'
    CodeIndex.build(codes(1000)).save(path)
    program = '''
index = CodeIndex.load(sys.argv[1])
index.add(codes(1000, int(sys.argv[2])))
print('ready', flush=True)
sys.stdin.readline()
try: index.save(sys.argv[1])
except OSError as e: print('refused', e)
else: print('saved')
'''
    writers = [python(program, path, first, stdin=subprocess.PIPE) for first in (1000, 2000)]
    for writer in writers: assert writer.stdout.readline().strip() == 'ready'
    for writer in writers:
        writer.stdin.write('\n')
        writer.stdin.flush()
    said = [writer.communicate()[0] for writer in writers]
    assert sorted(s.split()[0] for s in said) == ['refused', 'saved'], said
    winner = next(first for first, s in zip((1000, 2000), said) if s.startswith('saved'))
    index = CodeIndex.load(path)
    assert len(index) == 2000 and len(index.codes_of([f'{winner}.jpg', f'{winner + 999}.jpg'])) == 2


def test_two_writers_of_a_table(tmp_path):
    "LanceDB keeps what both have added."
    path = tmp_path / 'photos.lance'
    CodeIndex.build(codes(1000), 'lance', path=path)
    program = '''
index = CodeIndex.load(sys.argv[1])
for n in range(5): index.add(codes(10, int(sys.argv[2]) + 10 * n))
'''
    writers = [python(program, path, first) for first in (1000, 2000)]
    said = [writer.communicate()[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], said
    assert len(CodeIndex.load(path)) == 1100


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError): CodeIndex.build(codes(10)).save(tmp_path / 'file' / 'photos.index')


def test_an_object_store_that_does_not_answer():
    began = time.time()
    with pytest.raises(OSError, match='cannot be opened'):
        CodeIndex.load('s3://photos/index.lance', storage_options={'endpoint': 'http://127.0.0.1:9', 'allow_http': 'true', 'region': 'us-east-1', 'access_key_id': 'a', 'secret_access_key': 'b'})
    assert time.time() - began < 60   # and not for the ever of a default


@pytest.fixture
def bucket():
    "An S3-compatible server on this machine, with an empty bucket."
    import boto3
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer('127.0.0.1', 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {'aws_access_key_id': 'a', 'aws_secret_access_key': 'b', 'region_name': 'us-east-1'}
    boto3.client('s3', endpoint_url=f'http://{host}:{port}', **keys).create_bucket(Bucket='photos')
    yield {'endpoint': f'http://{host}:{port}', 'allow_http': 'true', 'region': 'us-east-1', 'access_key_id': 'a', 'secret_access_key': 'b'}, server
    server.stop()


@pytest.mark.whole
def test_an_object_store(bucket):
    "Built, extended, filtered, deleted from and opened again, by another process too; and when the server goes, an error says so."
    options, server = bucket
    where, label = 's3://photos/all/index.lance', np.array(['cat', 'dog'] * 500)
    index = CodeIndex.build(codes(1000), 'lance', {'label': label}, path=where, storage_options=options)
    index.add(codes(1000, 1000), {'label': label})
    exact = CodeIndex.build(codes(1000), 'flat', {'label': label})
    exact.add(codes(1000, 1000), {'label': label})
    for filters in (None, {'label': 'dog'}): assert (index.search(codes(20, 0), 5, filters)[0] == exact.search(codes(20, 0), 5, filters)[0]).all()
    program = f'''
index = CodeIndex.load('{where}', storage_options={options!r})
index.delete(['0.jpg'])
print(len(index), index.search(codes(1), 1)[1].tolist() != [['0.jpg']])
'''
    said, _ = python(program).communicate(timeout=120)
    assert said.split() == ['1999', 'True'], said
    again = CodeIndex.load(where, storage_options=options)
    assert (len(again), again.bits, again.model) == (1999, 64, 'aaaa')
    assert '0.jpg' in CodeIndex.load(where, version=index.table.version, storage_options=options).search(codes(1), 1)[1]
    shell = subprocess.run([Path(sys.executable).with_name('dcwh'), 'index', 'show', where], capture_output=True, text=True, env=os.environ | {f'AWS_{name.upper()}': value for name, value in options.items()})
    assert shell.returncode == 0 and 'images            1999' in shell.stdout, shell   # what the environment says is enough
    with pytest.raises(FileNotFoundError, match='no index at'): CodeIndex.load('s3://photos/all/other.lance', storage_options=options)
    with pytest.raises(FileExistsError, match='is there already'): CodeIndex.build(codes(10), 'lance', path=where, storage_options=options)
    server.stop()
    with pytest.raises(OSError, match='cannot be opened'): CodeIndex.load(where, storage_options=options)
    server.start()
