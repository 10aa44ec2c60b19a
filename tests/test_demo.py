"""The demo: trained for real, its page answers on this machine, Ctrl-C ends it."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from programs import free_port

from dcwh.config import resolve

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'workflow/demo.py'
sys.path.append(str(SCRIPT.parent))

import demo  # noqa: E402


def started(*words, cwd):
    "The demo as a process."
    return subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, words)],
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
    process = started(images, '--no-open', '--epochs', 2, '--port', port, cwd=tmp_path)
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
    ('images', 'said'),
    [
        ('nowhere', 'nowhere'),
        ('folder/nowhere', 'data/cache is not a folder'),
        ('/no/where', 'there is no folder /no/where; give one, or a set by its name'),
    ],
)
def test_what_cannot_be_shown_is_said_before_training(images, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, 'run', lambda *given: pytest.fail('it trains'))
    with pytest.raises((ValueError, OSError), match=said):
        demo.main(images, 0, free_port(), False, force=False)
    with pytest.raises(ValueError, match='port is 0'):
        demo.main('digits', 0, 0, False, force=False)


def test_a_short_run_is_asked_for(birds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = demo.config_of('birds', 0)
    assert (config.dataset, config.backbone, config.train_images) == ('folder/birds', 'small', 0)
    monkeypatch.setattr(demo, 'MOST', 4)
    assert demo.config_of('birds', 3).train_images == 4
    assert demo.config_of('birds', 3).epochs == 3
    digits = demo.config_of('digits', 0)
    assert digits.epochs == resolve(dataset='digits', bits=32).epochs


def test_names_and_labels_are_those_of_the_files(birds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    database = demo.retrieval_set(demo.config_of('birds', 0)).database
    root, names = demo.pictures_of(database, tmp_path / 'unused')
    assert [name.split('/')[0] for name in names] == demo.labels_of(database)
    assert all((root / name).is_file() for name in names) and not (tmp_path / 'unused').exists()
    pairs = demo.retrieval_set(resolve(dataset='digit-pairs', bits=8)).database
    few = replace(pairs, ids=pairs.ids[:3])
    root, names = demo.pictures_of(few, tmp_path / 'pairs')
    assert np.array_equal(np.asarray(Image.open(root / names[2])), few[2].permute(1, 2, 0))
    rows = [{*text.split(', ')} for text in demo.labels_of(few)]
    classes = np.array(pairs.source.classes)
    assert rows == [{*classes[row]} for row in few.labels]
