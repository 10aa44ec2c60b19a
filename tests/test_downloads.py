"""Downloads from a real server on this machine: cut, wrong, refused, killed, two at once,
without room; and a small CIFAR-10 from its archive to its split."""

import hashlib
import io
import json
import pickle
import signal
import socket
import tarfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from threading import Event, Thread

import numpy as np
import pytest
from programs import Python
from torchvision.datasets import CIFAR10

from dcwh.sources import cifar, fetch, unpack_archive

pytest.importorskip(
    'pooch', reason="downloads need pooch: pip install '.[data]' in a clone of dcwh"
)
resource = pytest.importorskip(
    'resource', reason='a full disk is a limit on the size of files here, which only Unix has'
)

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = f'sha256:{hashlib.sha256(BODY).hexdigest()}'
LONG = 60  # seconds after which an event that has not come will not come
FETCH = 'import sys; from dcwh.sources import fetch; print(fetch(*sys.argv[1:]))'
CIFAR = """
import json, sys
from pathlib import Path
from torchvision.datasets import CIFAR10
from dcwh.sources import cifar
folder, believed = Path(sys.argv[1]), json.loads(sys.argv[2])
for name, value in believed.items():
    setattr(CIFAR10, name, value)
print(cifar('cifar10', folder).hash, (folder / CIFAR10.base_folder).stat().st_ino)
"""


class Server(ThreadingTCPServer):
    """Serves one file under any name, and does to the first, second, … request what the script
    says; its last word stays."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Answer)
        self.body, self.script, self.requests = BODY, ['whole'], 0
        self.half, self.again, self.go = (
            Event(),
            Event(),
            Event(),
        )  # a slow answer has come half-way; there was a second request; it may go on
        self.url = f'http://127.0.0.1:{self.server_address[1]}/set.tar.gz'


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        how, server.requests = (
            server.script[min(server.requests, len(server.script) - 1)],
            server.requests + 1,
        )
        if server.requests > 1:
            server.again.set()
        if how == 'busy':
            return self.send_error(503)
        body = server.body[::-1] if how == 'wrong' else server.body
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):  # whoever asked may be dead
            self.wfile.write(body[: len(body) // 2])
            if how == 'slow':
                server.half.set()
                server.go.wait(LONG)
            if how != 'cut':
                self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
        yield server
        server.go.set()
        server.shutdown()


@pytest.fixture
def nowhere():
    "The address of a server that is not there: the port is taken and nobody listens."
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        yield f'http://127.0.0.1:{taken.getsockname()[1]}/set.tar.gz'


def two(code, *args):
    "Two processes that run a piece of code, which begin when both are up."
    both = [Python("print('up', flush=True); input()\n" + code, *args) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ['up\n'] * 2
    for process in both:
        process.stdin.write('\n')
        process.stdin.flush()
    return both


def in_room_for(size, function, *args):
    """Call a function while no file may be larger than so many bytes: writing on fails as on a
    full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        return function(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder):
    "All that is there, but for locks, which stay: to remove one is a race."
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.suffix != '.lock'
    )


# one file


@pytest.mark.parametrize('fault', ['cut', 'wrong', 'busy'])
def test_what_fails_once_is_tried_again(server, tmp_path, fault):
    server.script = [fault, 'whole']
    path = fetch(server.url, SHA256, tmp_path)
    assert (
        path == tmp_path / 'set.tar.gz'
        and path.read_bytes() == BODY
        and names(tmp_path) == ['set.tar.gz']
        and server.requests == 2
    )


@pytest.mark.parametrize(
    'fault, message',
    [
        ('cut', 'IncompleteRead|does not match'),
        ('wrong', 'SHA256 hash of downloaded file .* does not match'),
        ('busy', '503'),
    ],
)
def test_what_always_fails_says_so_and_leaves_nothing(server, tmp_path, fault, message):
    server.script = [fault]
    with pytest.raises(
        OSError,
        match=f'{server.url} could not be downloaded in 2 tries .*({message})'
        f'.* put it at {tmp_path}',
    ):
        fetch(server.url, SHA256, tmp_path, tries=2)
    assert names(tmp_path) == [] and server.requests == 2


def test_without_a_server_it_says_so_and_leaves_nothing(nowhere, tmp_path):
    with pytest.raises(OSError, match='could not be downloaded in 1 tries .*refused'):
        fetch(nowhere, SHA256, tmp_path, tries=1)
    assert names(tmp_path) == []


def test_what_is_there_is_not_downloaded_again(server, nowhere, tmp_path):
    for url in (server.url, server.url, nowhere):
        assert fetch(url, SHA256, tmp_path / 'new' / 'folder').read_bytes() == BODY
    assert server.requests == 1 and names(tmp_path / 'new' / 'folder') == ['set.tar.gz']


def test_what_is_there_and_not_whole_is_replaced(server, tmp_path):
    (tmp_path / 'mine.bin').write_bytes(BODY[:1000])
    assert fetch(server.url, SHA256, tmp_path, 'mine.bin').read_bytes() == BODY and names(
        tmp_path
    ) == ['mine.bin']


def test_two_processes_make_one_download(server, tmp_path):
    server.script = ['slow']
    both = two(FETCH, server.url, SHA256, tmp_path)
    assert server.half.wait(LONG) and not server.again.wait(
        1
    )  # in which the other would have asked
    server.go.set()
    assert [p.end(LONG) for p in both] == [(0, f'{tmp_path}/set.tar.gz\n')] * 2
    assert (tmp_path / 'set.tar.gz').read_bytes() == BODY
    assert server.requests == 1 and names(tmp_path) == ['set.tar.gz']


def test_a_killed_download_is_not_there_and_blocks_nobody(server, tmp_path):
    server.script = ['slow', 'whole']
    killed = Python(FETCH, server.url, SHA256, tmp_path)
    assert server.half.wait(LONG)
    killed.kill()
    assert killed.end()[0] == -signal.SIGKILL and 'set.tar.gz' not in names(tmp_path)
    assert [name.partition('/')[0] for name in names(tmp_path)] == [
        '.set.tar.gz.part'
    ] * 2  # a folder and a file in it
    assert fetch(server.url, SHA256, tmp_path).read_bytes() == BODY and names(tmp_path) == [
        'set.tar.gz'
    ]


def test_a_download_follows_the_umask(server, tmp_path):
    import os

    before = os.umask(0o027)
    try:
        path = fetch(server.url, SHA256, tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_download_without_room_says_so_and_leaves_nothing(server, tmp_path):
    with pytest.raises(
        OSError,
        match=rf'could not be stored at {tmp_path}/set.tar.gz \(File too large\); make room',
    ):
        in_room_for(100_000, fetch, server.url, SHA256, tmp_path)
    assert names(tmp_path) == [] and server.requests == 1  # trying again would not help


def test_a_place_that_is_no_folder_or_may_not_be_written(server, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='could not be stored .*give another folder'):
        fetch(server.url, SHA256, tmp_path / 'file')

    def refuse(*_, **__):
        raise PermissionError(13, 'Permission denied')  # as for a user who may not; root may

    monkeypatch.setattr('tempfile.NamedTemporaryFile', refuse)
    with pytest.raises(
        OSError, match='could not be stored .*Permission denied.*give another folder'
    ):
        fetch(server.url, SHA256, tmp_path)
    assert names(tmp_path) == ['file'] and server.requests == 0


# archives


@pytest.fixture(scope='module')
def archive():
    "A folder of two files, packed."
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w:gz') as tar:
        for name, content in (('set/a', BODY), ('set/b', b'b' * 300_000)):
            add(tar, name, content)
    return file.getvalue()


def add(tar, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def packed(archive, tmp_path):
    "The archive, beside an older folder of the same name and what a killed process left."
    for name in ('set/old', '.set.part/set/a'):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text('old')
    (tmp_path / 'set.tar.gz').write_bytes(archive)
    return tmp_path / 'set.tar.gz'


UNTOUCHED = ['set', 'set.tar.gz', 'set/old']


def test_an_archive_takes_the_place_of_an_old_folder(packed, tmp_path):
    unpack_archive(packed, 'set', tmp_path)
    assert (
        names(tmp_path) == ['set', 'set.tar.gz', 'set/a', 'set/b']
        and (tmp_path / 'set/a').read_bytes() == BODY
    )


@pytest.mark.parametrize(
    'broken',
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-4],
        lambda whole: whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:],
        lambda whole: whole[:-300] + b'\xff' * 100 + whole[-200:],
        lambda whole: b'<html>not found</html>' * 100,
        lambda whole: b'',
    ],
    ids=['half', 'without its end', 'one bit off', 'noise inside', 'a web page', 'empty'],
)
def test_a_broken_archive_is_named_and_the_old_folder_stays(packed, tmp_path, broken):
    packed.write_bytes(broken(packed.read_bytes()))
    with pytest.raises(OSError, match=f'{packed} is not a whole archive .*remove it'):
        unpack_archive(packed, 'set', tmp_path)
    assert names(tmp_path) == UNTOUCHED


def test_an_archive_of_something_else_is_named_and_the_old_folder_stays(packed, tmp_path):
    with tarfile.open(packed, 'w:gz') as tar:
        add(tar, 'other/a', BODY)
    with pytest.raises(OSError, match=f'{packed} is not a whole archive .*no folder set'):
        unpack_archive(packed, 'set', tmp_path)
    assert names(tmp_path) == UNTOUCHED


def test_an_archive_without_room_says_so_and_the_old_folder_stays(packed, tmp_path):
    with pytest.raises(
        OSError,
        match=rf'{packed} could not be unpacked into {tmp_path} \(File too large\); make room',
    ):
        in_room_for(100_000, unpack_archive, packed, 'set', tmp_path)
    assert names(tmp_path) == UNTOUCHED


# CIFAR-10 in small


@pytest.fixture(scope='module')
def small():
    "Images, labels, archive, and what torchvision has to believe of it."
    rng, file, sums = np.random.default_rng(0), io.BytesIO(), {}
    images, labels = rng.integers(0, 256, (400, 32, 32, 3), np.uint8), rng.integers(0, 10, 400)
    batches = [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']
    contents = {
        name: {'data': x.transpose(0, 3, 1, 2).reshape(len(x), -1), 'labels': y.tolist()}
        for name, x, y in zip(
            batches,
            np.split(images, range(60, 301, 60)),
            np.split(labels, range(60, 301, 60)),
            strict=True,
        )
    }
    with tarfile.open(fileobj=file, mode='w:gz') as tar:
        for name, content in {
            **contents,
            'batches.meta': {'label_names': list('abcdefghij')},
        }.items():
            content = pickle.dumps(content)
            sums[name] = hashlib.md5(content).hexdigest()
            add(tar, f'{CIFAR10.base_folder}/{name}', content)
    lists = [[name, sums[name]] for name in batches]
    believed = {
        'tgz_md5': hashlib.md5(file.getvalue()).hexdigest(),
        'train_list': lists[:5],
        'test_list': lists[5:],
        'meta': {**CIFAR10.meta, 'md5': sums['batches.meta']},
    }
    return images, labels, file.getvalue(), believed


def small_cifar(folder, url, believed):
    "The small one, and the identity of its folder: unpacking again would make another."
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {'url': url, **believed}.items():
            patch.setattr(CIFAR10, name, value)
        return cifar('cifar10', folder), (folder / CIFAR10.base_folder).stat().st_ino


WHOLE = [
    'cifar-10-batches-py',
    *(
        f'cifar-10-batches-py/{name}'
        for name in ('batches.meta', *(f'data_batch_{i}' for i in range(1, 6)), 'test_batch')
    ),
    'set.tar.gz',
]


def test_cifar_is_downloaded_unpacked_and_read(server, small, tmp_path):
    images, labels, server.body, believed = small
    source, _ = small_cifar(tmp_path, server.url, believed)
    assert (
        (source.images == images).all()
        and (source.labels == labels).all()
        and source.labels.dtype == np.int64
        and source.classes == tuple('abcdefghij')
    )
    assert source.split.query.tolist() == list(
        range(300, 400)
    ) and source.split.train.tolist() == source.split.database.tolist() == list(range(300))
    assert names(tmp_path) == WHOLE and server.requests == 1


@pytest.mark.parametrize('lost', ['data_batch_3', 'test_batch', 'batches.meta'])
def test_cifar_is_mended_without_another_download(server, nowhere, small, tmp_path, lost):
    *_, server.body, believed = small
    first, folder = small_cifar(tmp_path, server.url, believed)
    assert small_cifar(tmp_path, nowhere, believed)[1] == folder  # nothing was done
    (tmp_path / CIFAR10.base_folder / lost).unlink()
    assert (
        small_cifar(tmp_path, nowhere, believed)[0].hash == first.hash
        and names(tmp_path) == WHOLE
        and server.requests == 1
    )


def test_cifar_in_the_home_folder(server, small, tmp_path, monkeypatch):
    *_, server.body, believed = small
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, value in {'url': server.url, **believed}.items():
        monkeypatch.setattr(CIFAR10, name, value)
    assert len(cifar('cifar10', '~/images').labels) == 400 and names(tmp_path / 'images') == WHOLE


def test_two_processes_download_and_unpack_cifar_once(server, small, tmp_path):
    *_, server.body, believed = small
    server.script = ['slow']
    given = json.dumps({'url': server.url, **believed})
    both = two(CIFAR, tmp_path, given)
    assert server.half.wait(LONG) and not server.again.wait(1)
    server.go.set()
    (code, said), other = (p.end(LONG) for p in both)
    assert code == 0 and (code, said) == other, said  # the same images, in a folder made once
    assert names(tmp_path) == WHOLE and server.requests == 1


def test_cifar_without_a_network_says_which_file_belongs_where(nowhere, small, tmp_path):
    *_, body, believed = small

    def said():
        with pytest.raises(
            FileNotFoundError, match=f'cifar10 is not in {tmp_path}: .*refused'
        ) as wrong:
            small_cifar(tmp_path, nowhere, believed)
        return str(wrong.value)

    place = tmp_path / nowhere.rpartition('/')[2]
    told = said()
    assert told.endswith(f'put it at {place} (MD5 {believed["tgz_md5"]})')
    assert len(told) - 2 * len(str(tmp_path)) < 220
    assert names(tmp_path) == [] and 'dcwh data fetch' not in told and len(told.splitlines()) == 1
    place.write_bytes(body[:1000])
    assert f'put it at {place}, in place of the one there, which is torn or another' in said()
    place.write_bytes(body)
    assert len(small_cifar(tmp_path, nowhere, believed)[0].labels) == 400  # as it was told
