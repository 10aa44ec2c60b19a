"""Codes in parts: on Ray, with workers and drivers that are killed, from and to an object store."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from select import select
from textwrap import indent

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from dcwh.cli import app
from dcwh.codes import read_codes
from dcwh.encoding import ENGINES, _here, encode_dataset
from dcwh.model import HashModel
from dcwh.parts import CodeParts
from dcwh.search import CodeIndex
from dcwh.sharing import export_onnx
from dcwh.sources import digits

DCWH = Path(sys.executable).with_name('dcwh')
IMAGES = 600
STARTED: list[subprocess.Popen] = []
LIMIT = 1800  # seconds of any wait: a busy machine takes minutes to start Ray
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
    said = end_of(encode(home, '--out', home / 'one.npz'), 1)
    assert 'left_out          2' in said
    return home


def encode(home, *words, source='photos', model='model', env=None):
    "`dcwh encode` at work."
    source = source if '://' in str(source) else home / source
    command = [DCWH, 'encode', home / model, source, '--batch-size', '4', *words]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {'RAY_worker_niceness': '0'} | (env or {}),
    )
    STARTED.append(process)
    return process


def end_of(process, code):
    "What a process says until it ends."
    said = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == code, said
    return said


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


def wait_for(condition, process=None):
    "Wait until something is so, while a process runs."
    end = time.monotonic() + LIMIT
    while not condition():
        assert process is None or process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.2)


def in_workers(folder, code):
    "An environment where workers of Ray begin with some code."
    lines = indent(f'import os, time\n{code}', '    ')
    worker = "any(word.endswith('default_worker.py') for word in sys.orig_argv)"
    (folder / 'sitecustomize.py').write_text(f'import sys\nif {worker}:\n{lines}')
    paths = str(folder), os.environ.get('PYTHONPATH', '')
    return {'PYTHONPATH': os.pathsep.join(filter(None, paths))}


OPENED = """
import PIL.Image
read = PIL.Image.open
PIL.Image.open = lambda file, **more: (opened(str(file)), read(file, **more))[1]
"""


def waits(folder):
    """An environment where the worker that first opens 300.png stops there, and a file that has a
    line for each that opens it: its number."""
    file = folder / 'opened'
    code = f"""
def opened(name):
    if name.endswith('300.png'):
        with open({str(file)!r}, 'a') as f: print(os.getpid(), file=f)
        time.sleep(9999 * (len(open({str(file)!r}).readlines()) == 1))
"""
    return in_workers(folder, code + OPENED), file


def stopped(file):
    return file.exists() and file.read_text().endswith('\n')


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
def test_a_killed_worker_loses_nothing(home, tmp_path):
    "Another one encodes its part, and the call goes on to its end."
    env, file = waits(tmp_path)
    to = tmp_path / 'codes.lance'
    words = '--out', to, '--engine', 'ray', '--actors', '2', '--part', '40'
    driver = encode(home, *words, env=env)
    wait_for(lambda: stopped(file), driver)
    started = below(driver.pid)
    workers, killed = named(started, 'MapWorker'), int(file.read_text())
    assert len(workers) == 2 and killed in workers, workers
    addresses = listening([driver.pid, *started])
    assert addresses <= {'0100007F', '0000000000000000FFFF00000100007F'}, addresses  # 127.0.0.1
    said = [Path(f'/proc/{pid}/environ').read_text() for pid in workers]
    assert all('RAY_USAGE_STATS_ENABLED=0' in text for text in said)
    os.kill(killed, signal.SIGKILL)
    said = end_of(driver, 1)  # as images are broken
    assert said.count('left out: ') == 2 and '0/broken.png: it is no image' in said
    check_codes(CodeIndex.load(to), home)
    first, again = map(int, file.read_text().split())
    assert first == killed and again not in workers


@pytest.mark.whole
def test_an_image_that_ends_its_worker_ends_three_and_no_more(home, tmp_path):
    """All other parts are done. The call ends with one error that names the part; without the image
    the same call goes on. Nothing comes for longer than Ray Data would wait."""
    photos = tmp_path / 'photos'
    shutil.copytree(home / 'photos/1', photos / '1')
    names = sorted(p.name for p in (photos / '1').iterdir())
    deadly = photos / '1' / f'{names[4][:-4]}-deadly.png'  # in part 1
    shutil.copy(photos / '1' / names[4], deadly)
    env = in_workers(tmp_path, "opened = lambda name: 'deadly' in name and os.abort()" + OPENED)
    env['RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S'] = '1'
    words = '--out', tmp_path / 'codes', '--engine', 'ray', '--actors', '1', '--part', '4'
    said = end_of(encode(home, *words, source=photos, env=env), 2)
    assert said.count('part 1 has ended 3 workers. ') == 1, said
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


def in_environment(options):
    return {f'AWS_{name.upper()}': value for name, value in options.items()}


@pytest.mark.whole
def test_a_killed_driver_loses_nothing(home, bucket, tmp_path):
    "The same call goes on, in a bucket, where no lock of a file keeps others out."
    options, client = bucket
    env, file = waits(tmp_path)
    env |= in_environment(options)
    to = 's3://codes/killed.lance'
    words = '--out', to, '--engine', 'ray', '--actors', '2', '--part', '40'

    def opened():
        return CodeIndex.load(to, storage_options=options)

    def begun():
        names = [o['Key'] for o in client.list_objects_v2(Bucket='codes').get('Contents', [])]
        is_there = any(name.startswith('killed.lance/data/') for name in names)
        return is_there and stopped(file) and len(opened())

    def writer():
        return client.get_object(Bucket='codes', Key='killed.lance.plan/writer')['Body'].read()

    driver = encode(home, *words, env=env)
    wait_for(begun, driver)
    started, before = below(driver.pid), writer()
    driver.kill()
    driver.wait()
    wait_for(lambda: not named(started, 'MapWorker'))  # Ray ends them
    there = opened()
    found, versions = len(there), len(there.versions())
    assert 0 < found < IMAGES and len(set(there.ids)) == found
    said = end_of(encode(home, *words, env=env), 1)
    parts, were = map(int, re.search(r'parts +(\d+), of which (\d+) were there', said).groups())
    check_codes(opened(), home)
    assert 0 < were < parts and len(opened().versions()) == versions + parts - were
    assert said.count('left out: ') == 2 and '0/broken.png: it is no image' in said
    assert writer() != before


@pytest.mark.whole
def test_a_cluster_encodes_a_bucket_into_a_bucket(home, bucket, tmp_path):
    """A cluster that runs already, told by its address. What the environment says is enough, and
    `dcwh index show` opens what was made. A model that its workers cannot read is said at once."""
    options, _ = bucket
    env = in_environment(options)
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
        env=os.environ
        | env
        | in_workers(tmp_path, "sys.modules['onnxruntime'] = None")
        | {'RAY_worker_niceness': '0'},
    )
    STARTED.append(cluster)
    assert select([cluster.stdout], [], [], LIMIT)[0]
    to, address = 's3://codes/all.lance', cluster.stdout.readline().strip()
    words = '--out', to, '--engine', 'ray', '--address', address, '--part', '100'
    for found in (0, 7):
        said = end_of(encode(home, *words, source='s3://photos/in', env=env), 1)
        assert said.count('left out: s3://photos/in/') == 2, said
        assert f'parts             7, of which {found} were there' in said, said
    check_codes(CodeIndex.load(to, storage_options=options), home)
    shown = subprocess.run([DCWH, 'index', 'show', to], env=os.environ | env, capture_output=True)
    assert f'images            {IMAGES}' in shown.stdout.decode()
    export_onnx(HashModel.from_pretrained(home / 'model'), tmp_path / 'model.onnx')
    words = '--out', tmp_path / 'codes', '--engine', 'ray', '--address', address
    said = end_of(encode(home, *words, model=tmp_path / 'model.onnx', env=env), 2)
    assert re.search(
        'machine [0-9.]+ cannot encode: ImportError: ONNX files need onnxruntime', said
    ), said
    assert not (tmp_path / 'codes').exists()
    cluster.communicate('', LIMIT)  # which ends it


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
    says(photos, 's3://nowhere/new.lance', OSError, 's3://nowhere/new.lance.plan/trial cannot be')
    says(photos, 's3://codes/parquet', ValueError, 'was begun with source s3://photos/in')
    nobody = {'storage_options': options | {'endpoint': 'http://127.0.0.1:9'}}
    here = str(home / 'new.lance')
    says('s3://photos/in', here, OSError, 's3://photos/in cannot be read', **nobody)
    says(photos, 's3://codes/new', OSError, 's3://codes/new.plan/trial cannot be', **nobody)
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
    client.put_bucket_policy(
        Bucket='closed', Policy=f'{{"Statement": [{{{rule.replace("s3:*", "s3:PutObject")}}}]}}'
    )  # which can be read and not written; that is said before the source is listed
    for to in ('s3://closed/new.lance', 's3://closed/new'):
        says('nowhere', to, OSError, f'{to}.plan/trial cannot be written .*DENIED')
    assert len(client.list_objects_v2(Bucket='closed')['Contents']) == 2


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
    assert not (tmp_path / 'new.lance.plan').exists()


def test_a_cluster_of_the_environment_that_does_not_answer(home, tmp_path, monkeypatch):
    "It is an error before images are listed, as with an address that is given."
    pytest.importorskip('ray')
    monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:9')
    with pytest.raises(OSError, match='no Ray cluster answers at 127.0.0.1:9'):
        encode_dataset(str(home / 'model'), home / 'photos', tmp_path / 'new.lance')
    assert not list(tmp_path.iterdir())


def test_two_datasets_of_one_name_have_a_plan_each(home, tmp_path):
    "Lance and Parquet beside each other: the list of one is not the list of the other."
    photos = shutil.copytree(home / 'photos', tmp_path / 'photos')
    call = partial(encode_dataset, str(home / 'model'), photos, engine='here')
    assert call(tmp_path / 'codes.lance').images == IMAGES
    shutil.copy(photos / '0/000.png', photos / '0/more.png')
    made = call(tmp_path / 'codes')
    assert (made.images, made.changes) == (IMAGES + 1, '')


@pytest.mark.parametrize('name', ['codes', 'codes.lance'])
def test_whoever_opens_an_unfinished_dataset_is_warned(home, tmp_path, monkeypatch, name):
    call = partial(encode_dataset, str(home / 'model'), home / 'photos', tmp_path / name, part=16)

    def killed(*given):
        yield next(_here(*given))
        raise KeyboardInterrupt

    monkeypatch.setitem(ENGINES, 'here', killed)
    with pytest.raises(KeyboardInterrupt):
        call(batch_size=8, engine='here')
    with pytest.warns(UserWarning, match=f'{name} is unfinished: images are missing; the same'):
        assert len(CodeParts.open(tmp_path / name)) == 16
    link = tmp_path / f'link-{name}'
    link.symlink_to(tmp_path / name)
    with pytest.warns(UserWarning, match=f'link-{name} is unfinished'):
        CodeParts.open(link)
    if name == 'codes':
        with pytest.warns(UserWarning, match='codes is unfinished'):
            CodeParts.open([tmp_path / 'codes/part-00000.parquet'])
    if name.endswith('.lance'):
        for words in (['optimize'], ['show']):
            shown = CliRunner().invoke(app, ['index', *words, str(tmp_path / name)])
            assert shown.exit_code == 0 and 'is unfinished' in shown.stderr, shown.output
        assert re.search('^columns +label$', shown.stdout, re.MULTILINE)
        told = CliRunner().invoke(app, ['index', 'show', str(tmp_path / name), '--json'])
        assert json.loads(told.stdout)['columns'] == ['label']
        image = CodeIndex.load(tmp_path / name).ids[0]
        for words in (['delete', image], ['add', str(home / 'one.npz')]):
            kept = CliRunner().invoke(app, ['index', words[0], str(tmp_path / name), words[1]])
            assert kept.exit_code == 2 and 'or says why it cannot; add and' in kept.stderr
        assert len(CodeIndex.load(tmp_path / name)) == 16
    monkeypatch.setitem(ENGINES, 'here', _here)
    assert call(batch_size=8, engine='here').images == IMAGES
    with warnings.catch_warnings(action='error'):
        assert len(CodeParts.open(tmp_path / name)) == IMAGES


def test_images_that_were_deleted_stay_deleted(home, tmp_path):
    "A part of which nothing is there any more, too; a table that is gone is made again."
    place = tmp_path / 'codes.lance'
    call = partial(encode_dataset, home / 'model', home / 'photos', place, part=16, batch_size=8)
    made, ids = call(engine='here'), CodeIndex.load(place).ids
    first, said = ids[:16], f'holds {IMAGES - 16} images of its list and should hold {IMAGES}: '
    CodeIndex.load(place).delete(first)
    for _ in range(2):
        with pytest.raises(OSError, match=f'{said}something else changed it since it was finished'):
            call(engine='here')
        assert len(CodeIndex.load(place)) == IMAGES - 16
    with warnings.catch_warnings(action='error'):
        assert len(CodeParts.open(place)) == IMAGES - 16  # which is not unfinished
    shutil.rmtree(place)
    assert call(engine='here') == made and {*CodeIndex.load(place).ids} == {*ids}


def test_an_index_at_the_place_of_a_dataset_is_no_part_of_it(home, tmp_path):
    "One of other images, where a dataset was before."
    place, codes = tmp_path / 'codes.lance', str(home / 'one.npz')
    call = partial(encode_dataset, home / 'model', home / 'photos', place, engine='here')
    call()
    shutil.rmtree(place)
    others = shutil.copytree(home / 'photos', tmp_path / 'photos')
    build = ['index', 'build', str(place), codes, '--kind', 'lance']
    refused = CliRunner().invoke(app, build)
    assert refused.exit_code == 2 and 'codes.lance.plan is the plan of an' in refused.stderr
    assert not place.exists()
    CodeIndex.build(read_codes(codes), kind='lance', root=str(others), path=str(place))
    with pytest.raises(ValueError, match=f'of images in {others}, and its plan is of those in /'):
        call()
    assert len(CodeIndex.load(place)) == IMAGES
    shutil.rmtree(f'{place}.plan')
    shutil.rmtree(place)
    assert CliRunner().invoke(app, build).exit_code == 0


def test_a_source_that_was_made_anew_is_another(home, tmp_path, monkeypatch):
    "A table of the same ids and number of versions: its images are not taken for those listed."
    place, drawn = tmp_path / 'photos.lance', sorted((home / 'photos').glob('?/[0-9]*.png'))[:8]

    def write(images):
        shutil.rmtree(place, ignore_errors=True)
        rows = pa.table({'id': [*range(8)], 'image': [image.read_bytes() for image in images]})
        lancedb.connect(tmp_path).create_table('photos', rows)

    def killed(*given):
        yield next(_here(*given))
        raise KeyboardInterrupt

    call = partial(encode_dataset, str(home / 'model'), place, batch_size=4, part=4, engine='here')
    write(drawn)
    assert call(tmp_path / 'whole').changes == call(tmp_path / 'whole').changes == ''
    monkeypatch.setitem(ENGINES, 'here', killed)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / 'half')
    monkeypatch.setitem(ENGINES, 'here', _here)
    write(drawn[::-1])
    assert call(tmp_path / 'whole').changes == 'it was written to since the list was made'
    with pytest.raises(OSError, match='photos.lance was made anew after the list was made'):
        call(tmp_path / 'half')
    assert len(CodeParts.open(tmp_path / 'whole')) == 8


def test_a_folder_in_the_place_of_a_table_that_was_moved_stays(home, tmp_path):
    "The plan still lies beside it."
    place = tmp_path / 'new.lance'
    call = partial(encode_dataset, str(home / 'model'), home / 'photos', place, engine='here')
    call()
    place.rename(tmp_path / 'moved.lance')
    for name in ('thesis.txt', 'data/thesis.txt', '_versions/1.txt', 'notes/a.lance'):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text('mine')
        with pytest.raises(ValueError, match='new.lance is (there, and no whole index|damaged)'):
            call()
        assert (place / name).read_text() == 'mine'
        shutil.rmtree(place)
    assert call().images == IMAGES
    check_codes(CodeIndex.load(place), home)


@pytest.mark.parametrize('name', ['codes', 'codes.lance'])
def test_images_that_could_not_be_read_before(home, tmp_path, monkeypatch, name):
    "Where none could, all are tried again. Where some could, it is said that they are not."
    shutil.copytree(home / 'photos', tmp_path / 'photos')
    photos = sorted((tmp_path / 'photos').glob('*/???.png'))
    whole = {path: path.read_bytes() for path in photos}

    def write(path, content):
        "A file that looks as before, as one does that could not be read for a while."
        path.write_bytes(content)
        os.utime(path, (0, 0))

    for path in photos:
        write(path, bytes(len(whole[path])))
    call = partial(do_encode, home / 'model', tmp_path / 'photos', tmp_path / name)
    for _ in range(2):
        done = call()
        assert done.exit_code == 2 and 'none of the 602 images can be read' in done.stderr
        assert f'images were changed, remove {tmp_path / name}.plan, and' in done.stderr
    for path in photos[:-1]:
        write(path, whole[path])

    def stopped(*given):
        yield next(_here(*given))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(ENGINES, 'here', stopped)
        assert call().exit_code == 130
    done = call()
    assert done.exit_code == 1 and 'left out 1 image,' in done.stderr  # of the first part
    assert re.search('^images +599$', done.stdout, re.MULTILINE)
    write(photos[-1], whole[photos[-1]])
    done = call()
    assert done.exit_code == 1 and 'an earlier call left out 3 images, and what is' in done.stderr


def do_encode(model, images, out):
    words = ['encode', model, images, '--out', out, '--engine', 'here', '--part', 200]
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.mark.parametrize('to', ['~/new.lance', '~/new'])
def test_a_dataset_in_a_home_is_refused(home, tmp_path, monkeypatch, to):
    "Neither a folder called ~ nor anything in the home is made."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(ValueError, match=f'{to}: ~ is no home here; give the whole path'):
        encode_dataset(str(home / 'model'), home / 'photos', to, engine='here')
    assert not list(tmp_path.iterdir())


def test_a_dataset_gets_lists_when_it_is_large_and_done(home, tmp_path, monkeypatch):
    "Also by a call that finds all parts, as the one before may have been killed."
    place = tmp_path / 'new.lance'
    call = partial(encode_dataset, str(home / 'model'), home / 'photos', place, engine='here')
    lists = []
    for large in (IMAGES + 1, IMAGES, IMAGES):
        monkeypatch.setattr('dcwh.search.LISTED', large)
        call(batch_size=4)
        index = CodeIndex.load(place)
        lists.append(len(index.table.lance.list_indices()))
    assert lists == [0, 1, 1]
    check_codes(index, home)


def test_the_cluster_of_the_guide_is_one_that_ray_takes():
    util = pytest.importorskip('ray.autoscaler._private.util')
    guide = Path(__file__).parents[1] / 'nbs/tutorials/many_machines.ipynb'
    text = '\n'.join(''.join(c['source']) for c in json.loads(guide.read_text())['cells'])
    cluster = yaml.safe_load(re.search('```yaml\n(cluster_name.*?)```', text, re.DOTALL)[1])
    util.validate_config(util.prepare_config(cluster))
    cluster['available_node_types']['worker']['min_worker'] = 9
    with pytest.raises(Exception, match='min_worker'):
        util.validate_config(util.prepare_config(cluster))
