"""Every source under every protocol: what is read, what is drawn, and what bad input says."""
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dcwh.sources
from dcwh.data import load
from dcwh.experiment import retrieval_set, run
from dcwh.sources import Source, digit_pairs, digits, find_source, from_dataset, lists
from dcwh.training import resolve

PAIRS, DIGITS = digit_pairs(), digits()
N = 400   # images of a set; every fifth is a query


class Refusing:
    "A Dataset of images and labels in which some items must not be asked for."
    def __init__(self, images, labels, refused): self.images, self.targets, self.refused = images, labels, set(refused.tolist())
    def __len__(self): return len(self.images)
    def __getitem__(self, i):
        if i in self.refused: raise AssertionError(f'item {i} was read')
        return Image.fromarray(self.images[i]), self.targets[i]


def write(images, labels, root, query, refused):
    "As PNG files; those refused are no images."
    (root / 'img').mkdir(parents=True)
    for i in range(N):
        Image.fromarray(images[i]).save(root / f'img/{i}.png')
        if refused and i in query: (root / f'img/{i}.png').write_text('must not be read')
    return [f'img/{i}.png' for i in range(N)]


def as_folder(root, refused=True):
    for i in range(N):
        file = root / ('test' if i % 5 == 0 else 'train') / str(DIGITS.labels[i]) / f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('must not be read') if refused and i % 5 == 0 else Image.fromarray(DIGITS.images[i]).save(file)
    return find_source('folder/scans', root)


def as_csv(root, refused=True):
    names = write(PAIRS.images, PAIRS.labels, root, range(0, N, 5), refused)
    rows = [f'{name},{";".join(np.flatnonzero(PAIRS.labels[i]).astype(str))},{"test" if i % 5 == 0 else "train"}' for i, name in enumerate(names)]
    (root / 'pairs.csv').write_text('\n'.join(['path,labels,split', *rows]))
    return find_source('csv/pairs', root / 'pairs.csv')


def as_lists(root, refused=True, labels=PAIRS.labels):
    names = write(PAIRS.images, labels, root, range(0, N, 5), refused)
    line = lambda i: f'{names[i]} {" ".join(map(str, labels[i].astype(int)))}\n'
    for file, ids in {'test.txt': range(0, N, 5), 'train.txt': [i for i in range(N) if i % 5 and i % 2], 'database.txt': [i for i in range(N) if i % 5]}.items(): (root / file).write_text(''.join(map(line, ids)))
    return find_source('lists/pairs', root)


def as_dataset(root, refused=True):
    query = np.arange(0, N, 5)
    return from_dataset(Refusing(DIGITS.images[:N], DIGITS.labels[:N], query if refused else query[:0]), 'anybody', test=np.isin(np.arange(N), query))


@pytest.mark.parametrize('protocol', ('full', 'official'))
@pytest.mark.parametrize('source', (as_folder, as_csv, as_lists, as_dataset))
def test_validation_never_reads_the_real_queries(source, protocol, tmp_path):
    of = source(tmp_path)
    data = load(of, protocol, evaluate_on='validation').read(16)
    for role in (data.query, data.train, data.database): assert sum(len(x) for x, _ in role.batches(32, 16)) == len(role)
    assert not np.isin(of.split.query, np.concatenate([data.query.ids, data.database.ids])).any() and data.protocol.endswith('validation')
    share = lambda labels: labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=len(of.classes))
    assert abs(share(data.query.labels) - .1 * (share(data.query.labels) + share(data.train.labels))).max() < 4   # stratified: of every label a tenth, but for a few images
    with pytest.raises(ValueError, match='80 images'): load(of, protocol).read(16)   # which would have been read otherwise


@pytest.mark.parametrize('source', (DIGITS, PAIRS, np.arange(8).repeat(700)), ids=('digits', 'pairs', 'large'))
@pytest.mark.parametrize('protocol', ('full', 'sampled', 'disjoint'))
def test_validation_leaves_drawn_queries_out(source, protocol):
    if not isinstance(source, Source): source = Source('large', np.zeros((len(source), 1, 1, 3), np.uint8), source, tuple('abcdefgh'))
    if protocol == 'disjoint' and source.name == 'digits': pytest.skip('classes of digits are too small for disjoint')
    real, validation = (load(source, protocol, evaluate_on=on) for on in ('query', 'validation'))
    used = np.concatenate([validation.query.ids, validation.train.ids, validation.database.ids])
    assert not np.isin(real.query.ids, used).any() and set(used.tolist()) <= set(real.train.ids.tolist()) and validation.top_k == real.top_k


@pytest.mark.parametrize('source', (as_folder, as_csv, as_lists, as_dataset, lambda root: DIGITS, lambda root: PAIRS), ids=('folder', 'csv', 'lists', 'dataset', 'digits', 'pairs'))
@pytest.mark.parametrize('evaluate_on', ('query', 'validation'))
def test_limited_samples_are_nested_in_every_source(source, evaluate_on, tmp_path):
    of, drawn = source(tmp_path), {}
    for n in (1, 5, 10, 50, 100, 500, 0):
        data = load(of, seed=3, train_per_class=n, evaluate_on=evaluate_on)
        drawn[n] = set(data.train.ids.tolist())
        counts = data.train.labels.sum(0) if data.train.labels.ndim == 2 else np.bincount(data.train.labels)
        rest = of.labels[np.array(sorted(set(load(of, seed=3, evaluate_on=evaluate_on).train.ids.tolist())))]
        available = rest.sum(0) if rest.ndim == 2 else np.bincount(rest)
        assert (counts >= np.minimum(n, available)).all() and (rest.ndim == 2 or not n or (counts <= n).all())
    assert drawn[1] <= drawn[5] <= drawn[10] <= drawn[50] <= drawn[100] <= drawn[500] <= drawn[0]
    assert drawn[5] != set(load(of, seed=4, train_per_class=5, evaluate_on=evaluate_on).train.ids.tolist())


def test_lists_that_are_known_go_by_the_name_of_the_set_and_others_by_their_sizes(tmp_path, monkeypatch):
    of = as_lists(tmp_path, refused=False)
    assert (of.split.name, of.split.top_k) == ('pairs-80-160', None) and len(of.split.database) == 320
    sums = [dcwh.sources.read_list(tmp_path / f'{role}.txt')[2][:16] for role in ('test', 'train')]
    monkeypatch.setitem(dcwh.sources.BENCHMARKS, 'nuswide21', (10, 5000, *sums))
    known = load('nuswide21', 'official', tmp_path)
    assert (known.protocol, known.top_k) == ('nuswide21', 5000) and known.describe()['source_hash'] == of.hash
    (tmp_path / 'train.txt').write_text((tmp_path / 'train.txt').read_text().split('\n', 1)[1])   # one line less: another set
    assert load('nuswide21', 'official', tmp_path).protocol == 'nuswide21-80-159'
    (tmp_path / 'img/7.png').unlink()
    assert load('nuswide21', 'official', tmp_path, missing='skip').protocol == 'nuswide21-80-159, 1 missing'
    with pytest.raises(FileNotFoundError, match=r'1 of 400 images of nuswide21 are not below .*, the first img/7.png; .*missing=skip'): load('nuswide21', 'official', tmp_path)


def test_lists_may_lie_elsewhere_packed_and_with_one_label_an_image(tmp_path):
    import gzip
    of = as_lists(tmp_path / 'images', refused=False, labels=np.eye(10, dtype=bool)[DIGITS.labels])
    for file in (tmp_path / 'images').glob('*.txt'):
        (tmp_path / f'{file.name}.gz').write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    again = lists('lists/pairs', tmp_path / 'images', tmp_path)
    assert of.labels.ndim == 1 and (again.labels == of.labels).all() and again.hash == of.hash and again.files == of.files


def test_a_run_on_lists_of_several_labels(tmp_path):
    as_lists(tmp_path, refused=False)
    config = resolve({'backbone': 'small', 'weights': 'none', 'image_size': 16, 'resize': 16, 'flip': False, 'epochs': 2, 'missing': 'skip'}, dataset='lists/pairs', protocol='official', bits=12, data_dir=str(tmp_path))
    result = run(config, tmp_path / 'reports', tmp_path / 'runs')
    assert result['protocol'] == retrieval_set(config).describe() and result['protocol']['labels_per_image'].startswith('1 to 2') and result['metrics']['queries'] == 80
    assert next((tmp_path / 'reports').rglob('*.json')).parent.name == 'pairs-default' and {'map_outputs'} <= result['metrics'].keys()


def test_decoded_images_are_kept_and_shared(tmp_path, monkeypatch):
    monkeypatch.setenv('DCWH_CACHE', str(tmp_path / 'decoded'))
    first = load(as_folder(tmp_path / 'a', refused=False)).read(16)
    assert isinstance(first.train.source.images, np.ndarray) and len(list((tmp_path / 'decoded').iterdir())) == 1
    monkeypatch.setattr('dcwh.data.decode', None)   # nothing is decoded again, wherever the same images are
    moved = load(as_folder(tmp_path / 'b', refused=False)).read(16)
    assert isinstance(moved.train.source.images, np.memmap) and (moved.train.source.images == first.train.source.images).all()
    file = next((tmp_path / 'b/train').rglob('*.png'))
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    with pytest.raises(TypeError): load(find_source('folder/scans', tmp_path / 'b')).read(16)   # another image: another name


def test_a_folder_of_decoded_images_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('DCWH_CACHE', str(tmp_path / 'file'))
    assert len(load(as_folder(tmp_path / 'a', refused=False)).read(16).train.source.images) == N


def test_check_ends_with_1_and_names_what_is_broken(tmp_path):
    as_csv(tmp_path)
    shell = lambda *words: subprocess.run([Path(sys.executable).with_name('dcwh'), 'data', 'check', 'csv/pairs', '--data-dir', tmp_path / 'pairs.csv', '--workers', '0', *words], capture_output=True, text=True)
    broken = shell()
    assert broken.returncode == 1 and '80 images of csv/pairs cannot be read' in broken.stderr and f'{tmp_path}/img/5.png' in broken.stderr
    assert [line for line in broken.stdout.splitlines() if line.startswith(('images', 'query', 'train'))] == ['images            400', 'query             80', 'train             320']
    for i in range(0, N, 5): Image.fromarray(PAIRS.images[i]).save(tmp_path / f'img/{i}.png')
    assert shell().returncode == 0


@pytest.mark.parametrize('wrong, message', (
    ({'dataset': 'nuswide'}, 'unknown dataset'), ({'dataset': 'csv/mine', 'data_dir': 'nowhere.csv'}, 'nowhere.csv is not a file'), ({'dataset': 'coco80', 'data_dir': 'nowhere'}, 'has no test.txt, train.txt, database.txt'),
    ({'dataset': 'digits', 'protocol': 'official'}, 'comes with a split'), ({'dataset': 'digits', 'settings': {'missing': 'ignore'}}, "missing is 'ignore'")))
def test_bad_input_says_what_to_do(wrong, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message): retrieval_set(resolve(wrong.pop('settings', None), bits=16, **wrong))


def test_a_class_without_training_images_is_named(tmp_path):
    names = write(PAIRS.images, PAIRS.labels, tmp_path, (), False)
    (tmp_path / 'mine.csv').write_text('path,label,split\n' + ''.join(f'{name},{"only" if i == 0 else i % 2},{"test" if i < 10 else "train"}\n' for i, name in enumerate(names)))
    with pytest.raises(ValueError, match="1 classes have no training image, the first 'only'"): load('csv/mine', data_dir=tmp_path / 'mine.csv')
