"""Codes in parts: on Ray, with workers and drivers that are killed, from and to an object store."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcwh.codes import read_codes
from dcwh.encoding import encode_dataset
from dcwh.model import HashModel
from dcwh.search import CodeIndex
from dcwh.sources import digits

DCWH = Path(sys.executable).with_name('dcwh')
IMAGES = 600
STARTED: list[subprocess.Popen] = []
KEYS = {'region': 'us-east-1', 'access_key_id': 'a', 'secret_access_key': 'b'}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A model, a folder of drawings with two broken ones, and their codes by one process."
    home, drawn = tmp_path_factory.mktemp('home'), digits()
    for i in range(IMAGES):
        place = home / 'photos' / str(drawn.labels[i])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.images[i]).save(place / f'{i:03}.png')
    for name in ('0/broken.png', '9/999.jpg'):
        (home / 'photos' / name).write_bytes(b'no image')
    torch.manual_seed(0)
    HashModel('small', 16, 'none', image_size=8).save_pretrained(home / 'model')
    done = encode(home, '--out', home / 'one.npz')
    assert done.wait() == 1 and 'left_out          2' in done.stdout.read()
    return home


def encode(home, *words, source='photos', env=None):
    "`dcwh encode` at work."
    source = source if '://' in str(source) else home / source
    command = [DCWH, 'encode', home / 'model', source, '--batch-size', '4', *words]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {'RAY_worker_niceness': '0'} | (env or {}),
    )
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_left():
    "Processes of a test that fails end with it."
    yield
    for process in STARTED:
        process.kill()
        process.communicate()
    STARTED.clear()


def check_codes(index, home):
    "Every image once, with the code that one process gives it, and its label."
    one = read_codes(home / 'one.npz')
    assert len(index) == IMAGES and set(index.ids) == set(one.ids.tolist())
    assert (index.codes_of(one.ids.tolist()).packed == one.packed).all()
    labels = index.details(one.ids.tolist())['label']
    assert labels.tolist() == [name.partition('/')[0] for name in one.ids]
    assert (index.bits, index.model) == (one.bits, one.model)


def below(pid):
    "Processes that a process has started, and those that they have."
    parents = {}
    for place in Path('/proc').glob('[0-9]*'):
        try:
            parents[int(place.name)] = int(
                (place / 'stat').read_text().rpartition(')')[2].split()[1]
            )
        except OSError:
            continue  # it has ended
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def named(pids, name):
    "Those whose command line holds a name."
    found = []
    for pid in pids:
        try:
            said = Path(f'/proc/{pid}/cmdline').read_text()
        except OSError:
            continue
        found += [pid] * (name in said)
    return found


def wait_for(condition, process):
    "Wait until something is so, while a process runs."
    while not condition():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)


def listening(pids):
    "Addresses on which processes listen, as /proc writes them."
    sockets = set()
    for pid in pids:
        for link in Path(f'/proc/{pid}/fd').glob('*'):
            try:
                match = re.fullmatch(r'socket:\[(\d+)\]', os.readlink(link))
            except OSError:
                continue
            sockets |= {match[1]} if match else set()
    tables = [Path(f'/proc/net/{kind}').read_text() for kind in ('tcp', 'tcp6')]
    rows = [line.split() for table in tables for line in table.splitlines()]
    return {row[1].partition(':')[0] for row in rows if row[3] == '0A' and row[9] in sockets}


@pytest.mark.whole
def test_killed_workers_and_a_killed_driver_lose_nothing(home, tmp_path):
    to = tmp_path / 'codes.lance'
    words = '--out', to, '--engine', 'ray', '--actors', '2', '--part', '8'
    driver = encode(home, *words)

    def images():
        return len(CodeIndex.load(to)) if (to / '_versions').is_dir() else 0

    wait_for(lambda: images() > 0, driver)
    started = below(driver.pid)
    workers = named(started, 'MapWorker')
    assert len(workers) == 2, workers
    addresses = listening([driver.pid, *started])
    assert addresses <= {'0100007F', '0000000000000000FFFF00000100007F'}, addresses  # 127.0.0.1
    assert all(
        'RAY_USAGE_STATS_ENABLED=0' in Path(f'/proc/{p}/environ').read_text() for p in workers
    )
    os.kill(workers[0], signal.SIGKILL)
    before = images()
    wait_for(lambda: images() > before + 40, driver)
    driver.kill()
    driver.wait()
    while named(started, 'MapWorker'):
        time.sleep(0.1)  # Ray ends them
    there = CodeIndex.load(to)
    found, versions = len(there), len(there.versions())
    assert 0 < found < IMAGES and len(set(there.ids)) == found
    driver = encode(home, *words)
    said = driver.stdout.read()
    assert driver.wait() == 1, said  # as images are broken
    parts, before = map(int, re.search(r'parts +(\d+), of which (\d+) were there', said).groups())
    index = CodeIndex.load(to)
    check_codes(index, home)
    assert (
        8 * (before - 2) <= found <= 8 * before
        and len(index.versions()) == versions + parts - before
    )
    assert said.count('left out: ') == 2 and '0/broken.png: it is no image' in said


CRASH = """
import os, sys
if any(word.endswith('default_worker.py') for word in sys.orig_argv):
    import PIL.Image
    read = PIL.Image.open
    PIL.Image.open = lambda file, **more: os.abort() if 'deadly' in str(file) else read(file, **more)
"""


@pytest.mark.whole
def test_an_image_that_ends_its_worker_ends_three_and_no_more(home, tmp_path):
    """All other parts are done. The call ends with one error that names the part; without the image
    the same call goes on. Nothing comes for longer than Ray Data would wait."""
    photos = tmp_path / 'photos'
    shutil.copytree(home / 'photos/1', photos / '1')
    names = sorted(p.name for p in (photos / '1').iterdir())
    deadly = photos / '1' / f'{names[4][:-4]}-deadly.png'  # in part 1
    shutil.copy(photos / '1' / names[4], deadly)
    (tmp_path / 'sitecustomize.py').write_text(CRASH)
    paths = tmp_path, os.environ.get('PYTHONPATH', '')
    env = {'PYTHONPATH': os.pathsep.join(filter(None, map(str, paths)))}
    env['RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S'] = '1'
    words = '--out', tmp_path / 'codes', '--engine', 'ray', '--actors', '1', '--part', '4'
    done = encode(home, *words, source=photos, env=env)
    said = done.stdout.read()
    assert done.wait() == 2 and said.count('part 1 has ended 3 workers. ') == 1, said
    assert f'1/{deadly.name} to 1/{names[6]}, may crash' in said, said
    parts = len(list((tmp_path / 'codes').iterdir()))
    call = {'engine': 'here', 'batch_size': 4, 'part': 4}
    deadly.unlink()
    made = encode_dataset(str(home / 'model'), photos, tmp_path / 'codes', **call)
    assert (made.images, made.found, made.parts) == (len(names), parts, parts + 1)
    assert made.left_out == [f'{deadly}: No such file or directory']


@pytest.fixture(scope='module')
def bucket(home):
    "An S3-compatible server on this machine: the photos in one bucket, and an empty one."
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer('127.0.0.1', 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        's3',
        endpoint_url=f'http://{host}:{port}',
        region_name='us-east-1',
        aws_access_key_id='a',
        aws_secret_access_key='b',
    )
    for name in ('photos', 'codes'):
        client.create_bucket(Bucket=name)
    for file in (home / 'photos').rglob('*.*'):
        client.upload_file(str(file), 'photos', f'in/{file.relative_to(home / "photos")}')
    yield {'endpoint': f'http://{host}:{port}', 'allow_http': 'true', **KEYS}, client
    server.stop()


@pytest.mark.whole
def test_a_cluster_encodes_a_bucket_into_a_bucket(home, bucket):
    """A cluster that runs already, told by its address. What the environment says is enough, and
    `dcwh index show` opens what was made."""
    options, _ = bucket
    env = {f'AWS_{name.upper()}': value for name, value in options.items()}
    env |= {'RAY_AUTH_MODE': 'token', 'RAY_AUTH_TOKEN': 'of-this-cluster-' * 4}
    program = (
        'import sys; from dcwh.parts import ray_cluster\n'
        'with ray_cluster("", 2) as ray:\n'
        '    print(ray.get_runtime_context().gcs_address, flush=True)\n'
        '    sys.stdin.read()'
    )
    cluster = subprocess.Popen(
        [sys.executable, '-c', program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )
    STARTED.append(cluster)
    to, address = 's3://codes/all.lance', cluster.stdout.readline().strip()
    words = '--out', to, '--engine', 'ray', '--address', address, '--part', '100'
    for found in (0, 7):
        done = encode(home, *words, source='s3://photos/in', env=env)
        said = done.stdout.read()
        assert done.wait() == 1 and said.count('left out: s3://photos/in/') == 2, said
        assert f'parts             7, of which {found} were there' in said, said
    check_codes(CodeIndex.load(to, storage_options=options), home)
    shown = subprocess.run([DCWH, 'index', 'show', to], env=os.environ | env, capture_output=True)
    assert f'images            {IMAGES}' in shown.stdout.decode()
    cluster.communicate('')  # which ends it


@pytest.mark.whole
def test_parquet_in_a_bucket_and_what_is_said_of_one_that_is_not_there(home, bucket):
    import pyarrow.dataset

    from dcwh.parts import files_at

    options, client = bucket
    call = {'engine': 'here', 'batch_size': 4, 'storage_options': options}
    made = encode_dataset(str(home / 'model'), 's3://photos/in', 's3://codes/parquet', **call)
    system, path = files_at('s3://codes/parquet', options)
    rows = pyarrow.dataset.dataset(path, filesystem=system).to_table().sort_by('id')
    one = read_codes(home / 'one.npz')
    order = np.argsort(one.ids)
    assert rows['id'].to_pylist() == one.ids[order].tolist() and made.images == IMAGES
    assert (np.array(rows['code'].to_pylist(), np.uint8) == one.packed[order]).all()

    def says(source, to, error, message, **more):
        with pytest.raises(error, match=message) as raised:
            encode_dataset(str(home / 'model'), source, to, **call | more)
        assert len(str(raised.value).splitlines()) == 1

    photos = str(home / 'photos')
    says('s3://nowhere/in', 's3://codes/new.lance', (OSError, ValueError), 's3://nowhere/in ')
    says('s3://photos/out', 's3://codes/new.lance', FileNotFoundError, 's3://photos/out holds no')
    says(photos, 's3://nowhere/new.lance', OSError, 's3://nowhere/new.plan')
    says(photos, 's3://codes/parquet', ValueError, 'was begun with source s3://photos/in')
    nobody = {'storage_options': options | {'endpoint': 'http://127.0.0.1:9'}}
    says(
        's3://photos/in', 's3://codes/new.lance', OSError, 's3://photos/in cannot be read', **nobody
    )
    client.create_bucket(Bucket='closed')
    for name in ('a.png', 'b.png'):
        client.put_object(Bucket='closed', Key=name, Body=b'')
    rule = (
        '"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::closed/*"'
    )
    client.put_bucket_policy(Bucket='closed', Policy=f'{{"Statement": [{{{rule}}}]}}')
    says(
        's3://closed', 's3://codes/new.lance', OSError, 's3://closed/a.png cannot be read .*DENIED'
    )
    says(photos, 's3://closed/new.lance', OSError, 'closed/new.plan/plan.json cannot .*DENIED')


@pytest.mark.whole
def test_keys_with_an_empty_part_are_left_out_and_named(home, bucket, tmp_path):
    "Arrow lists such keys and does not read them: one must not end the call, nor hide another."
    options, client = bucket
    image = (home / 'photos/0/000.png').read_bytes()
    for key in ('a/1.png', 'a//2.png', '/a/1.png'):
        client.put_object(Bucket='photos', Key=f'odd/{key}', Body=image)
    call = {'engine': 'here', 'storage_options': options}
    made = encode_dataset(str(home / 'model'), 's3://photos/odd', str(tmp_path / 'codes'), **call)
    assert made.images == 1 and made.left_out == [
        f's3://photos/odd/{key}: a part of its key is empty; rename it'
        for key in ('/a/1.png', 'a//2.png')
    ]


def test_ray_that_is_missing_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ImportError, match=r"pip install '\.\[ray\]'"):
        encode_dataset('nowhere', 'nowhere', tmp_path / 'new.lance')
    assert not (tmp_path / 'new.plan').exists()


def test_a_cluster_of_the_environment_that_does_not_answer(home, tmp_path, monkeypatch):
    "It is an error before images are listed, as with an address that is given."
    pytest.importorskip('ray')
    monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:9')
    with pytest.raises(OSError, match='no Ray cluster answers at 127.0.0.1:9'):
        encode_dataset(str(home / 'model'), home / 'photos', tmp_path / 'new.lance')
    assert not list(tmp_path.iterdir())
