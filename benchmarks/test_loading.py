"""Reading, decoding, augmenting and batching images, beside torchvision's ImageFolder and a
DataLoader; and what a start costs.

make benchmark ARGS="-k loading"

CIFAR-10 as JPEG (data/README.md), 5,000 of its training images, batches of 64, two workers, one
thread each, all in one session: an epoch three times, of which the quickest counts. Both sides
do the same work: bicubic scaling, a random cut (at 64 pixels from a reflected border of 6),
mirroring, floats in [0, 1]. Lists are 1.3 million lines of 100 classes, written for the purpose.
The table is benchmarks/loading.csv."""

from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dcwh.data import ImageSet, draw, epoch_draws, full, load, prepare, sampled
from dcwh.sources import Split, find_lists, find_source, labels_of, read_lists

CIFAR = Path(__file__).parents[1] / 'data/cache/cifar10'
IMAGES, WORKERS, BATCH = 5_000, 2, 64
SIZES = {64: (64, 6), 224: (256, 0)}  # image_size -> resize, padding
LINES = 1_300_000


@pytest.fixture(scope='module')
def cifar():
    if not CIFAR.is_dir():
        pytest.skip(f'{CIFAR} is not there; data/README.md says how to get it')
    source = find_source('folder/cifar10-jpeg', CIFAR)
    return ImageSet(source, source.split.train[::10])


@pytest.fixture
def measure(benchmark):
    def measured(f, name, images, peer='', rounds=3):
        benchmark.extra_info.update(name=name, images=images, peer=peer)
        return benchmark.pedantic(f, rounds=rounds)

    return measured


def epoch(images, size):
    resize, padding = SIZES[size]
    order, draws = epoch_draws(0, 0, len(images))
    return sum(
        len(prepare(x, size, resize, draws[positions], padding, flip=True))
        for x, positions in images.batches(BATCH, resize, order, WORKERS)
    )


def name(what, size):
    return f'{size} px: {what}'


@pytest.mark.parametrize('size', SIZES)
def test_image_folder(measure, cifar, size):
    resize, padding = SIZES[size]
    steps = [
        transforms.Resize(resize, transforms.InterpolationMode.BICUBIC),
        transforms.RandomCrop(size, padding or None, padding_mode='reflect'),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    loader = DataLoader(
        Subset(ImageFolder(CIFAR / 'train', transforms.Compose(steps)), range(0, 50_000, 10)),
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
    )
    assert (
        measure(
            lambda: sum(len(x) for x, _ in loader),
            name('torchvision ImageFolder and DataLoader', size),
            IMAGES,
        )
        == IMAGES
    )


@pytest.mark.parametrize('size', SIZES)
def test_files(measure, cifar, size):
    assert (
        measure(
            lambda: epoch(cifar, size),
            name('dcwh, files decoded in every epoch', size),
            IMAGES,
            name('torchvision ImageFolder and DataLoader', size),
        )
        == IMAGES
    )


def test_held(measure, cifar, monkeypatch):
    monkeypatch.setenv('DCWH_CACHE', '')
    held = load(cifar.source, data_dir=CIFAR).read(64, WORKERS)
    assert (
        measure(
            lambda: epoch(ImageSet(held.train.source, cifar.ids), 64),
            name('dcwh, held in memory', 64),
            IMAGES,
            name('torchvision ImageFolder and DataLoader', 64),
        )
        == IMAGES
    )


def test_starts(measure, cifar, monkeypatch, tmp_path):
    monkeypatch.setenv('DCWH_CACHE', str(tmp_path))
    measure(
        lambda: load(cifar.source).read(64, WORKERS),
        'start at 64 px, 60,000 files: decoded',
        60_000,
        rounds=1,
    )


def test_second_start(measure, cifar, monkeypatch, tmp_path):
    monkeypatch.setenv('DCWH_CACHE', str(tmp_path))
    load(cifar.source).read(64, WORKERS)
    measure(
        lambda: load(cifar.source).read(64, WORKERS),
        'start at 64 px, 60,000 files: found decoded',
        60_000,
        'start at 64 px, 60,000 files: decoded',
    )


@pytest.fixture(scope='module')
def million(tmp_path_factory):
    folder, labels = (
        tmp_path_factory.mktemp('lists'),
        np.random.default_rng(0).integers(0, 100, LINES),
    )
    columns = [' '.join('1' if i == c else '0' for i in range(100)) for c in range(100)]
    lines = [f'image/n{y:08d}_{i}.JPEG {columns[y]}\n' for i, y in enumerate(labels)]
    for file, part in {
        'test.txt': lines[:5000],
        'train.txt': lines[5000:18_000],
        'database.txt': lines[5000:],
    }.items():
        (folder / file).write_text(''.join(part))
    return folder


def test_reading_lists(measure, million):
    names, *_ = measure(
        lambda: read_lists(find_lists(million)),
        'lists of 1.3 M lines and 100 classes: read and compared',
        LINES,
    )
    assert len(names) == LINES


@pytest.fixture(scope='module')
def listed(million):
    _, member, ids, _ = read_lists(find_lists(million))
    return labels_of(member), Split(**ids), member


@pytest.mark.parametrize('protocol', (full, sampled))
def test_protocols(measure, listed, protocol):
    labels, split, _ = listed
    assert len(
        measure(
            lambda: protocol(labels, None if protocol is full else split, np.random.default_rng(0)),
            f'protocol {protocol.__name__} of 1.3 M images',
            LINES,
        ).query
    )


def test_several_labels(measure, listed):
    member = listed[2] | np.roll(listed[2], 1, axis=1)
    measure(
        lambda: draw(member, np.arange(LINES), 500, np.random.default_rng(0)),
        'a draw of 500 a class from 1.3 M images with two labels each',
        LINES,
    )
