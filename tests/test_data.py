"""Every source under every protocol: what is read, what is drawn, and what bad input says."""

import gzip
import os
import shutil
import socket
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from conftest import SMALLEST
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import FakeData, ImageFolder
from typer.testing import CliRunner

import dcwh.sources
from dcwh.cli import app
from dcwh.codes import Codes
from dcwh.config import resolve
from dcwh.data import FORMATS, ImageSet, check, content_hash, decode, load, readable
from dcwh.evaluation import kinship
from dcwh.experiment import retrieval_set, run
from dcwh.results import read_table, record
from dcwh.sources import (
    BESIDE,
    IMAGES,
    UNREAD,
    Source,
    catalogue,
    digit_pairs,
    digits,
    find_source,
    from_dataset,
    lists,
    number_labels,
    read_columns,
    typed,
    write_table,
)

PAIRS, DIGITS = digit_pairs(), digits()
N = 400  # images of a set; every fifth is a query


class Refusing:
    "A Dataset of images and labels in which some items must not be asked for."

    def __init__(self, images, labels, refused):
        self.images, self.targets, self.refused = images, labels, set(refused.tolist())

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i in self.refused:
            raise AssertionError(f'item {i} was read')
        return Image.fromarray(self.images[i]), self.targets[i]


def write(images, labels, root, query, refused):
    "As PNG files; those refused are no images."
    (root / 'img').mkdir(parents=True)
    for i in range(N):
        Image.fromarray(images[i]).save(root / f'img/{i}.png')
        if refused and i in query:
            (root / f'img/{i}.png').write_text('must not be read')
    return [f'img/{i}.png' for i in range(N)]


def as_folder(root, refused=True):
    for i in range(N):
        file = root / ('test' if i % 5 == 0 else 'train') / str(DIGITS.labels[i]) / f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('must not be read') if refused and i % 5 == 0 else Image.fromarray(
            DIGITS.images[i]
        ).save(file)
    return find_source('folder/scans', root)


def as_csv(root, refused=True):
    names = write(PAIRS.images, PAIRS.labels, root, range(0, N, 5), refused)
    rows = [
        f'{name},{";".join(np.flatnonzero(PAIRS.labels[i]).astype(str))},'
        f'{"test" if i % 5 == 0 else "train"}'
        for i, name in enumerate(names)
    ]
    (root / 'pairs.csv').write_text('\n'.join(['path,labels,split', *rows]))
    return find_source('csv/pairs', root / 'pairs.csv')


def as_lists(root, refused=True, labels=PAIRS.labels):
    names = write(PAIRS.images, labels, root, range(0, N, 5), refused)

    def line(i):
        return f'{names[i]} {" ".join(map(str, labels[i].astype(int)))}\n'

    for file, ids in {
        'test.txt': range(0, N, 5),
        'train.txt': [i for i in range(N) if i % 5 and i % 2],
        'database.txt': [i for i in range(N) if i % 5],
    }.items():
        (root / file).write_text(''.join(map(line, ids)))
    return find_source('lists/pairs', root)


def as_dataset(root, refused=True):
    query = np.arange(0, N, 5)
    return from_dataset(
        Refusing(DIGITS.images[:N], DIGITS.labels[:N], query if refused else query[:0]),
        'anybody',
        test=np.isin(np.arange(N), query),
    )


def fake(stated=None, **options):
    "Twelve images of four classes, which a set states raw as torchvision's do."
    made = FakeData(12, (3, 8, 8), 4, **options)
    made.targets = [y for _, y in FakeData(12, (3, 8, 8), 4)] if stated is None else stated
    made.classes = ['ant', 'bee', 'cat', 'dog']
    return made


class Both(ImageFolder):
    "A set with one transform of image and label together."

    def __getitem__(self, i):
        item = super().__getitem__(i)
        return self.transforms(*item) if self.transforms else item


def jointly(root):
    made = Both(root)
    made.transforms = lambda image, y: (image, y % 2)
    return made


def subset_that_states(_):
    "The usual way to go on with `targets` and `classes` of a part."
    whole = fake(target_transform=lambda y: y % 2)
    part = Subset(whole, range(0, 12, 2))
    part.targets = [whole.targets[i] for i in part.indices]
    part.classes = whole.classes
    return part


@pytest.mark.parametrize(
    'made',
    (
        lambda root: ImageFolder(root, target_transform=lambda y: y % 2),
        lambda _: fake(target_transform=lambda y: y % 2),
        lambda _: fake([str(i) for i in range(12)], target_transform=lambda y: y % 2),
        lambda _: Subset(fake(target_transform=lambda y: y % 2), range(3, 12)),
        lambda _: ConcatDataset(2 * [fake(target_transform=lambda y: y % 2)]),
        lambda _: Subset(ConcatDataset(2 * [fake(target_transform=lambda y: y % 2)]), range(20)),
        subset_that_states,
        jointly,
    ),
)
def test_labels_of_a_dataset_are_those_of_its_items(made, tmp_path):
    for name in ('ant', 'bee', 'cat', 'dog'):
        (tmp_path / name).mkdir()
        Image.new('RGB', (8, 8)).save(tmp_path / name / '0.png')
    dataset = made(tmp_path)
    source = from_dataset(dataset, 'anybody')
    assert source.labels.tolist() == [dataset[i][1] for i in range(len(dataset))]
    assert source.classes == ('0', '1')


def test_an_item_that_cannot_be_read_is_named_with_the_cause():
    def few(y):
        return {0: 0, 1: 1}[int(y)]  # of four classes

    first = next(i for i, y in enumerate(fake().targets) if y > 1)
    said = rf'^anybody: item {first} of the dataset cannot be read \(KeyError: [23]\)$'
    with pytest.raises(ValueError, match=said):
        from_dataset(fake(target_transform=few), 'anybody')
    labels = np.array([i % 4 for i in range(12)])
    stated = Source('anybody', fake(target_transform=few), labels, tuple('abcd'))
    with pytest.raises(ValueError, match=rf'item {first}: KeyError: [23]'):
        decode(stated, np.arange(12), 8, workers=0)


NFC, NFD = 'caf\xe9', 'cafe\u0301'  # the same to the eye


@pytest.mark.parametrize('kind', ['folder', 'csv', 'lists of labels', 'dataset', 'codes'])
def test_classes_that_look_the_same_are_refused_in_a_line_that_names_both(kind, tmp_path):
    for i, name in enumerate((NFC, NFD, 'tea')):
        (tmp_path / name).mkdir()
        Image.new('RGB', (8, 8)).save(tmp_path / name / f'{i}.png')
    head = {'csv': 'path,label', 'lists of labels': 'path,labels'}.get(kind, 'id,label')
    rows = [f'{NFC}/0.png,{NFC}', f'{NFD}/1.png,{NFD}', 'tea/2.png,tea']
    (tmp_path / 'a.csv').write_text('\n'.join([head, *rows]))
    ask = {
        'folder': lambda: find_source('folder/mine', tmp_path),
        'dataset': lambda: from_dataset([(0, 0), (0, 1)], 'mine', (NFC, NFD)),
        'codes': lambda: number_labels([[NFD], [NFC]]),
    }.get(kind, lambda: find_source('csv/mine', tmp_path / 'a.csv'))
    with pytest.raises(ValueError) as error:
        ask()
    said = str(error.value)
    assert ascii(NFC) in said and ascii(NFD) in said and said.isprintable()


def test_a_transform_of_images_reads_no_item():
    dataset = fake([3, 2, 1, 0] * 3, transform=lambda image: 1 / 0)
    source = from_dataset(dataset, 'anybody')
    assert source.labels.tolist() == dataset.targets and source.classes == tuple(dataset.classes)


def test_a_sideways_photograph_is_learned_as_it_is_encoded(tmp_path):
    for name in ('ant', 'bee'):
        note = Image.Exif()
        note[0x0112] = 6  # a camera held upright
        (tmp_path / name).mkdir()
        Image.fromarray(DIGITS.images[0]).save(tmp_path / name / '0.png', exif=note)
    upright = np.rot90(DIGITS.images[0], -1)
    for source in (from_dataset(ImageFolder(tmp_path), 'x'), find_source('folder/x', tmp_path)):
        (batch, _), *_ = ImageSet(source, np.arange(2)).batches(2, 8)
        assert (batch.numpy().transpose(0, 2, 3, 1) == upright).all()


@pytest.mark.parametrize(
    ('source', 'protocol'),
    (*product((as_folder, as_csv, as_dataset), ('full', 'official')), (as_lists, 'official')),
)
def test_validation_never_reads_the_real_queries(source, protocol, tmp_path):
    of = source(tmp_path)
    data = load(of, protocol, evaluate_on='validation').read(16)
    for role in (data.query, data.train, data.database):
        assert sum(len(x) for x, _ in role.batches(32, 16)) == len(role)
    assert not np.isin(
        of.split.query, np.concatenate([data.query.ids, data.database.ids])
    ).any() and data.protocol.endswith('validation')

    def share(labels):
        if labels.ndim == 2:
            return labels.sum(0)
        return np.bincount(labels, minlength=len(of.classes))

    assert (
        abs(
            share(data.query.labels) - 0.1 * (share(data.query.labels) + share(data.train.labels))
        ).max()
        < 4
    )  # stratified: of every label a tenth, but for a few images
    with pytest.raises(ValueError, match='80 images'):
        load(of, protocol).read(16)  # which would have been read otherwise


@pytest.mark.parametrize(
    'source', (DIGITS, PAIRS, np.arange(8).repeat(700)), ids=('digits', 'pairs', 'large')
)
@pytest.mark.parametrize('protocol', ('full', 'sampled', 'disjoint'))
def test_validation_leaves_drawn_queries_out(source, protocol):
    if not isinstance(source, Source):
        source = Source(
            'large', np.zeros((len(source), 1, 1, 3), np.uint8), source, tuple('abcdefgh')
        )
    if protocol == 'disjoint' and source.name == 'digits':
        pytest.skip('classes of digits are too small for disjoint')
    real, validation = (load(source, protocol, evaluate_on=on) for on in ('query', 'validation'))
    used = np.concatenate([validation.query.ids, validation.train.ids, validation.database.ids])
    assert (
        not np.isin(real.query.ids, used).any()
        and set(used.tolist()) <= set(real.train.ids.tolist())
        and validation.top_k == real.top_k
    )


@pytest.mark.parametrize(
    'source',
    (as_folder, as_csv, as_lists, as_dataset, lambda root: DIGITS, lambda root: PAIRS),
    ids=('folder', 'csv', 'lists', 'dataset', 'digits', 'pairs'),
)
@pytest.mark.parametrize('evaluate_on', ('query', 'validation'))
def test_limited_samples_are_nested_in_every_source(source, evaluate_on, tmp_path):
    of, drawn = source(tmp_path), {}
    asked = {'evaluate_on': evaluate_on, 'protocol': 'official' if source is as_lists else 'full'}
    for n in (1, 5, 10, 50, 100, 500, 0):
        data = load(of, seed=3, train_per_class=n, **asked)
        drawn[n] = set(data.train.ids.tolist())
        counts = (
            data.train.labels.sum(0)
            if data.train.labels.ndim == 2
            else np.bincount(data.train.labels)
        )
        rest = of.labels[np.array(sorted(set(load(of, seed=3, **asked).train.ids.tolist())))]
        available = rest.sum(0) if rest.ndim == 2 else np.bincount(rest)
        assert (counts >= np.minimum(n, available)).all() and (
            rest.ndim == 2 or not n or (counts <= n).all()
        )
    assert drawn[1] <= drawn[5] <= drawn[10] <= drawn[50] <= drawn[100] <= drawn[500] <= drawn[0]
    assert drawn[5] != set(load(of, seed=4, train_per_class=5, **asked).train.ids.tolist())


def test_lists_that_are_known_go_by_the_name_of_the_set_and_others_by_their_sizes(
    tmp_path, monkeypatch
):
    of = as_lists(tmp_path, refused=False)
    assert (of.split.name, of.split.top_k) == ('pairs-80-160', None) and len(
        of.split.database
    ) == 320
    sums = [dcwh.sources.read_list(tmp_path / f'{role}.txt')[2][:16] for role in ('test', 'train')]
    monkeypatch.setitem(dcwh.sources.BENCHMARKS, 'nuswide21', (10, 5000, *sums))
    known = load('nuswide21', 'official', tmp_path)
    assert (known.protocol, known.top_k) == ('nuswide21', 5000) and known.describe()[
        'source_hash'
    ] == of.hash
    (tmp_path / 'train.txt').write_text(
        (tmp_path / 'train.txt').read_text().split('\n', 1)[1]
    )  # one line less: another set
    assert load('nuswide21', 'official', tmp_path).protocol == 'nuswide21-80-159'
    (tmp_path / 'img/7.png').unlink()
    assert (
        load('nuswide21', 'official', tmp_path, missing='skip').protocol
        == 'nuswide21-80-159, 1 missing'
    )
    with pytest.raises(
        FileNotFoundError,
        match=r'1 of 400 images of nuswide21 are not below .*, the first img/7.png; .*missing=skip',
    ):
        load('nuswide21', 'official', tmp_path)


def test_full_refuses_a_split_that_leaves_images_out(tmp_path):
    "What the user marked as searched only was trained on, without a word."
    pictures(tmp_path, *(f'{i}.png' for i in range(12)))
    roles = ['test', 'train', 'database'] * 4
    rows = [f'{i}.png,{"ab"[i % 2]},{role}' for i, role in enumerate(roles)]
    (tmp_path / 'x.csv').write_text('\n'.join(['path,label,split', *rows]))
    as_lists(tmp_path / 'lists', refused=False)
    for name, where, train, database in (
        ('csv/x', tmp_path / 'x.csv', 4, 8),
        ('lists/pairs', tmp_path / 'lists', 160, 320),
    ):
        words = ['run', '--dataset', name, '--set', f'data_dir={where}']
        words += ['--set', 'backbone=small', '--runs', str(tmp_path / 'runs')]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2 and 'set protocol=official, which' in done.stderr, done.output
        code, out, err = shell_check(name, where)
        assert code == 0 and 'train with --set protocol=official' in out, err
        data = load(name, 'official', where)
        assert (len(data.train), len(data.database)) == (train, database)


def test_lists_may_lie_elsewhere_packed_and_with_one_label_an_image(tmp_path):
    of = as_lists(tmp_path / 'images', refused=False, labels=np.eye(10, dtype=bool)[DIGITS.labels])
    for file in (tmp_path / 'images').glob('*.txt'):
        (tmp_path / f'{file.name}.gz').write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    again = lists('lists/pairs', tmp_path / 'images', tmp_path)
    assert (
        of.labels.ndim == 1
        and (again.labels == of.labels).all()
        and again.hash == of.hash
        and again.files == of.files
    )


def test_a_run_on_lists_of_several_labels(tmp_path):
    as_lists(tmp_path, refused=False)
    config = resolve(
        {
            'backbone': 'small',
            'weights': 'none',
            'image_size': 16,
            'resize': 16,
            'flip': False,
            'epochs': 2,
            'missing': 'skip',
        },
        dataset='lists/pairs',
        protocol='official',
        bits=12,
        data_dir=str(tmp_path),
    )
    result = run(config, tmp_path / 'runs')
    assert (
        result['protocol'] == retrieval_set(config).describe()
        and result['protocol']['labels_per_image'].startswith('1 to 2')
        and result['metrics']['queries'] == 80
    )
    assert (
        next((tmp_path / 'runs').rglob('result.json')).parents[1].name == 'pairs-default'
        and {'map_outputs'} <= result['metrics'].keys()
    )


def test_decoded_images_are_kept_and_shared(tmp_path, monkeypatch):
    monkeypatch.setenv('DCWH_CACHE', str(tmp_path / 'decoded'))
    first = load(as_folder(tmp_path / 'a', refused=False)).read(16)
    assert (
        isinstance(first.train.source.images, np.ndarray)
        and len(list((tmp_path / 'decoded').iterdir())) == 1
    )
    monkeypatch.setattr(
        'dcwh.data.decode', None
    )  # nothing is decoded again, wherever the same images are
    moved = load(as_folder(tmp_path / 'b', refused=False)).read(16)
    assert (
        isinstance(moved.train.source.images, np.memmap)
        and (moved.train.source.images == first.train.source.images).all()
    )
    file = next((tmp_path / 'b/train').rglob('*.png'))
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    with pytest.raises(TypeError):
        load(find_source('folder/scans', tmp_path / 'b')).read(16)  # another image: another name


def test_a_folder_of_decoded_images_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('DCWH_CACHE', str(tmp_path / 'file'))
    assert len(load(as_folder(tmp_path / 'a', refused=False)).read(16).train.source.images) == N


def test_where_nobody_has_a_home_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.delenv('DCWH_CACHE')
    monkeypatch.setattr('os.path.expanduser', str)  # as in a container with a user that it lacks
    source = as_folder(tmp_path / 'a', refused=False)
    assert isinstance(load(source).read(16).train.source.images, np.ndarray)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a']


def test_lists_of_other_images_are_another_set(tmp_path):
    one, same, other = (as_lists(tmp_path / name, refused=False) for name in 'abc')
    assert one.hash == same.hash == other.hash
    file = next((tmp_path / 'c').rglob('*.png'))
    file.write_bytes(file.read_bytes() + b'.')
    assert find_source('lists/pairs', tmp_path / 'c').hash != one.hash


def shell_check(name, where, *more):
    "What `dcwh data check` ends with and says: exit code, answer, complaints."
    words = ['data', 'check', name, '--data-dir', str(where), '--workers', '0', *more]
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.stdout, done.stderr


def test_check_ends_with_1_and_names_what_is_broken(tmp_path):
    as_csv(tmp_path)
    code, out, err = shell_check('csv/pairs', tmp_path / 'pairs.csv')
    assert code == 1 and '80 images of csv/pairs cannot be read' in err
    assert f'{tmp_path}/img/5.png' in err
    sizes = [line for line in out.splitlines() if line.startswith(('images', 'query', 'train'))]
    assert sizes == ['images            400', 'query             80', 'train             320']
    for i in range(0, N, 5):
        Image.fromarray(PAIRS.images[i]).save(tmp_path / f'img/{i}.png')
    assert shell_check('csv/pairs', tmp_path / 'pairs.csv')[0] == 0


@pytest.mark.parametrize(
    'wrong, message',
    (
        ({'dataset': 'nuswide'}, 'unknown dataset'),
        ({'dataset': 'csv/mine', 'data_dir': 'nowhere.csv'}, 'nowhere.csv is not a file'),
        ({'dataset': 'coco80', 'data_dir': 'nowhere'}, 'has no test.txt, train.txt, database.txt'),
        ({'dataset': 'digits', 'protocol': 'official'}, 'comes with a split'),
        ({'dataset': 'digits', 'settings': {'missing': 'ignore'}}, "missing is 'ignore'"),
    ),
)
def test_bad_input_says_what_to_do(wrong, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        retrieval_set(resolve(wrong.pop('settings', None), bits=16, **wrong))


def test_a_class_without_training_images_is_named(tmp_path):
    names = write(PAIRS.images, PAIRS.labels, tmp_path, (), False)
    (tmp_path / 'mine.csv').write_text(
        'path,label,split\n'
        + ''.join(
            f'{name},{"only" if i == 0 else i % 2},{"test" if i < 10 else "train"}\n'
            for i, name in enumerate(names)
        )
    )
    with pytest.raises(ValueError, match="no training image of 1 of 3 classes, the first 'only'"):
        load('csv/mine', data_dir=tmp_path / 'mine.csv')


# what results are bound to


def filled(root, *names):
    "Files that nobody opens, each of another size."
    for n, name in enumerate(names, 1):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'not opened' * n)
    return root


TWELVE = [f'img/{i}.png' for i in range(12)]
PLAIN = [f'{"abc"[i % 3]}/{i}.png' for i in range(12)]
HALVES = [f'{"test" if i < 3 else "train"}/{"abc"[i % 3]}/{i}.JPEG' for i in range(12)]
ONE = [f'{name},{("zebra", "10", "é")[i % 3]}' for i, name in enumerate(TWELVE)]
SEVERAL = [
    f'{name},{("a", "b;c", "c; a")[i % 3]},{("test", "train", "train", "database")[i % 4]}'
    for i, name in enumerate(TWELVE)
]
ROWS = [f'{name} {("1 0 0", "0 1 1", "1 0 1")[i % 3]}\n' for i, name in enumerate(TWELVE)]


def listed(root):
    for role, rows in {'test': ROWS[:3], 'train': ROWS[3:9], 'database': ROWS[3:]}.items():
        (root / f'{role}.txt').write_text(''.join(rows))
    return root


def as_table(root, *lines):
    filled(root, *TWELVE)
    (root / 'mine.csv').write_text('\n'.join(lines))
    return root / 'mine.csv'


@pytest.mark.parametrize(
    'of, protocol, source_hash, split_hash',
    (
        (lambda root: 'digits', 'full', '62eb172a75fecaf7', 'a4ad1c52aa1e1faa'),
        (lambda root: 'digit-pairs', 'full', '4fa5860263aa72fc', '53a122186875e8f9'),
        (
            lambda root: ('folder/x', filled(root, *PLAIN)),
            'full',
            '4dd72ce00562cfed',
            'c8c6a68b0a55a505',
        ),
        (
            lambda root: ('folder/x', filled(root, *HALVES)),
            'full',
            'ca2f6496dde6ad11',
            '578ec8d496c9c0ac',
        ),
        (
            lambda root: ('csv/x', as_table(root, 'path,label', *ONE)),
            'full',
            '6edcc52a908996a6',
            'e8d9f726dcda5d14',
        ),
        (
            lambda root: ('csv/x', as_table(root, 'path,labels,split', *SEVERAL)),
            'official',
            'cd3bace64385f0fd',
            'ee3abfd6bcf6c428',
        ),
        (
            lambda root: ('lists/x', listed(filled(root, *TWELVE))),
            'official',
            '15765113e728eb6f',
            'febcf04ed0d515bc',
        ),
        (
            lambda root: ('lists/x', listed(filled(root, *TWELVE[:-1]))),
            'official',
            'bb2b23f1bf294c80',
            'afa82fa8f8dfc690',
        ),
    ),
    ids=('digits', 'pairs', 'folder', 'halves', 'csv', 'csv of several', 'lists', 'one missing'),
)
def test_hashes_stay_what_results_are_bound_to(of, protocol, source_hash, split_hash, tmp_path):
    name, where = (*np.atleast_1d(of(tmp_path)), tmp_path)[:2]
    missing = 'skip' if str(name).startswith('lists/') else 'refuse'
    data = load(find_source(str(name), where, missing=missing), protocol)
    assert (data.query.source.hash, data.split_hash()) == (source_hash, split_hash)


def test_the_content_hash_stays_what_it_was(tmp_path):
    images = find_source('folder/x', filled(tmp_path, *PLAIN)).images
    assert content_hash(images, np.arange(12)) == '8d6632fce7d84519'
    assert content_hash(images, np.arange(6)) != content_hash(images, np.arange(12))


# folders


def pictures(root, *names):
    for n, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(DIGITS.images[n]).save(root / name)
    return root


@pytest.fixture
def zoo(tmp_path):
    names = [f'{c}/{i}.png' for c in ('cat', 'dog', 'owl') for i in range(4)]
    return pictures(tmp_path / 'zoo', *names)


def test_linked_class_folders_are_classes(zoo, tmp_path):
    (zoo / 'owl').rename(tmp_path / 'elsewhere')
    (zoo / 'owl').symlink_to(tmp_path / 'elsewhere')
    (zoo / 'cat/round').symlink_to(zoo)  # leads back to where we are
    (tmp_path / 'elsewhere/itself').symlink_to('itself')  # leads nowhere at all
    with pytest.raises(OSError, match='itself is a link that leads nowhere'):
        find_source('folder/x', zoo)
    (tmp_path / 'elsewhere/itself').unlink()
    source = find_source('folder/x', zoo)
    assert source.classes == ('cat', 'dog', 'owl') and len(source.labels) == 12
    assert len(catalogue(zoo)[0]) == 12 and set(catalogue(zoo)[1]['label']) == {'cat', 'dog', 'owl'}


def test_a_class_folder_is_never_counted_twice(zoo):
    (zoo / 'puma').symlink_to('cat')
    assert len(catalogue(zoo)[0]) == 12
    with pytest.raises(ValueError, match='without an image of its own, the first puma'):
        find_source('folder/x', zoo)


def test_many_links_are_no_endless_way(zoo):
    for c in ('cat', 'dog', 'owl'):
        for other in ('cat', 'dog', 'owl'):
            (zoo / c / f'to-{other}').symlink_to(zoo / other)
    assert len(catalogue(zoo)[0]) == 12


@pytest.mark.parametrize(
    'make, message',
    (
        (lambda zoo: (zoo / 'fish').mkdir(), 'the first fish; add images'),
        (lambda zoo: filled(zoo, 'fish/notes.txt'), 'the first fish; add images'),
        (
            lambda zoo: pictures(zoo, 'fish/deep/1.png'),
            '<class>/<image>, the first fish/deep/1.png',
        ),
        (lambda zoo: pictures(zoo, '1.png'), 'not at <class>/<image>, the first 1.png'),
        (lambda zoo: pictures(zoo, 'cat /1.png'), "'cat ' of .* begins or ends with a space"),
        (lambda zoo: (zoo / 'fish').symlink_to('nowhere'), 'fish is a link that leads nowhere'),
    ),
)
def test_what_a_folder_would_leave_out_is_named(zoo, make, message):
    make(zoo)
    with pytest.raises((ValueError, OSError), match=message):
        find_source('folder/x', zoo)


def test_a_folder_that_cannot_be_read_is_named(zoo, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith('dog'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)  # as for a user who may not; root may
    for reads in (lambda: find_source('folder/x', zoo), lambda: catalogue(zoo)):
        with pytest.raises(OSError, match=r'folder .*dog cannot be read \(Permission denied\)'):
            reads()


def test_all_endings_of_photographs_are_read_or_named(zoo, tmp_path):
    for ending in ('jfif', 'JPE', 'apng', 'pgm', 'tiff', 'avif', 'heic', 'cr2'):
        shutil.copy(zoo / 'cat/0.png', zoo / f'cat/more.{ending}')
    assert len(find_source('folder/x', zoo).labels) == 20
    _, wrong = check(find_source('folder/x', zoo))
    named = [line.rpartition('/')[2].partition(':')[0] for line in wrong[1:]]
    assert named == ['more.cr2', 'more.heic']
    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert endings <= IMAGES | UNREAD and not IMAGES & (UNREAD | BESIDE) and not UNREAD & BESIDE


@pytest.mark.parametrize('part', ('val', 'valid', 'validation'))
def test_validation_images_are_learned_from_and_other_folders_named(zoo, part, tmp_path):
    root = tmp_path / 'set'
    for name in ('train', 'test', part):
        shutil.copytree(zoo, root / name)
    source = find_source('folder/x', root)
    assert len(source.labels) == 36 and len(source.split.query) == 12
    assert {source.files[i].partition('/')[0] for i in source.split.train} == {'train', part}
    (root / 'test').rename(root / 'extra')
    with pytest.raises(ValueError, match='12 images in extra beside train'):
        find_source('folder/x', root)
    shutil.rmtree(root / 'extra')
    source = find_source('folder/x', root)
    assert {source.files[i].partition('/')[0] for i in source.split.query} == {part}


def test_half_a_split_is_refused_before_anything_is_trained(zoo, tmp_path):
    shutil.copytree(zoo, tmp_path / 'set/train')
    (tmp_path / 'set/test').mkdir()
    code, _, err = shell_check('folder/x', tmp_path / 'set')
    assert code == 2 and 'the official split has no query image' in err
    (tmp_path / 'set/test/cat').mkdir()
    with pytest.raises(ValueError, match='the first test/cat'):
        load('folder/x', data_dir=tmp_path / 'set')


# what is no image


@pytest.fixture
def traps(zoo):
    "A folder with everything that should not be opened, and how many faults that are."
    os.mkfifo(zoo / 'cat/pipe.png')
    (zoo / 'cat/zero.png').symlink_to('/dev/zero')
    (zoo / 'cat/gone.png').symlink_to('nowhere')
    (zoo / 'dog/empty.png').write_bytes(b'')
    script = '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n'
    (zoo / 'dog/script.jpg').write_text(script)
    shutil.copy(zoo / 'dog/0.png', os.fsencode(zoo) + b'/dog/caf\xe9\r.png')
    here = os.getcwd()
    os.chdir(zoo)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind('owl/socket.png')
        os.chdir(here)
        yield zoo


FAULTS = (
    'pipe.png: it is a pipe',
    'zero.png: it is a device',
    'gone.png: ',
    'empty.png: it is no image',
    'script.jpg: it is no image',
    'socket.png: it is a socket',
    r'caf\xe9\r.png: its name is not UTF-8',
)


def test_check_lists_every_fault_in_a_line_and_opens_nothing_that_is_no_file(traps, monkeypatch):
    monkeypatch.setattr('PIL.EpsImagePlugin.Ghostscript', None)  # called: an error
    code, out, err = shell_check('folder/x', traps)
    assert code == 1 and 'images            19' in out and 'content_hash' in out
    lines = err.splitlines()
    assert len(lines) == 8 and all(any(fault in line for line in lines) for fault in FAULTS)


def test_names_that_python_was_told_not_to_read_are_not_blamed(zoo):
    (zoo / 'owl/0.png').rename(zoo / 'owl/K\u00e4uzchen.png')
    env = {**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
    words = [sys.executable, '-m', 'dcwh', 'data', 'check', 'folder/x', '--data-dir', zoo]
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    said = 'uzchen.png: Python reads names of files as ascii here; start it with PYTHONUTF8=1'
    assert done.returncode == 1 and said in done.stderr


def test_encoding_leaves_them_out_and_names_them(traps):
    files, unreadable = catalogue(traps)[0], []
    labels = np.arange(len(files)) % 2
    images = ImageSet(Source('x', files, labels, ('a', 'b')), np.arange(len(files)))
    rows = np.concatenate([rows for _, rows in readable(images, 4, 8, 0, unreadable)])
    assert len(rows) == 12 and len(unreadable) == 7
    assert all(line.isprintable() for line in unreadable)


def test_a_run_names_them_all_before_it_starts(traps):
    with pytest.raises(ValueError, match='7 images of folder/x cannot be read'):
        load('folder/x', data_dir=traps).read(16)


# tables


def test_paths_of_one_file_are_one_file(zoo, tmp_path):
    file = zoo / 'mine.csv'
    names = ['cat/0.png', './cat//1.png', 'dog/../cat/2.png', f'{zoo}/dog/0.png', 'dog/1.png']
    file.write_text('path,label\n' + ''.join(f'{name},{i % 2}\n' for i, name in enumerate(names)))
    source = find_source('csv/x', file)
    assert source.files == ('cat/0.png', 'cat/1.png', 'cat/2.png', 'dog/0.png', 'dog/1.png')
    assert check(source)[1] == [] and catalogue(file)[0].names == source.files
    for again in ('./cat/0.png', f'{zoo}/cat/0.png', 'dog/../cat/0.png'):
        file.write_text(f'path,label\ncat/0.png,a\ndog/0.png,b\n{again},c\n')
        for reads in (lambda: find_source('csv/x', file), lambda: catalogue(file)):
            with pytest.raises(ValueError, match='line 4: cat/0.png stands in line 2'):
                reads()
    elsewhere = pictures(tmp_path / 'elsewhere', '1.png')
    file.write_text(f'path,label\n{elsewhere}/1.png,a\ncat/0.png,b\n')
    assert all(path.is_file() for path in find_source('csv/x', file).images)
    (zoo / 'link').symlink_to(elsewhere)
    file.write_text('path,label\nlink/../zoo/cat/0.png,a\ncat/1.png,b\n')  # not ./zoo
    assert all(path.is_file() for path in find_source('csv/x', file).images)


def test_a_row_that_is_there_twice_is_read_once_with_a_warning(zoo):
    file = zoo / 'mine.csv'
    rows = ['cat/0.png,furry;small,train', 'dog/0.png,furry,test', 'dog/1.png,small,train']
    file.write_text('\n'.join(['path,labels,split', *rows]))
    plain = find_source('csv/x', file)
    file.write_text('\n'.join(['path,labels,split', *rows[:2], *rows[1:], rows[1]]))
    for reads in (lambda: find_source('csv/x', file), lambda: catalogue(file)):
        with pytest.warns(UserWarning, match='mine.csv, line 4: the same row as in line 3; .* 2 '):
            reads()
    with pytest.warns(UserWarning):
        source = find_source('csv/x', file)
    assert source.files == plain.files and source.hash == plain.hash
    assert source.split.query.tolist() == [1]
    code, out, err = shell_check('csv/x', file)
    assert code == 0 and 'images            3' in out and err.count('line 3') == 1
    file.write_text('\n'.join(['path,labels,split', *rows, 'dog/0.png,furry,train']))
    with pytest.raises(ValueError, match='line 5: dog/0.png stands in line 3 already'):
        find_source('csv/x', file)


def test_the_folder_of_a_table_names_the_table(zoo):
    with pytest.raises(FileNotFoundError, match='is not a file; csv/<name> takes a CSV .*labels.$'):
        find_source('csv/x', zoo)
    (zoo / 'mine.csv').write_text('path,label\n')
    with pytest.raises(FileNotFoundError, match=f'such as {zoo}/mine.csv in this folder'):
        find_source('csv/x', zoo)


@pytest.mark.parametrize('method', ('dcwh', 'dcwh-sparse'))
def test_a_table_of_several_labels_is_trained_on_and_searched(method, tmp_path):
    as_csv(tmp_path, refused=False)
    plain = {'backbone': 'small', 'weights': 'none', 'image_size': 16, 'workers': 0, 'epochs': 1}
    where = {'dataset': 'csv/pairs', 'data_dir': str(tmp_path / 'pairs.csv')}
    result = run(resolve(plain, **where, method=method, bits=8, padding=2), tmp_path / 'runs')
    assert 0 < result['metrics']['map'] <= 1 and result['metrics']['queries'] == 80
    assert result['protocol']['labels_per_image'].startswith('1 to 2')


WRONG_TABLES = (
    (b'path,label,label\ncat/0.png,a,b\n', 'line 1: the column label is given twice'),
    (b'path,label,labels\ncat/0.png,a,b\n', 'line 1: there are columns label and labels'),
    (b',path,label\n0,cat/0.png,a\n', 'line 1: column 1 has no name'),
    (b'path,label\ncat/0.png,a\ncat/1.png\n', 'line 3: 1 columns'),
    (b'path,label\n\ncat/0.png,a,b\n', 'line 3: 3 columns'),
    (b'path,label\n"cat/0.png","a\n' + b'cat/1.png,b\n' * 20_000, 'line 2: a quote opens'),
    (b'path,label\n"cat\n/0.png",a\ncat/1.png,"b\n', 'line 4: a quote opens'),
    (b'path,label\ncat/0.png,"a"b\n', 'line 2: a quote opens'),
    ('path,label\ncat/0.png,caf\u00e9\n'.encode('utf-16'), 'line 1: this is UTF-16'),
    ('path,label\ncat/0.png,a\n'.encode('utf-16-le'), 'line 1: a zero byte'),
    ('path,label\r\ncat/0.png,caf\u00e9\r\n'.encode('cp1252'), 'line 2: byte 0xe9 is not UTF-8'),
    (b'path,label\ncat/0.png,\0\n', 'line 2: a zero byte'),
    (b'path,label\ncat/0.png, \n', 'line 2: cat/0.png has an empty label'),
    (b'path,labels\ncat/0.png,a;;b\n', 'line 2: cat/0.png has an empty label'),
    (b'path,label\n"",a\n', 'line 2: path is empty'),
    (b'path,label\n', 'names no images'),
    (b'', 'line 1: there is no column path'),
    (b'path;label\n', 'line 1: there is no column path'),
)


@pytest.mark.parametrize('text, message', WRONG_TABLES, ids=[wrong[1] for wrong in WRONG_TABLES])
def test_both_readers_of_tables_name_file_and_line(zoo, text, message):
    file = zoo / 'mine.csv'
    file.write_bytes(text)
    for reads in (lambda: find_source('csv/x', file), lambda: catalogue(file)):
        with pytest.raises(ValueError) as wrong:
            reads()
        assert str(file) in str(wrong.value) and message in str(wrong.value)
        assert '\n' not in str(wrong.value)


@pytest.mark.parametrize(
    'parts, role',
    (
        (('train', 'database'), 'query'),
        (('test', 'database'), 'train'),
        (('test', 'test'), 'train'),
        (('database', 'database'), 'query'),
    ),
)
def test_a_column_split_gives_every_role_an_image_or_is_refused(zoo, parts, role):
    rows = [f'{c}/{i}.png,{c},{parts[i % 2]}' for c in ('cat', 'dog') for i in range(4)]
    (zoo / 'mine.csv').write_text('\n'.join(['path,label,split', *rows]))
    with pytest.raises(ValueError, match=f'the column split leaves no {role} image'):
        find_source('csv/x', zoo / 'mine.csv')


@pytest.mark.parametrize('name', ('Split', 'SPLIT'))
def test_a_split_of_another_spelling_is_not_passed_by(zoo, name):
    rows = [f'{c}/{i}.png,{c},{("train", "test")[i % 2]}' for c in ('cat', 'dog') for i in range(4)]
    (zoo / 'mine.csv').write_text('\n'.join([f'path,label,{name}', *rows]))
    with pytest.raises(ValueError, match=f'line 1: the column {name} is not read; call it split'):
        find_source('csv/x', zoo / 'mine.csv')


def test_text_of_a_table_stays_text(zoo):
    names = ['1.1', '1.10', '1_1', '11', '1e3', '1000', '007', '7', ' 7']
    files = [f'{c}/{i}.png' for c in ('cat', 'dog', 'owl') for i in range(3)]
    rows = [f'{file},{name}' for file, name in zip(files, names, strict=True)]
    (zoo / 'mine.csv').write_text('\n'.join(['path,label', *rows]))
    source = find_source('csv/x', zoo / 'mine.csv')
    assert source.classes == tuple(sorted(names[:-1])) and source.labels[-1] == source.labels[-2]
    assert catalogue(zoo / 'mine.csv')[1]['label'].tolist() == [*names[:-1], '7']
    for long in ('1234567890123456789012', '9223372036854775808'):
        assert typed(['1', long]).tolist() == ['1', long]


def test_classes_are_numbered_without_a_matrix():
    names = [[f'class {i % 40_000}'] for i in range(80_000)]
    classes, labels = number_labels(names)
    assert len(classes) == 40_000 and labels.shape == (80_000,)
    assert [classes[i] for i in labels[:3]] == ['class 0', 'class 1', 'class 2']


def test_a_long_value_cannot_fill_memory(tmp_path):
    rows = ''.join(f'{n},\n' for n in range(10_000))
    (tmp_path / 'mine.csv').write_text('id,note\n' + rows + f'x,{"x" * 10**6}\n')
    with pytest.raises(ValueError, match='line 10002: note has 1000000 characters'):
        read_columns(tmp_path / 'mine.csv', 'id')


def test_images_that_change_while_they_are_read_are_not_kept(zoo, tmp_path, monkeypatch):
    "Or the pixels of others would be found under their hash, for ever."
    monkeypatch.setenv('DCWH_CACHE', str(tmp_path / 'kept'))
    image = next(zoo.rglob('*.png'))
    content = image.read_bytes()

    def replacing(*given):
        Image.new('RGB', (8, 8), 'red').save(image)
        return decode(*given)

    with monkeypatch.context() as patch:
        patch.setattr('dcwh.data.decode', replacing)
        with pytest.raises(ValueError, match='images of .* changed while they were read'):
            load('folder/zoo', data_dir=zoo).read(8)
    assert not list(tmp_path.glob('kept/*'))
    image.write_bytes(content)
    load('folder/zoo', data_dir=zoo).read(8)
    assert len(list(tmp_path.glob('kept/*.npy'))) == 1


def test_what_is_written_is_read_again(tmp_path):
    odd = [
        'a\rb',
        'a\nb',
        'a\r\nb',
        'a,b',
        '"',
        '""',
        ' a',
        'a ',
        '\xa0a',
        'é',
        '\x85',
        '\u2028',
        "'",
        '#',
        '',
    ]
    ids = [f'{i}{value}.png' if i % 2 else f'{value}{i}' for i, value in enumerate(odd)]
    columns = {'id': ids, 'a "b", c': list(map(str.strip, odd))}
    (tmp_path / 'mine.csv').write_bytes(write_table(columns))
    read, more = read_columns(tmp_path / 'mine.csv', 'id')
    assert read.tolist() == ids and more['a "b", c'].tolist() == columns['a "b", c']


# lists

WRONG_LISTS = (
    ('test.txt', b'', 'test.txt, line 1: the list is empty'),
    ('test.txt', b' \n\n', 'test.txt, line 1: the list is empty'),
    ('train.txt', b'img/1.png 1 0\nimg/caf\xe9.png 0 1\n', 'train.txt, line 2: byte 0xe9 is not'),
    ('train.txt', b'img/1.png 1 0\n\nimg/2.png 0 1\n', 'train.txt, line 2: not a path'),
    ('train.txt', b'img/1.png 1 0\n./img/1.png 1 0\n', 'train.txt, line 2: a path that stands'),
    ('train.txt', './img/0.png 1 0'.encode('utf-16'), 'train.txt, line 1: a zero byte'),
    ('database.txt', b'./img//0.png 1 0\n', 'database.txt, line 1: img/0.png is a query too'),
    ('test.txt.gz', gzip.compress(b'img/0.png 1 0\n' * 50)[:-9], 'test.txt.gz is no whole gzip'),
    ('test.txt.gz', b'img/0.png 1 0\n', 'test.txt.gz is no whole gzip file'),
)


@pytest.mark.parametrize('name, content, message', WRONG_LISTS, ids=[w[2] for w in WRONG_LISTS])
def test_lists_name_file_and_line(tmp_path, name, content, message):
    for file in ('test', 'train', 'database'):
        row = 'img/0.png 1 0\n' if file == 'test' else 'img/1.png 0 1\n'
        (tmp_path / f'{file}.txt').write_text(row)
    if name.endswith('.gz'):
        (tmp_path / name.removesuffix('.gz')).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as wrong:
        find_source('lists/x', tmp_path)
    assert f'{tmp_path}/{message}' in str(wrong.value) and '\n' not in str(wrong.value)


def test_lists_with_odd_paths_are_read(tmp_path):
    pictures(tmp_path, 'a b 1.png', 'x/2.png', '3.png', '4.png')
    (tmp_path / 'test.txt').write_text('a b 1.png 1 0\n')
    (tmp_path / 'train.txt').write_text(f'{tmp_path}/x/2.png 1 0\n.//3.png 0 1\n')
    (tmp_path / 'database.txt').write_text('./x/2.png 1 0\nx/../3.png 0 1\n4.png 0 1\n\n')
    source = find_source('lists/x', tmp_path)
    assert (
        source.files == ('a b 1.png', 'x/2.png', '3.png', '4.png')
        and check(source, protocol='official')[1] == []
    )
    (tmp_path / 'a b 1.png').unlink()
    with pytest.raises(ValueError, match='the official split has no query image'):
        find_source('lists/x', tmp_path, missing='skip')


KIN = 'class,superclass\nowl,bird\n dog ,mammal\n"cat",mammal\n'


def test_superclasses_lie_beside_the_images(zoo):
    bare = find_source('folder/x', zoo)
    assert bare.superclasses is None and 'superclasses' not in check(bare)[0]
    rows = [f'{c}/{i}.png,{c}' for c in ('cat', 'dog', 'owl') for i in range(4)]
    (zoo / 'mine.csv').write_text('\n'.join(['path,label', *rows]))
    (zoo / 'superclasses.csv').write_text(KIN)
    for name, place in (('folder/x', zoo), ('csv/x', zoo / 'mine.csv')):
        source = find_source(name, place)
        assert source.classes == ('cat', 'dog', 'owl')
        assert source.superclasses == ('mammal', 'mammal', 'bird')
        assert source.hash == bare.hash
        assert load(source).read(8).query.source.superclasses == source.superclasses
        assert check(source)[0]['superclasses'] == 2


@pytest.mark.parametrize(
    'text, message',
    (
        (KIN + 'cat,bird\n', 'line 5: cat stands in line 4 already; one line per class'),
        (KIN + 'fox,mammal\n', 'line 5: fox is no class of folder/x'),
        (KIN.replace('bird', ''), 'line 2: owl has no superclass'),
        (KIN.replace('owl,bird\n', ''), '1 classes of folder/x have no superclass, the first owl'),
        (KIN.replace('bird', 'mammal'), 'mammal is the superclass of all classes'),
        (KIN.replace('superclass', 'group'), 'line 1: there is no column superclass'),
        ('superclass,classes\nbird,owl\n', 'line 1: there is no column class'),
        ('class,superclass\n', 'superclasses.csv names no classes'),
    ),
)
def test_a_wrong_table_of_superclasses_says_what_is_wrong(zoo, text, message):
    (zoo / 'superclasses.csv').write_text(text)
    with pytest.raises(ValueError) as wrong:
        find_source('folder/x', zoo)
    assert message in str(wrong.value) and '\n' not in str(wrong.value)


def test_superclasses_are_refused_for_several_labels(tmp_path):
    as_csv(tmp_path, refused=False)
    (tmp_path / 'superclasses.csv').write_text(
        'class,superclass\n' + ''.join(f'{n},{n % 2}\n' for n in range(10))
    )
    said = 'superclasses.csv: superclasses are for images with one label each.* in another folder'
    with pytest.raises(ValueError, match=said):
        find_source('csv/pairs', tmp_path / 'pairs.csv')
    (tmp_path / 'superclasses.csv').write_text(KIN)  # of another set
    assert find_source('csv/pairs', tmp_path / 'pairs.csv').superclasses is None


def test_one_table_of_superclasses_serves_all_tables_beside_it(zoo):
    for table, names in (
        ('all', ('cat', 'dog', 'owl')),
        ('two', ('cat', 'owl')),
        ('others', ('0', '1')),
        ('some', ('cat', 'fox')),
    ):
        files = [f'{c}/{i}.png' for c in ('cat', 'dog', 'owl') for i in range(4)]
        rows = [f'{file},{names[n % len(names)]}' for n, file in enumerate(files)]
        (zoo / f'{table}.csv').write_text('\n'.join(['path,label', *rows]))
    (zoo / 'superclasses.csv').write_text(KIN)
    found = {
        table: find_source(f'csv/{table}', zoo / f'{table}.csv').superclasses
        for table in ('all', 'two', 'others')
    }
    assert found == {'all': ('mammal', 'mammal', 'bird'), 'two': ('mammal', 'bird'), 'others': None}
    with pytest.raises(ValueError, match='1 classes of csv/some have no superclass, the first fox'):
        find_source('csv/some', zoo / 'some.csv')


def test_superclasses_of_another_spelling_are_said(tmp_path):
    pictures(tmp_path, *(f'{c}/{n}.png' for c in ('cafe\u0301', 'tea') for n in range(2)))
    (tmp_path / 'superclasses.csv').write_text('class,superclass\ncaf\u00e9,a\ntea,b\n')
    with pytest.raises(ValueError, match=r"superclasses.csv: the classes 'cafe.u0301' and .* same"):
        find_source('folder/x', tmp_path)


def test_superclasses_of_cifar100_come_with_it(monkeypatch):
    table = dcwh.sources.shipped('superclasses', 'cifar100.csv').read_text().splitlines()[1:]
    names = tuple(line.partition(',')[0] for line in table)
    assert names == tuple(sorted(names)) and len(names) == 100  # as torchvision has them
    made = Source('cifar100', np.zeros((200, 8, 8, 3), np.uint8), np.arange(200) % 100, names)
    monkeypatch.setitem(dcwh.sources.SOURCES, 'cifar100', lambda data_dir: made)
    superclasses = find_source('cifar100').superclasses
    assert sorted(superclasses.count(name) for name in set(superclasses)) == [5] * 20
    kind = dict(zip(names, superclasses, strict=True))
    assert kind['oak_tree'] == kind['willow_tree'] == 'trees'
    assert find_source('digits').superclasses is None


def test_a_run_says_how_near_kin_are(zoo, tmp_path):
    def made(seed):
        config = resolve(SMALLEST, dataset='folder/zoo', bits=8, data_dir=str(zoo), seed=seed)
        return run(config, tmp_path / 'runs')

    plain = made(0)
    assert not [name for name in plain['metrics'] if name.endswith('_kin')]
    table = record(plain, tmp_path / 'reports', modified=True)
    (zoo / 'superclasses.csv').write_text(KIN)
    result = made(1)
    folder = next((tmp_path / 'runs').glob('*/*seed1*'))
    sides = [Codes.load(folder / f'{role}.npz') for role in ('query', 'database')]
    expected = kinship(*sides, ('mammal', 'mammal', 'bird'))
    found = {name: result['metrics'][name] for name in expected}
    assert found == expected and expected.keys() == {'map_kin', 'ndcg_kin'}
    record(result, tmp_path / 'reports', modified=True)
    assert [row['map_kin'] for row in read_table(table)] == [None, expected['map_kin']]
