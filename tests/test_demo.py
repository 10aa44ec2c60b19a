"""The demo: trained for real, its page answers on this machine, Ctrl-C ends it."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def demo(*words, cwd):
    "The demo as a process."
    return subprocess.Popen(
        [sys.executable, ROOT / 'workflow/demo.py', *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def birds(tmp_path):
    "Twelve images of two classes."
    rng = np.random.default_rng(0)
    for n, name in enumerate(('heron', 'wren')):
        (tmp_path / 'birds' / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 60, (32, 32, 3)) + 150 * (np.arange(3) == n)
            Image.fromarray(pixels.astype('uint8')).save(tmp_path / f'birds/{name}/{i}.png')
    return 'birds'


@pytest.mark.whole
@pytest.mark.parametrize('images', ('digits', 'birds'))
def test_the_demo_trains_and_its_page_answers(images, birds, tmp_path):
    port = free_port()
    process = demo(images, '--no-open', '--epochs', 2, '--port', port, cwd=tmp_path)
    said = []
    for line in process.stdout:  # until it says where the page is
        said.append(line)
        if 'http://' in line:
            break
    assert f'http://127.0.0.1:{port} searches' in ''.join(said), process.communicate()[1]
    assert 'mAP ' in ''.join(said)
    assert urlopen(f'http://127.0.0.1:{port}').status == 200
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 0
    pictures = [*tmp_path.glob('runs/demo/*/*/pictures/*.png')]
    assert bool(pictures) == (images == 'digits')


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['nowhere'], 'nowhere'),
        (['digits', '--port', '0'], 'port is 0'),
        (['folder/nowhere'], 'folder/nowhere'),
    ],
)
def test_what_cannot_be_shown_is_said_before_training(words, said, tmp_path):
    process = demo(*words, '--no-open', cwd=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 1 and said in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / 'runs').exists()
