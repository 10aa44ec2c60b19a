"""From result files to tables: what is averaged, what never is, and what is refused; figures on files and on many classes; the comparison template."""
from pathlib import Path
import io
import json
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]

import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt

from dcwh import report
from dcwh.codes import Codes
from dcwh.data import load
from dcwh.training import resolve

SCORES = {0: .91, 1: .95, 2: .93}   # by seed


def made(folder, score, source='digits', protocol='full', name=None, **flat):
    "A result file with an invented mAP."
    config = resolve(**{'dataset': source, 'bits': 16, **flat})
    history = [{'epoch': e, 'class': 1 / e, 'loss': 1 / e, 'lr': .1} for e in (1, 2)]
    protocol = {
        'source': source, 'source_hash': 'x', 'name': protocol, 'query': 10, 'train': 20,
        'database': 20, 'classes': 10, 'top_k': None, 'split_hash': 'x',
    }
    metrics = {
        'map': score, 'map_optimistic': score + .01, 'map_pessimistic': score - .02,
        'precision_radius_2': .5, 'queries_empty_radius_2': 0, 'queries_without_relevant': 0,
        'normaliser': 'all',
    }
    result = {
        'config': {**config.model_dump(), 'hash': config.hash}, 'protocol': protocol, 'metrics': metrics,
        'history': history, 'manifest': {'versions': {}, 'device': 'none', 'seconds': {}},
    }
    file = Path(folder) / (name or f'{config.hash}.json')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    return file


@pytest.fixture
def folder(tmp_path):
    for seed, score in SCORES.items():
        for bits in (16, 32):
            made(tmp_path / 'a', score, seed=seed, bits=bits)
            made(tmp_path / 'b', score - .05 - seed / 100, seed=seed, bits=bits, method='ce')
    made(tmp_path, .7, epochs=3)
    made(tmp_path / 'cifar', .88, source='folder/cifar10-jpeg', bits=48, method='dcwh-learned')
    return tmp_path


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


def row(table, **values):
    found = table[np.logical_and.reduce([table[name] == value for name, value in values.items()])]
    assert len(found) == 1
    return found.iloc[0]


def test_mean_and_interval_over_seeds(folder):
    table = report.summary(report.read_results(folder))
    cell, scores = row(table, method='dcwh', bits=16, setting='default'), list(SCORES.values())
    low, high = stats.t.interval(.95, 2, loc=np.mean(scores), scale=stats.sem(scores))
    assert cell.n == 3 and cell['map'] == pytest.approx(.93) and cell.interval == pytest.approx((high - low) / 2)
    assert cell.interval == pytest.approx(4.302653 * .02 / 3**.5, rel=1e-6)   # by hand: s is .02
    assert cell.map_optimistic == pytest.approx(.94) and cell.map_pessimistic == pytest.approx(.91)


def test_one_seed_has_no_interval(folder):
    table = report.summary(report.read_results(folder))
    cell = row(table, bits=48)
    assert cell.n == 1 and np.isnan(cell.interval)
    shown = report.comparison(table).reset_index()
    assert row(shown, dataset='folder/cifar10-jpeg')['48 bits'] == '0.880 (n=1)'
    assert row(shown, method='dcwh', setting='default')['16 bits'] == '0.930 ± 0.050 (n=3)'


@pytest.mark.parametrize('change', [{'epochs': 3}, {'lr': .5}, {'recipe': 'quick'}, {'recipe': 'paper'}, {'backbone': 'resnet18'}, {'image_size': 32}, {'settings': {'sigma': 1}}, {'settings': {'centres': 'exact'}},
                                    {'train_per_class': 10}, {'weights': 'some.safetensors'}], ids=str)
def test_two_settings_never_share_a_cell(tmp_path, change):
    made(tmp_path, .9), made(tmp_path, .8, seed=1), made(tmp_path, .5, seed=1, **change)
    table = report.summary(report.read_results(tmp_path))
    assert sorted(table.n) == [1, 2] and len(table[['protocol', 'setting']].drop_duplicates()) == 2
    assert len(report.comparison(table)) == 2


def test_seed_place_and_workers_do_share_one(tmp_path):
    made(tmp_path, .9), made(tmp_path, .8, seed=1, data_dir='elsewhere', workers=7)
    assert report.summary(report.read_results(tmp_path)).n.tolist() == [2]


def test_few_training_images_are_another_protocol(tmp_path):
    made(tmp_path, .9, source='cifar10', train_per_class=10, bits=48)
    table = report.summary(report.read_results(tmp_path))
    assert table.protocol.tolist() == ['full, 10 training images a class']
    assert report.beside(table, report.published(ROOT / 'data/published.csv')).empty


def test_torn_and_foreign_files_are_named(folder):
    torn = folder / 'a' / 'torn.json'
    torn.write_text(made(folder, .5, seed=9).read_text()[:300])
    (folder / 'list.json').write_text('[1, 2]')
    (folder / 'other.json').write_text('{"config": {}, "protocol": {}, "metrics": {}, "history": [], "manifest": {}}')
    with pytest.raises(ValueError) as error: report.read_results(folder)
    said = str(error.value)
    assert said.startswith('3 files') and all(part in said for part in (str(torn), 'list.json', 'other.json'))


@pytest.mark.parametrize('part, name, value', [('config', 'bits', 64), ('config', 'method', 'dpsh'), ('config', 'hash', '0' * 16), ('config', 'bits', None),
                                               ('metrics', 'map', 1.5), ('metrics', 'map', 'high'), ('metrics', 'map', None), ('protocol', 'source', 7)], ids=str)
def test_a_changed_result_is_no_result(folder, part, name, value):
    file = made(folder / 'a', .5, seed=9)
    result = json.loads(file.read_text())
    result[part][name] = value
    file.write_text(json.dumps(result))
    with pytest.raises(ValueError) as error: report.read_results(folder)
    assert str(error.value).startswith('1 files') and file.name in str(error.value)


def test_the_config_of_a_saved_model_is_passed_by(folder):
    number = len(report.read_results(folder))
    for place in ('a/run/model', 'mine'):
        (folder / place).mkdir(parents=True)
        (folder / place / 'config.json').write_text('{"bits": 16}')
    (folder / 'mine/model.safetensors').touch()
    assert len(report.read_results(folder)) == number
    (folder / 'b/config.json').write_text('{"bits": 16}')   # beside results, and of no model
    with pytest.raises(ValueError, match='b/config.json'): report.read_results(folder)


def test_a_folder_that_is_not_there_is_refused(folder):
    (folder / 'file').touch()
    for name in ('nowhere', 'file'):
        with pytest.raises(FileNotFoundError, match=f'{name} is no.*give the folder'): report.read_results(folder / name)
    (folder / 'empty').mkdir()
    assert report.read_results(folder / 'empty').empty and report.summary(report.read_results(folder / 'empty')).empty


def test_one_name_for_two_sets_of_images_or_weights_is_refused(tmp_path):
    for seed in (0, 1): made(tmp_path, .5, seed=seed)
    files = sorted(tmp_path.rglob('*.json'))
    result = json.loads(files[1].read_text())
    for part, name, said in (('protocol', 'source_hash', 'data set of one name, digits'), ('manifest', 'weights_sha256', 'file of weights of one name')):
        for file, value in zip(files, ('0' * 16, '1' * 16)):
            changed = json.loads(file.read_text())
            changed[part][name] = value
            file.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=said): report.read_results(tmp_path)
        for file in files: file.write_text(json.dumps({**json.loads(file.read_text()), part: result[part]}))
    assert len(report.read_results(tmp_path)) == 2


def test_the_same_run_twice_is_refused(folder):
    made(folder, .91, name='again/copy.json')
    with pytest.raises(ValueError, match='same run.*again/copy.json'): report.read_results(folder)


def test_tuning_and_ablation_are_left_out_unless_asked_for(folder):
    number = len(report.read_results(folder))
    made(folder / 'tuning' / 'x', .1, seed=7), made(folder / 'ablation', .1, seed=8)
    assert len(report.read_results(folder)) == number
    assert len(report.read_results(folder, include=('tuning',))) == number + 1 and len(report.read_results(folder / 'tuning')) == 1


def test_paired_difference_is_smaller_than_the_intervals_say(folder):
    runs = report.read_results(folder)
    pair = row(report.paired(runs, 'dcwh', 'ce'), bits=16)
    differences = [.05, .06, .07]
    assert pair.n == 3 and pair.difference == pytest.approx(.06) and pair.interval == pytest.approx(stats.t.ppf(.975, 2) * stats.sem(differences))
    assert report.paired(runs, 'dcwh-learned', 'ce').empty


def test_published_numbers_stand_beside_with_their_differences(folder):
    table, others = report.summary(report.read_results(folder)), report.published(ROOT / 'data/published.csv')
    shown = report.comparison(table, others).reset_index()
    theirs = shown[shown.source != 'here']
    assert set(theirs.dataset) == {'folder/cifar10-jpeg'} and set(theirs.protocol) == {'full'} and (theirs.source != '').all()
    quoted = row(shown, method='DCWH (paper as quoted)')
    assert quoted['48 bits'] == '0.952' and 'images of cifar10, here folder/cifar10-jpeg' in quoted.differs and 'backbone googlenet, here timm/tf_efficientnet_lite0' in quoted.differs
    assert len(report.map_by_bits(table, others).axes) == 2


def test_figures_of_files_and_of_many_classes(tmp_path):
    rng = np.random.default_rng(0)
    for c in range(30):
        for i in range(6):
            file = tmp_path / f'class{c:02}' / f'{i}.png'
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(file)
    data = load('folder/many', data_dir=tmp_path)
    codes = {role: Codes.from_outputs(rng.normal(size=(len(images), 24)), images.labels, images.ids) for role, images in (('query', data.query), ('database', data.database))}
    assert report.samples(data.train).get_suptitle() == '20 of 30 classes'
    assert len(report.gallery(data.query, data.database, codes['query'], codes['database'], 3, 5).axes) == 18


def test_the_map_of_codes_is_the_same_each_time():
    rng = np.random.default_rng(0)
    codes, centres = Codes.from_outputs(rng.normal(size=(200, 24)), np.arange(200) % 30), rng.normal(size=(30, 24))
    files = [io.BytesIO(), io.BytesIO()]
    for file in files: report.code_map(codes, centres).savefig(file, format='png')
    assert files[0].getvalue() == files[1].getvalue()


def test_without_the_extra_the_import_says_what_to_install():
    done = subprocess.run([sys.executable, '-c', "import sys; sys.modules['seaborn'] = None; import dcwh.report"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "pip install '.[report]' in a clone of dcwh" in done.stderr


def execute(tmp_path, results):
    import papermill
    template, output = ROOT / 'nbs/templates/compare.ipynb', tmp_path / 'out.ipynb'
    assert set(papermill.inspect_notebook(str(template))) == {'results', 'published'}
    papermill.execute_notebook(str(template), str(output), {'results': str(results)}, kernel_name='python3', cwd=str(template.parent), progress_bar=False)
    outputs = [o for cell in json.loads(output.read_text())['cells'] if cell['cell_type'] == 'code' for o in cell['outputs']]
    return ''.join(''.join(o.get('text', o.get('data', {}).get('text/html', ''))) for o in outputs), [o for o in outputs if 'image/png' in o.get('data', {})], [o for o in outputs if o.get('name') == 'stderr']


def test_comparison_template(folder, tmp_path):
    said, pictures, warnings = execute(tmp_path, folder)
    assert '14 runs in 6 cells' in said and '0.930 ± 0.050 (n=3)' in said and '0.880 (n=1)' in said and 'README of github.com/mzhang367/dcwh' in said
    assert len(pictures) == 1 and not warnings


def test_comparison_template_without_results(tmp_path):
    (tmp_path / 'nothing').mkdir()
    said, pictures, warnings = execute(tmp_path, tmp_path / 'nothing')
    assert 'no result files' in said and not pictures and not warnings
