"""Models that are passed on: a trained network in another runtime, backbones by name, and what
the Hub's client is given."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from PIL import Image

from dcwh import sharing
from dcwh.codes import hamming
from dcwh.config import resolve
from dcwh.data import ImageSet, load
from dcwh.experiment import run
from dcwh.files import folder_lock
from dcwh.model import HashModel
from dcwh.results import read_result, read_table, result_of, run_name
from dcwh.sharing import OnnxModel, card, export_onnx, publish
from dcwh.sources import Files, find_source

ROOT = Path(__file__).parents[1]
CIFAR = ROOT / 'data/cache/cifar10'
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    "A run on digits: the folder with its runs, and its name."
    where, config = (
        tmp_path_factory.mktemp('digits'),
        resolve(dataset='digits', bits=16, recipe='quick'),
    )
    run(config, where / 'runs')
    return where, run_name(config)


# the same codes


@pytest.fixture(scope='module')
def trained():
    "The first result on CIFAR-10 (JPEG) whose model is here."
    if not CIFAR.is_dir():
        pytest.skip(f'{CIFAR.relative_to(ROOT)} is not there; data/README.md says how to get it')
    runs = [
        f.parent for f in sorted((ROOT / 'runs/cifar10-jpeg-default').glob('dcwh-48-*/result.json'))
    ]
    if not runs:
        pytest.skip(
            'no run of CIFAR-10 (JPEG) is in runs/; '
            '`dcwh run --dataset folder/cifar10-jpeg --bits 48 --force` makes one'
        )
    return runs[0]


@pytest.fixture(scope='module')
def shared(trained, tmp_path_factory):
    return publish(trained, tmp_path_factory.mktemp('shared') / 'model', onnx=True)


def test_codes_of_a_thousand_photographs_agree_with_torch(shared):
    source = find_source('folder/cifar10-jpeg', CIFAR)
    images = ImageSet(source, source.split.query[::10])
    model, onnx = HashModel.from_pretrained(shared), OnnxModel(shared / 'model.onnx')
    ours, theirs = model.outputs(images).numpy(), onnx.outputs(images).numpy()
    changed, apart = (ours > 0) != (theirs > 0), abs(ours - theirs).max()
    assert len(images) == 1000 and apart < 1e-4 < abs(ours).mean() / 1000
    assert not changed.any(), (
        f'{changed.sum()} of {changed.size} bits differ, at outputs up to '
        f'{abs(ours[changed]).max():.1e}; the runtimes are up to {apart:.1e} apart'
    )
    parts = ImageSet(source, images.ids[:100])
    a, b = model.encode(parts), onnx.encode(parts, batch_size=33)
    assert (
        (a.packed == b.packed).all()
        and (a.labels == b.labels).all()
        and (a.ids == b.ids).all()
        and a.model == b.model == model.identity()
    )


def test_card_of_a_committed_result(trained, shared):
    result, made = read_result(trained / 'result.json'), ModelCard.load(shared / 'README.md')
    assert (
        f'| {result["metrics"]["map"]:.4f} |' in made.text
        and result['protocol']['split_hash'] in made.text
        and result['manifest']['commit'] in made.text
    )
    assert result['manifest']['weights_sha256'][:16] in made.text and 'model.onnx' in made.text
    check_metadata(made, result)


@pytest.mark.parametrize('name', ['digits', 'digit-pairs', 'cifar10-jpeg', 'tiny-imagenet100'])
def test_every_set_gets_a_card(name):
    result = result_of(read_table(ROOT / f'reports/{name}.csv')[0])
    check_metadata(card(result), result)


# the metadata, by the Hub's documentation of model cards:
# what its own check over the network would look at first


def check_metadata(made, result):
    text = str(made)
    block = yaml.safe_load(text.split('---\n')[1])
    assert text.startswith('---\n') and set(block) <= {
        'library_name',
        'license',
        'pipeline_tag',
        'tags',
        'metrics',
        'model-index',
    }
    assert (
        block['pipeline_tag'] == 'image-feature-extraction'
        and block['library_name'] == 'dcwh'
        and {'image-retrieval', 'hashing'} <= set(block['tags'])
    )
    assert all(isinstance(t, str) and t for t in [*block['tags'], *block['metrics']])
    (entry,) = block['model-index']
    assert re.fullmatch(r'[\w.-]+', entry['name'])
    (found,) = entry['results']
    assert (
        found['task']['type'] == 'image-retrieval'
        and re.fullmatch(r'[\w.-]+', found['dataset']['type'])
        and found['dataset']['name'] == result['protocol']['source']
    )
    assert all(
        isinstance(m['value'], float)
        and 0 <= m['value'] <= 1
        and m['type'] in ('map', 'precision')
        and m['name']
        for m in found['metrics']
    )
    assert (
        found['metrics'][0]['value'] == result['metrics']['map']
        and found['metrics'][0]['args']['ties'] == 'expected'
    )
    name, results = model_index_to_eval_results(block['model-index'])
    assert eval_results_to_model_index(name, results) == block['model-index']
    assert ModelCard(text).data.to_dict() == made.data.to_dict()
    assert '{{' not in made.text and '{%' not in made.text and 'None' not in made.text


def test_citation_is_the_one_of_the_repository():
    (article,) = yaml.safe_load((ROOT / 'CITATION.cff').read_text())['references']
    for part in (
        article['title'],
        article['doi'],
        article['journal'],
        article['identifiers'][0]['value'],
        *(a['family-names'] + ', ' + a['given-names'] for a in article['authors']),
    ):
        assert part in sharing.PAPER
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['repository-code'] == sharing.CODE


# what arrives


def test_code_in_the_card_runs(digits, tmp_path):
    where, name = digits
    folder = publish(where / 'runs' / name, tmp_path / 'model')
    pixels = next(load('digits').query.batches(4, side=8))[0].permute(0, 2, 3, 1).numpy()
    for file, image in zip(('a', 'b', 'c', 'query'), pixels[[0, 1, 2, 1]], strict=True):
        Image.fromarray(image).save(folder / f'{file}.jpg', quality=95)
    (code,) = re.findall(r'```python\n(.*?)```', (folder / 'README.md').read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, '-c', code + '\nprint(nearest[0, 0], len(database))'],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split('\n')[-2] == '1 3', done.stderr


def test_encoding_needs_onnxruntime_only(digits, tmp_path):
    where, name = digits
    model = HashModel.from_pretrained(where / 'runs' / name / 'model')
    path = export_onnx(model, tmp_path / 'model.onnx')
    code = (
        'import sys\nfor name in ("onnx", "onnxscript", "timm"): sys.modules[name] = None\n'
        'import torch\nfrom dcwh.sharing import OnnxModel\nmodel = OnnxModel(sys.argv[1])\n'
        'codes = model.encode(torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8))\n'
        'print(codes.model, len(codes))'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'error::UserWarning', '-c', code, path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.stdout.split(), done.stderr) == ([model.identity(), '1'], '')


def test_takes_all_that_a_model_takes(digits, tmp_path):
    where, name = digits
    model = HashModel.from_pretrained(where / 'runs' / name / 'model')
    onnx = OnnxModel(export_onnx(model, tmp_path / 'model.onnx'), threads=1)
    pixels = next(load('digits').query.batches(20, side=8))[0][:20]
    pictures = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f'{i:02}.png')
    (tmp_path / '07.png').write_bytes(b'no image')
    files, broken, again = Files(tmp_path, tuple(f'{i:02}.png' for i in range(20))), [], []
    for images, options, other in (
        (pixels, {'batch_size': 3}, {}),
        (pictures, {}, {}),
        ([tmp_path / '03.png', str(tmp_path / '04.png')], {}, {}),
        (files, {'unreadable': broken, 'workers': 1}, {'unreadable': again, 'workers': 1}),
    ):
        a, b = model.encode(images, **options), onnx.encode(images, **(options | other))
        assert (a.packed == b.packed).all() and (a.ids == b.ids).all() and a.model == b.model
    assert len(broken) == 1 and broken == again


@pytest.mark.parametrize(
    'backbone', ('resnet18', 'googlenet', 'alexnet', 'timm/tf_efficientnet_lite0')
)
def test_backbones_by_name(backbone, tmp_path):
    if backbone.startswith('timm/'):
        pytest.importorskip('timm')
    torch.manual_seed(0)
    model = HashModel(backbone, 12, 'none', image_size=64).train()
    modes = [m.training for m in model.modules()]
    onnx = OnnxModel(export_onnx(model, tmp_path / 'model.onnx'))
    assert [m.training for m in model.modules()] == modes and all(
        p.requires_grad for p in model.parameters()
    )
    images = torch.randint(256, (7, 3, 80, 70), dtype=torch.uint8)
    assert torch.allclose(
        model.outputs(images), onnx.outputs(images, batch_size=2), atol=1e-4, rtol=1e-3
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model.onnx']


def test_export_says_nothing(digits, tmp_path, capfd):
    where, name = digits
    model = HashModel.from_pretrained(where / 'runs' / name / 'model')
    capfd.readouterr()
    export_onnx(model, tmp_path / 'model.onnx')
    assert capfd.readouterr() == ('', '')


def test_an_export_that_is_interrupted_leaves_the_old_file(digits, tmp_path, monkeypatch):
    where, name = digits
    model, path = (
        HashModel.from_pretrained(where / 'runs' / name / 'model'),
        tmp_path / 'model.onnx',
    )
    before = export_onnx(model, path).read_bytes()

    def fails(content, model, images):
        raise KeyboardInterrupt

    monkeypatch.setattr(sharing, '_compare', fails)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(model, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['model.onnx']


# what the Hub's client is given


def test_upload(digits, tmp_path, monkeypatch):
    where, name = digits
    asked = []
    hub = SimpleNamespace(
        create_repo=lambda *a, **k: asked.append(('create_repo', a, k)),
        upload_folder=lambda **k: asked.append(
            ('upload_folder', sorted(p.name for p in k['folder_path'].iterdir()), k)
        ),
    )
    monkeypatch.setattr(sharing, 'HfApi', lambda: hub)
    folder = publish(
        where / 'runs' / name, tmp_path / 'model', repo_id='somebody/digits', license='mit'
    )
    assert asked[0] == ('create_repo', ('somebody/digits',), {'private': True, 'exist_ok': True})
    assert (
        asked[1][1] == ['README.md', 'config.json', 'model.safetensors']
        and asked[1][2]['repo_id'] == 'somebody/digits'
    )
    made = ModelCard.load(folder / 'README.md')
    assert made.data.license == 'mit' and "from_pretrained('hf://somebody/digits')" in made.text


def test_a_failure_leaves_no_folder(digits, tmp_path, monkeypatch):
    where, name = digits

    def fails(model, path):
        raise ValueError('cannot be exported')

    monkeypatch.setattr(sharing, 'export_onnx', fails)
    with pytest.raises(ValueError, match='cannot be exported'):
        publish(where / 'runs' / name, tmp_path / 'model', onnx=True)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_publish_left_goes_with_the_next(digits, tmp_path):
    where, name = digits
    dead, living = tmp_path / '.model.0123abcd.part', tmp_path / '.model.89abcdef.part'
    yours = ['.model.first.part', '.model.1.0123abcd.part', '.other.0123abcd.part', '.model.abc']
    for left in (dead, living, *yours):
        (tmp_path / left / 'made').mkdir(parents=True)
    with pytest.raises(OSError):
        publish(tmp_path / 'no run', tmp_path / 'model')
    assert dead.exists(), 'a call that is refused removes nothing'
    with folder_lock(living):
        publish(where / 'runs' / name, tmp_path / 'model')
    there = sorted(path.name for path in tmp_path.iterdir())
    assert there == sorted([living.name, *yours, 'model'])


def test_a_card_of_no_text_is_refused(digits):
    result = read_result(digits[0] / 'runs' / digits[1] / 'result.json')
    odd = {'identity': np.eye(3), 'license': 'mit\nbsd', 'onnx': 'yes'}
    for name, value in odd.items():
        with pytest.raises(ValueError, match=f'{name} is '):
            card(result, **{name: value})


def test_codes_without_a_name_are_still_evaluated(digits, tmp_path):
    where, name = digits
    shutil.copytree(where, tmp_path / 'copy')
    home = tmp_path / 'copy/runs' / name
    for role in ('query', 'database'):
        with np.load(home / f'{role}.npz') as z:
            parts = dict(z)
        np.savez(home / f'{role}.npz', **{k: v for k, v in parts.items() if k != 'model'})
    result = home / 'result.json'
    folder = publish(result, tmp_path / 'model')
    assert (
        hamming(
            *(
                m.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).packed
                for m in (
                    HashModel.from_pretrained(folder),
                    HashModel.from_pretrained(home / 'model'),
                )
            )
        )
        == 0
    )
    changed = json.loads(result.read_text())
    for name in ('map', 'map_with_relevant'):
        changed['metrics'][name] += 0.01
    result.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match='they are of another run'):
        publish(result, tmp_path / 'other')


# what an edited result file would put on a card


@pytest.fixture
def edited(digits, tmp_path):
    "Publishes a copy of the run whose result file says something else."
    where, name = digits
    home = tmp_path / 'runs' / name
    shutil.copytree(where / 'runs' / name, home)

    def publish_edited(missing=(), **parts):
        result = read_result(where / 'runs' / name / 'result.json')
        for part, values in parts.items():
            result[part].update(values)
        (home / 'result.json').write_text(json.dumps(result))
        for role in missing:
            (home / f'{role}.npz').unlink()
        return publish(home, tmp_path / 'model')

    return publish_edited


ROLES = {'query': 'queries', 'database': 'database'}  # of codes: what metrics call their number


@pytest.mark.parametrize('missing', [(), ('query',), ('query', 'database')])
@pytest.mark.parametrize(('role', 'metric'), ROLES.items())
def test_a_size_that_contradicts_the_metrics_is_not_published(edited, role, metric, missing):
    with pytest.raises(ValueError, match=rf'result.json: {metric} is \d+ among the metrics'):
        edited(missing, protocol={role: 9999})


@pytest.mark.parametrize(('role', 'metric'), ROLES.items())
def test_a_size_that_contradicts_the_codes_is_not_published(edited, role, metric):
    with pytest.raises(ValueError, match=rf'{role}.npz holds \d+ codes and the result says'):
        edited(protocol={role: 9999}, metrics={metric: 9999})


def test_codes_that_are_alone_are_still_compared(edited):
    with pytest.raises(ValueError, match=r'database.npz holds \d+ codes'):
        edited(['query'], protocol={'database': 9999}, metrics={'database': 9999})


def test_a_card_says_that_codes_prove_its_metrics_and_not_its_split(edited):
    text = (edited(protocol={'train': 9999, 'split_hash': '0' * 16}) / 'README.md').read_text()
    assert sharing.COUNTED[True] in text
    assert 'training images and the split, is as its result file says' in sharing.COUNTED[True]


@pytest.mark.parametrize('missing', [('query',), ('database',), ('query', 'database')])
def test_a_card_says_that_its_numbers_were_not_counted_again(edited, digits, missing):
    metrics = read_result(digits[0] / 'runs' / digits[1] / 'result.json')['metrics']
    middle = (metrics['map'] + metrics['map_optimistic']) / 2
    told = {'map': middle, 'map_with_relevant': middle}
    text = (edited(missing, metrics=told) / 'README.md').read_text()
    assert sharing.COUNTED[False] in text
    assert sharing.COUNTED[True] not in text
