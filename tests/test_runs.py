"""Whole runs: the template, the runner, interruptions, and what happens to bad input."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from programs import Python, python
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from typer.testing import CliRunner

from dcwh.cli import _known, app
from dcwh.codes import Codes
from dcwh.config import LEFT_TO_RECIPE, resolve
from dcwh.evaluation import evaluate
from dcwh.experiment import (
    _MADE,
    _cells_hash,
    commit,
    execute,
    finished,
    is_changed,
    recorded,
    report,
    retrieval_set,
    run,
    template_parameters,
)
from dcwh.model import HashModel
from dcwh.results import read_result, read_table, record, row_of_config, run_name
from dcwh.training import Checkpoint, Sessions, load_checkpoint, train

pytestmark = pytest.mark.usefixtures('begun')

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / 'nbs/templates/run.ipynb'
QUICK = {'dataset': 'digits', 'bits': 16, 'recipe': 'quick'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "300 digits as PNG files in <split>/<class>/."
    root, digits = tmp_path_factory.mktemp('images'), load_digits()
    for i in range(300):
        file = root / ('test' if i % 5 == 0 else 'train') / str(digits.target[i]) / f'{i:03}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(file)
    return root


def of_folder(root, **settings):
    return resolve(
        {
            'backbone': 'small',
            'weights': 'none',
            'image_size': 16,
            'resize': 16,
            'flip': False,
            'epochs': 2,
            **settings,
        },
        dataset='folder/scans',
        bits=12,
        data_dir=str(root),
    )


def codes_of(config, runs):
    return [
        np.load(f'{runs}/{run_name(config)}/{file}')
        for file in ('query-outputs.npy', 'database-outputs.npy')
    ] + [
        Codes.load(f'{runs}/{run_name(config)}/{side}.npz').packed for side in ('query', 'database')
    ]


def results(where):
    return sorted(Path(where).rglob('result.json'))


def asked(config, where):
    "Both ways to ask for a run whose folders are below `where`."
    return (
        lambda: recorded(config, where / 'reports', where / 'runs')[0],
        lambda: run(config, where / 'runs'),
    )


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# the template and its runner


def test_what_the_template_leaves_to_the_recipe():
    known = template_parameters(TEMPLATE)
    numbers = {n for n, value in known.items() if type(value) in (int, float) and value == 0}
    assert numbers == LEFT_TO_RECIPE | {'seed'}


def test_papermill_from_the_repository_root(tmp_path):
    output = tmp_path / 'dcwh-24-seed0.ipynb'
    subprocess.run(
        [
            sys.executable,
            '-m',
            'papermill',
            'nbs/templates/run.ipynb',
            output,
            '-p',
            'dataset',
            'digits',
            '-p',
            'bits',
            '24',
            '-p',
            'recipe',
            'quick',
            '-p',
            'detail',
            'brief',
            '-p',
            'runs',
            tmp_path / 'runs',
        ],
        cwd=ROOT,
        env={**os.environ, 'JUPYTER_PATH': ''},  # a kernel that imports all anew
        check=True,
        capture_output=True,
    )
    result = read_result(*results(tmp_path))
    assert list(result) == ['config', 'protocol', 'metrics', 'history', 'manifest']
    assert (
        result['config']['bits'] == 24
        and result['protocol']['query'] + result['protocol']['train'] == 1797
    )
    assert (
        result['metrics']['map_pessimistic']
        <= result['metrics']['map']
        <= result['metrics']['map_optimistic']
        and result['metrics']['map'] > 0.5
    )
    assert (
        len(result['history']) == 4
        and {'class', 'cube', 'vertex', 'stage', 'lr', 'least_centre_distance'}
        <= result['history'][0].keys()
    )
    assert f'mAP {result["metrics"]["map"]:.4f}' in output.read_text()


def test_reports_are_whole_and_identical(tmp_path):
    options = {**QUICK, 'runs': str(tmp_path / 'runs')}
    path = report(TEMPLATE, **options)
    first, figures = (
        path.read_bytes(),
        [
            o
            for c in nbformat.read(path, 4).cells
            for o in c.get('outputs', [])
            if {'image/png', 'image/jpeg'} & o.get('data', {}).keys()
        ],
    )
    assert (
        len(figures) >= 8
        and path == tmp_path / 'runs' / run_name(resolve(**QUICK)) / 'report.ipynb'
    )
    before = read_result(path.with_name('result.json'))
    elsewhere = report(TEMPLATE, tmp_path / 'elsewhere/mine.ipynb', force=True, **options)
    assert elsewhere.read_bytes() == first
    after = read_result(path.with_name('result.json'))
    assert {**after, 'manifest': 0} == {**before, 'manifest': 0}


@pytest.mark.parametrize(
    'wrong, message',
    [
        ({'bitz': 8}, r"unknown parameter 'bitz' .did you mean bits\?"),
        ({'bits': '16'}, 'bits is'),
        ({'bits': 0}, 'bits is'),
        ({'method': 'dhn'}, 'unknown method'),
        ({'settings': {'sigmoid': 1}}, 'unknown setting'),
        ({'detail': 'none'}, 'unknown detail'),
        ({'resume': 'yes'}, 'resume is'),
        ({'precision': 'int8'}, 'precision is'),
        ({'protocol': 'half'}, 'protocol is'),
        ({'recipe': 'slow'}, 'unknown recipe'),
        ({'evaluate_on': 'test'}, 'evaluate_on is'),
        ({'dataset': 'digitz'}, 'unknown dataset'),
        ({'backbone': 'resnet19'}, 'unknown backbone'),
        ({'backbone': 'timm/no_such_net'}, 'unknown backbone'),
    ],
)
def test_parameters_are_refused_before_anything_starts(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        report(TEMPLATE, **{**QUICK, 'runs': str(tmp_path / 'runs'), **wrong})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ('result.json', 'digits.csv', 'report'))
def test_a_report_is_a_notebook(tmp_path, name):
    with pytest.raises(ValueError, match=f'{name} is no name of a report'):
        report(TEMPLATE, tmp_path / name, **QUICK, runs=str(tmp_path / 'runs'))
    assert not list(tmp_path.iterdir())


def test_parameters_of_the_template_are_those_of_the_configuration():
    from dcwh.config import Config

    assert template_parameters(TEMPLATE).keys() - Config.model_fields.keys() == {
        'settings',
        'detail',
        'resume',
        'runs',
        'reports',
    }


def test_a_failing_run_leaves_its_report_and_no_result(tmp_path):
    with pytest.raises(Exception, match='the loss is'):
        report(TEMPLATE, **QUICK, lr=1e9, runs=str(tmp_path / 'runs'))
    made = next((tmp_path / 'runs').rglob('report.ipynb'))
    assert 'FloatingPointError' in made.read_text() and not results(tmp_path)
    assert not made.with_name('model').exists()


def test_a_template_that_writes_no_result_is_named_with_the_error_of_the_run(tmp_path):
    notebook = nbformat.read(TEMPLATE, 4)
    notebook.cells = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', [])]
    nbformat.write(notebook, tmp_path / 'mine.ipynb')
    said = (
        'mine.ipynb ended without an error and wrote no result; the run failed .Floating.*loss is'
    )
    with pytest.raises(RuntimeError, match=said):
        report(tmp_path / 'mine.ipynb', **QUICK, lr=1e9, runs=str(tmp_path / 'runs'))


def test_a_forced_run_that_fails_is_told_and_the_older_result_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ['run', '--recipe', 'quick', '--force', '--set', 'epochs=1']
    run(resolve(**QUICK, epochs=1), 'runs')
    (old,) = results(tmp_path)
    before = old.read_bytes()
    old.with_name('report.ipynb').write_text('"injected-parameters" figures.headline(')

    def fails(*given, **more):
        raise FloatingPointError('the loss is nan')

    monkeypatch.setattr('dcwh.experiment.train', fails)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and done.stderr == 'the loss is nan\n', done.output
    assert old.read_bytes() == before
    assert 'headline' in old.with_name('report.ipynb').read_text()


def test_a_forced_run_that_fails_late_leaves_the_older_result_codes_and_model(
    tmp_path, monkeypatch
):
    def files():
        found = [p for p in tmp_path.rglob('*') if p.is_file() and p.suffix in ('.npz', '.npy')]
        found += [*tmp_path.rglob('result.json'), *tmp_path.rglob('model.safetensors')]
        return {p: p.read_bytes() for p in found if 'unfinished' not in p.parts}

    config = resolve(**QUICK, epochs=1)
    run(config, tmp_path)
    before = files()
    assert len(before) == 7
    with monkeypatch.context() as patch:

        def fails(*given, **more):
            raise MemoryError('no room')

        patch.setattr('dcwh.experiment.measured', fails)
        with pytest.raises(MemoryError):
            run(config, tmp_path, resume=False)
    assert files() == before
    with monkeypatch.context() as patch:  # what nobody could read is not written
        patch.setattr('dcwh.experiment.measured', lambda *given: {'': {'map': 2.0}})
        with pytest.raises(ValueError, match='no result of a run: '):
            run(config, tmp_path, resume=False)
    assert files() == before
    (epochs,) = tmp_path.rglob('history.csv')
    told = epochs.read_bytes()
    epochs.write_bytes(b'epoch,loss\n0,7.0\n')  # as the failed run might have left it
    assert recorded(config, tmp_path, tmp_path)
    assert epochs.read_bytes() == told
    assert not [*tmp_path.rglob('unfinished')]
    run(config, tmp_path, resume=False)
    assert files().keys() == before.keys() and not [*tmp_path.rglob('unfinished')]


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        (({'bits': 8},), "^config is {'bits': 8}; give what `resolve` returns"),
        ((resolve(**QUICK), None), '^runs is None; give a path'),
        ((resolve(**QUICK), ''), '^runs is empty; give a folder'),
    ],
)
def test_what_is_no_configuration_or_folder_is_said_in_a_line(given, said):
    with pytest.raises(ValueError, match=said):
        run(*given)


@pytest.mark.parametrize('detail', ['full', 'none'])
@pytest.mark.parametrize(
    'words',
    [
        ['--dataset', 'folder/none', '--set', 'data_dir=nowhere'],
        ['--dataset', 'digits', '--bits', '3'],
        ['--dataset', 'digits', '--set', 'weights=nowhere.safetensors'],
        ['--dataset', 'digits', '--tracker', 'paper'],
        ['--dataset', 'digits', '--set', 'protocol=disjoint', '--record', '--modified'],
    ],
)
def test_a_run_that_is_refused_leaves_nothing(tmp_path, monkeypatch, words, detail):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ['run', '--recipe', 'quick', '--detail', detail, *words])
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1, done.output
    assert not list(tmp_path.iterdir())


# interruptions

RUN = """
import sys
import dcwh
dcwh.run(dcwh.resolve(dataset='digits', bits=16, recipe='quick'), sys.argv[1])
"""
KILL_IN_EPOCH = """
import os, signal, dcwh.model
steps, forward = iter(range(40)), dcwh.model.HashModel.forward
def dying(self, x):
    if next(steps, None) is None: os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, x)
dcwh.model.HashModel.forward = dying
"""
KILL_IN_CHECKPOINT = """
import os, signal, torch
saves, save = iter(range(2)), torch.save
def dying(state, file):
    if next(saves, None) is None:
        file.write(b'half a checkpoint'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)
    save(state, file)
torch.save = dying
"""
LOUD = 'import logging; logging.basicConfig(level=logging.INFO)\n'
KILL_IN_CODES = """
import os, signal, dcwh.codes
dcwh.codes.Codes.save = lambda self, path: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    where, config = tmp_path_factory.mktemp('whole'), resolve(**QUICK)
    return run(config, where / 'runs'), codes_of(config, where / 'runs')


@pytest.mark.parametrize(
    'death',
    [KILL_IN_EPOCH, KILL_IN_CHECKPOINT, KILL_IN_CODES],
    ids=['inside an epoch', 'while a checkpoint is written', 'before codes are saved'],
)
def test_killed_and_resumed_is_the_same_to_the_bit(tmp_path, uninterrupted, death):
    runs, config = tmp_path / 'runs', resolve(**QUICK)
    killed, said = python(death + RUN, runs)
    assert killed == -signal.SIGKILL and not results(tmp_path), said
    code, said = python(LOUD + RUN, runs)
    assert code == 0, said
    assert ('resumed after all' in said) == (death == KILL_IN_CODES), said
    assert ('resumed at epoch' in said) == (death != KILL_IN_CODES), said
    result, codes = uninterrupted
    assert same(codes_of(config, runs), codes)
    assert {**read_result(*results(runs)), 'manifest': 0} == {**result, 'manifest': 0}


SESSION = """
import dcwh.experiment as made
made.commit, made.digest, made.processor = (lambda: 'c' * 40), (lambda *parts: '{}'), (lambda: '{}')
"""


@pytest.mark.parametrize('code, machine', [('a', 'Abacus'), ('a', 'Ledger'), ('b', 'Abacus')])
def test_a_run_that_was_resumed_tells_of_all_its_sessions(tmp_path, code, machine):
    "It told of the last alone: a commit that had made one epoch of many, and its seconds."
    killed, said = python(SESSION.format('a', 'Abacus') + KILL_IN_EPOCH + RUN, tmp_path)
    assert killed == -signal.SIGKILL, said
    (file,) = tmp_path.rglob('checkpoint.pt')
    (session,) = torch.load(file, weights_only=True)['sessions']['sessions']
    done, said = python(SESSION.format(code, machine) + RUN, tmp_path)
    assert done == 0 and ('code was a, and is b' in said) == (code == 'b')
    told = read_result(*results(tmp_path))['manifest']
    assert told['commit'] == 'c' * 40 + '-modified' * (code == 'b')
    assert (told['device'] == session['made_by']['device']) == (machine == 'Abacus')
    assert told['device'].startswith('Abacus') and machine in told['device']
    assert told['seconds']['training'] >= session['seconds'] - 0.1


def test_threads_take_turns_to_train_and_encode_at_a_time(tmp_path):
    config = resolve(**QUICK, epochs=2)
    alone = run(config, tmp_path / 'alone')
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda name: run(config, tmp_path / name), 'ab'))
    assert [one['metrics'] for one in both] == [alone['metrics']] * 2
    images, drawn = retrieval_set(config).query, torch.rand(2, generator=torch.manual_seed(0))
    assert torch.rand(1, generator=torch.manual_seed(0)) == drawn[0]
    model = train(config, retrieval_set(config)).model
    assert torch.rand(1) == drawn[1]  # of a caller, who goes on with numbers of their own
    assert model.training
    identity, packed = model.identity(), model.encode(images).packed
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.encode(images, batch_size=8).packed, range(8)))
    assert all((one == packed).all() for one in found)
    assert model.identity() == identity and all(part.training for part in model.modules())


def test_training_without_gradients_is_refused(tmp_path):
    with torch.no_grad(), pytest.raises(ValueError, match='no_grad or inference_mode is on'):
        run(resolve(**QUICK), tmp_path)


def test_another_default_device_is_refused(tmp_path):
    with torch.device('meta'), pytest.raises(ValueError, match='default device of torch is meta'):
        run(resolve(**QUICK), tmp_path)


def test_a_method_that_remembers_outputs_resumes_the_same_to_the_bit(tmp_path):
    config = resolve(**QUICK, method='dsdh')
    script = RUN.replace("recipe='quick'", "recipe='quick', method='dsdh'")
    whole, runs = run(config, tmp_path / 'whole'), tmp_path / 'runs'
    killed, said = python(KILL_IN_EPOCH + script, runs)
    assert killed == -signal.SIGKILL, said
    code, said = python(script, runs)
    assert code == 0, said
    assert same(codes_of(config, runs), codes_of(config, tmp_path / 'whole'))
    assert read_result(*results(runs))['history'] == whole['history']


def test_results_do_not_depend_on_workers(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(
        'dcwh.data.memory_for_images', lambda: 0
    )  # nothing is kept in memory: every batch comes from the workers
    codes = []
    for workers in (0, 2):
        run(of_folder(folder, workers=workers), tmp_path / f'runs{workers}', resume=False)
        codes.append(codes_of(of_folder(folder), tmp_path / f'runs{workers}'))
    assert same(*codes)


# methods, precisions, roles


def test_methods_and_precision(tmp_path):
    for words in (
        {'method': 'ce'},
        {'method': 'dcwh-learned'},
        {'method': 'dch', 'settings': {'method_settings': {'gamma': 10}}},
        {'settings': {'centres': 'exact', 'optimizer': 'sgd', 'schedule': 'step', 'lr': 0.05}},
        {'precision': 'bf16'},
    ):
        result = run(resolve(**QUICK, **words), tmp_path / 'runs')
        assert result['metrics']['map'] > 0.5, words
    assert len(results(tmp_path)) == 5  # never two under one name


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU computes in fp16')
def test_a_precision_that_is_not_computed_in_is_refused(tmp_path):
    with pytest.raises(ValueError, match="precision is 'fp16'.*give bf16 or fp32"):
        run(resolve(**QUICK, precision='fp16'), tmp_path / 'runs')
    assert not results(tmp_path)


def test_a_saved_model_gives_the_codes_of_its_run(tmp_path):
    from dcwh.data import load

    for precision in ('fp32', 'bf16'):
        config = resolve(**QUICK, precision=precision, epochs=1)
        run(config, tmp_path / 'runs')
        model = HashModel.from_pretrained(tmp_path / 'runs' / run_name(config) / 'model')
        assert np.array_equal(
            model.encode(load('digits').query).packed, codes_of(config, tmp_path / 'runs')[2]
        ), precision


def test_another_folder_under_the_same_name_is_not_the_same_run(tmp_path, folder):
    other, nowhere = tmp_path / 'other', tmp_path / 'nowhere'
    shutil.copytree(folder, other)
    for file in sorted((other / 'train').rglob('*.png'))[::2]:
        file.unlink()
    first = run(of_folder(folder), tmp_path / 'runs')
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    for n in range(2):
        with pytest.raises(ValueError, match='of other images .*--force'):
            asked(of_folder(other), tmp_path)[n]()
        with pytest.raises(FileNotFoundError):
            asked(of_folder(nowhere), tmp_path)[n]()
        assert asked(of_folder(folder), tmp_path)[n]() == first
    assert {path: path.read_bytes() for path in before} == before
    table = record(first, tmp_path / 'reports', modified=True)
    with pytest.raises(ValueError, match=f'{table} is of other images .*--reports.*--force'):
        recorded(of_folder(other), tmp_path / 'reports', tmp_path / 'none')
    assert run(of_folder(other), tmp_path / 'runs', resume=False)['protocol']['train'] == 120


@pytest.mark.parametrize('gone', ['query.npz', 'database.npz'])
def test_a_run_without_its_codes_is_not_finished(tmp_path, gone):
    config, reports = resolve(**QUICK, epochs=1), tmp_path / 'reports'
    runs = tmp_path / 'runs'
    first, folder = run(config, runs), runs / run_name(config)
    assert recorded(config, reports, runs)[0] == first
    (folder / gone).unlink()
    assert recorded(config, reports, runs) is None
    table = record(first, reports, modified=True)  # a row needs no codes
    assert recorded(config, reports, runs)[1] == table
    assert run(config, runs)['metrics'] == first['metrics'] and (folder / gone).is_file()
    assert recorded(config, reports, runs)[1] == folder / 'result.json'


def test_without_git_the_result_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', '')
    assert run(resolve(**QUICK), tmp_path / 'runs')['manifest']['commit'] is None


def test_the_command_line_ends_with_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    images, none = tmp_path / 'images', ['--detail', 'none']
    images.mkdir()
    for words in (
        ['--dataset', 'digitz'],
        ['--dataset', 'folder/x', '--set', f'data_dir={images}', '--set', 'weights=none'],
        ['--set', 'sigmoid=1', *none],
        ['--set', 'lr=1e9', '--recipe', 'quick', *none],
        ['--seed', '9' * 23, *none],
        ['--set', 'sigma=1e400', *none],
        ['--set', 'resize=1000000', *none],
        ['--set', 'precision=fp8', *none],
    ):
        done = CliRunner().invoke(
            app,
            [
                'run',
                *words,
                '--reports',
                str(tmp_path / 'reports'),
                '--runs',
                str(tmp_path / 'runs'),
            ],
        )
        assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1, (
            words,
            done.output,
        )


def test_validation_never_reads_the_queries(tmp_path, folder):
    images = tmp_path / 'images'
    subprocess.run(['cp', '-r', folder, images], check=True)
    for file in (images / 'test').rglob('*.png'):
        file.write_bytes(b'no image')
    result = run(of_folder(images, evaluate_on='validation'), tmp_path / 'runs')
    assert (
        result['protocol']['name'] == 'full, validation'
        and result['protocol']['query'] + result['protocol']['train'] == 240
    )


# bad input


def test_unreadable_images_are_all_listed_before_training(tmp_path, folder):
    images = tmp_path / 'images'
    subprocess.run(['cp', '-r', folder, images], check=True)
    broken = sorted(images.rglob('*.png'))[10:200:60]
    for n, file in enumerate(broken):
        file.write_bytes(file.read_bytes()[:70] if n % 2 else b'')
    with pytest.raises(ValueError, match=f'{len(broken)} images') as error:
        run(of_folder(images), tmp_path / 'runs')
    assert all(str(file) in str(error.value) for file in broken)
    assert not [path for path in (tmp_path / 'runs').rglob('*.*') if path.suffix != '.lock']


def test_folders_that_are_no_image_set(tmp_path, folder):
    def fails(root, message, kind=ValueError):
        with pytest.raises(kind, match=message):
            run(of_folder(root), tmp_path / 'runs')

    fails(tmp_path / 'nowhere', 'not a folder', FileNotFoundError)
    empty = tmp_path / 'empty'
    empty.mkdir()
    fails(empty, 'no image', FileNotFoundError)
    one = tmp_path / 'one'
    subprocess.run(['cp', '-r', folder / 'train' / '0', tmp_path / 'only'], check=True)
    one.mkdir()
    (tmp_path / 'only').rename(one / 'only')
    fails(one, 'at least 2')
    gap = tmp_path / 'gap'
    subprocess.run(['cp', '-r', folder, gap], check=True)
    subprocess.run(['rm', '-r', gap / 'train' / '3'], check=True)
    fails(gap, "no training image of 1 of 10 classes, the first '3'")


@pytest.mark.parametrize(
    'words, message',
    [
        ({**QUICK, 'bits': 3}, 'too few for 10 classes'),
        ({**QUICK, 'weights': 'default'}, 'no pretrained weights'),
        ({**QUICK, 'protocol': 'disjoint'}, 'more than 600'),
    ],
)
def test_what_the_configuration_alone_cannot_know(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        run(resolve(**words), tmp_path / 'runs')


def test_weights_of_another_model(tmp_path):
    run(resolve(**QUICK), tmp_path / 'runs')
    weights = str(next(tmp_path.rglob('model.safetensors')))
    for words in (
        {'bits': 24},
        {'backbone': 'alexnet', 'image_size': 64, 'settings': {'resize': 64}},
    ):
        with pytest.raises(ValueError, match='another architecture or bit length'):
            run(resolve(**{**QUICK, 'weights': weights, **words}), tmp_path / 'runs')


def test_other_weights_at_one_place_are_another_run(tmp_path):
    config = resolve(**QUICK, weights=str(tmp_path / 'weights.safetensors'), settings={'epochs': 1})

    def place(seed):
        torch.manual_seed(seed)
        HashModel('small', config.bits, 'none', config.image_size).save_pretrained(
            tmp_path / f'model{seed}'
        )
        shutil.copy(tmp_path / f'model{seed}/model.safetensors', config.weights)

    place(0)
    result = run(config, tmp_path / 'runs')
    for ask in asked(config, tmp_path):
        assert ask() == result
    place(1)
    for ask in asked(config, tmp_path):
        with pytest.raises(ValueError, match='began with other weights .* --force'):
            ask()
    Path(config.weights).unlink()
    assert asked(config, tmp_path)[0]() == result  # they need not be there to read a result


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_, **where):  # as for a user who may not; root may
        raise PermissionError(13, 'Permission denied', str(where['dir']))

    monkeypatch.setattr('tempfile.TemporaryFile', refuse)
    with pytest.raises(OSError, match='Permission denied.*give another place'):
        run(resolve(**QUICK), tmp_path / 'runs')


@pytest.mark.parametrize(
    'place',
    ['runs', f'runs/{run_name(resolve(**QUICK))}', f'runs/{run_name(resolve(**QUICK))}/model'],
)
def test_a_file_where_a_folder_should_be(tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text('')
    with pytest.raises(OSError, match='give another place'):
        run(resolve(**QUICK), tmp_path / 'runs')


# what is there already


def damaged(path, how):
    "A result file with something wrong in it."
    result = json.loads(path.read_text())
    if how == 'torn':
        return path.write_bytes(path.read_bytes()[:200])
    if how == 'empty':
        return path.write_bytes(b'')
    if how == 'a list':
        result = [1]
    if how == 'no metrics':
        del result['metrics']
    if how == 'other bits':
        result['config']['bits'] = 48
    if how == 'no configuration':
        result['config'] = 'quick'
    path.write_text(json.dumps(result))


@pytest.mark.parametrize(
    'how', ['torn', 'empty', 'a list', 'no metrics', 'other bits', 'no configuration']
)
def test_a_damaged_result_is_named_and_stays(tmp_path, uninterrupted, how):
    config = resolve(**QUICK)
    file = tmp_path / 'runs' / run_name(config) / 'result.json'
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(uninterrupted[0]))
    assert finished(config, tmp_path / 'runs') == uninterrupted[0]
    damaged(file, how)
    before = file.read_bytes()
    for ask in asked(config, tmp_path):
        with pytest.raises(ValueError, match='result.json.*make it again') as error:
            ask()
        assert '\n' not in str(error.value) and file.read_bytes() == before


def test_every_committed_row_is_read():
    tables = [
        ROOT / f'reports/{name}.csv'
        for name in ('digits', 'digit-pairs', 'cifar10-jpeg', 'tiny-imagenet100')
    ]
    assert sum(len(read_table(table)) for table in tables) >= 1607


def quick_run(reports, runs):
    "The words of a quick run, into these folders, without a report."
    places = ['--reports', str(reports), '--runs', str(runs)]
    return ['run', '--recipe', 'quick', '--detail', 'none', *places]


def test_a_recorded_run_is_not_made_again_and_its_row_stays(tmp_path, uninterrupted, monkeypatch):
    config, reports, runs = resolve(**QUICK), tmp_path / 'reports', tmp_path / 'runs'
    names = ('map', 'map_with_relevant', 'map_pessimistic', 'map_optimistic')
    half = dict.fromkeys(names, 0.5)
    other = {
        **uninterrupted[0],
        'metrics': {**uninterrupted[0]['metrics'], **half},
    }  # as of another processor
    before = record(other, reports, modified=True).read_bytes()
    monkeypatch.chdir(ROOT)
    words = quick_run(reports, runs)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and not runs.exists()
    assert (
        done.stdout.startswith(f'recorded: mAP 0.5000, in {reports}/digits.csv, commit ')
        and 'its model is not here; --force runs it again' in done.stdout
    )
    earlier = {**other, 'manifest': {**other['manifest'], 'commit': '0' * 40}}
    said = _known(earlier, reports / 'digits.csv', tmp_path)
    assert f'commit {"0" * 40} (the code here is {commit()}); --force' in said
    forced = CliRunner().invoke(app, [*words, '--force'])
    assert (
        forced.exit_code == 0
        and 'The row of this run has 0.5000.' in forced.stdout
        and (reports / 'digits.csv').read_bytes() == before
        and codes_of(config, runs)
    )
    refused = CliRunner().invoke(
        app, ['record', str(runs), '--reports', str(reports), '--modified']
    )
    assert (
        refused.exit_code == 1
        and 'with map 0.5, here it is' in refused.stderr
        and (reports / 'digits.csv').read_bytes() == before
    )
    replaced = CliRunner().invoke(
        app, ['record', str(runs), '--reports', str(reports), '--modified', '--force']
    )
    assert (
        replaced.exit_code == 0
        and row_of_config(config, reports)['map'] == uninterrupted[0]['metrics']['map']
    )


def test_code_with_changes_is_recorded_only_if_asked(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr('dcwh.experiment.commit', lambda: 'abc-modified')
    reports, runs = tmp_path / 'reports', tmp_path / 'runs'
    words = [*quick_run(reports, runs), '--record']
    refused = CliRunner().invoke(app, words)
    assert (
        refused.exit_code == 2
        and 'changes that are in no commit' in refused.stderr
        and not runs.exists()
    )  # before the work
    done = CliRunner().invoke(app, [*words, '--modified', '--study', 'trial'])
    row = row_of_config(resolve(**QUICK), reports)
    assert (
        done.exit_code == 0
        and row['modified']
        and row['commit'] == 'abc'
        and row['study'] == 'trial'
    )


def test_what_kills_have_left_is_removed(tmp_path, uninterrupted):
    config = resolve(**QUICK)
    result = run(config, tmp_path / 'runs')
    home = tmp_path / 'runs' / run_name(config)
    for ask in asked(config, tmp_path):
        for name in ('checkpoint.pt', '.checkpoint.pt.0123abcd.part'):
            (home / name).write_bytes(b'left')
        assert ask() == result
        assert not [path.name for path in home.iterdir() if 'checkpoint' in path.name]


def test_two_processes_on_one_run(tmp_path):
    both = [Python(RUN, tmp_path / 'runs') for _ in range(2)]
    ends = [process.end() for process in both]
    assert [code for code, _ in ends] == [0, 0], ends
    assert len(results(tmp_path)) == 1 and asked(resolve(**QUICK), tmp_path)[0]()
    assert not list((tmp_path / 'runs').rglob('*checkpoint*')) and not list(
        tmp_path.rglob('*.part')
    )


FORCED = """
import os, sys
from dcwh.cli import _known, app
app(['run', '--recipe', 'quick', '--detail', 'none', '--runs', sys.argv[1], *sys.argv[2:]])
"""
STOP_IN_EPOCH = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests ignore it
{KILL_IN_EPOCH.replace('SIGKILL', 'SIGINT')}
"""


def test_a_forced_run_that_is_stopped_says_what_goes_on(tmp_path):
    code, said = python(STOP_IN_EPOCH + FORCED, tmp_path, '--force')
    assert code == 130, said
    assert 'starts anew; without --force it goes on' in said.splitlines()[-1]
    code, said = python(FORCED, tmp_path)
    assert code == 0 and 'resumed at epoch' in said, said


def test_killed_before_the_report(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = run(resolve(**QUICK), tmp_path / 'runs')
    path = results(tmp_path)[0].with_name('report.ipynb')
    failed = {'source': [], 'metadata': {}, 'outputs': [{'output_type': 'error'}]}
    made = {_MADE: _cells_hash([('', [])])}  # as a run that failed leaves it
    path.write_text(json.dumps({'cells': [failed], 'metadata': made}))
    written = path.with_name('result.json').read_bytes()
    words = [
        'run',
        '--recipe',
        'quick',
        '--reports',
        str(tmp_path / 'reports'),
        '--runs',
        str(tmp_path / 'runs'),
        '--detail',
        'brief',
    ]

    def invoked_twice():
        for said in (f'report: {path}', 'finished: mAP '):
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0 and said in done.stdout, done.output

    invoked_twice()
    made = path.read_bytes()
    assert f'mAP {result["metrics"]["map"]:.4f}'.encode() in made
    model = result['manifest']['model'].encode()
    path.write_bytes(made.replace(model, b'small-16-of-before'))  # as --force, killed, leaves it
    assert path.read_bytes() != made
    done = CliRunner().invoke(app, [*words[:-1], 'none'])
    assert done.exit_code == 0 and 'report: ' not in done.stdout, done.output
    changed = json.loads(path.read_bytes())
    changed['cells'][0]['source'] = '# My notes'
    kept = json.dumps(changed).encode()
    path.write_bytes(kept)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and 'is kept: somebody has changed it' in done.stderr, done.output
    assert path.read_bytes() == kept
    path.write_bytes(made.replace(model, b'small-16-of-before'))
    invoked_twice()
    assert path.read_bytes() == made
    assert path.with_name('result.json').read_bytes() == written


@pytest.mark.parametrize('content', ['', '{}', '[1]', '{"cells": []}', 'notebook'])
def test_a_template_that_is_none(tmp_path, content):
    (tmp_path / 'template.ipynb').write_text(content)
    with pytest.raises(ValueError, match='template.ipynb'):
        report(tmp_path / 'template.ipynb', **QUICK)


# checkpoints of something else, checkpoints and model folders that are damaged


def test_a_checkpoint_is_of_its_images(folder, tmp_path):
    "The same names and the same configuration; the images have other sizes."
    others = tmp_path / 'others'
    shutil.copytree(folder, others)
    for file in others.rglob('*.png'):
        Image.new('L', (8, 8), int(file.stem) % 256).save(file)
    mine, theirs = of_folder(folder, epochs=1), of_folder(others, epochs=1)
    assert mine.hash == theirs.hash
    train(mine, retrieval_set(mine).read(16), folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match='other images or weights.*; delete it, or give'):
        train(theirs, retrieval_set(theirs).read(16), folder=tmp_path, progress=False)


def test_a_checkpoint_and_a_result_are_of_their_weights(tmp_path):
    file = tmp_path / 'weights.safetensors'
    save_file(HashModel('small', 16, 'none').backbone.state_dict(), file)
    config = resolve({'weights': str(file), 'epochs': 1}, **QUICK)
    data = retrieval_set(config).read(config.resize)
    train(config, data, folder=tmp_path, progress=False)
    began = sha256(file.read_bytes()).hexdigest()

    def replaced(*given, **options):
        state = HashModel('small', 16, 'none').backbone.state_dict()
        save_file({name: torch.zeros_like(value) for name, value in state.items()}, file)
        return evaluate(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('dcwh.experiment.evaluate', replaced)  # while the run goes on
        assert run(config, tmp_path / 'runs')['manifest']['weights_sha256'] == began
    with pytest.raises(ValueError, match='other images or weights.*; delete it, or give'):
        train(config, data, folder=tmp_path, progress=False)


def test_a_damaged_checkpoint_says_what_to_do(tmp_path):
    config = resolve(**QUICK)
    file = tmp_path / 'runs' / run_name(config) / 'checkpoint.pt'
    file.parent.mkdir(parents=True)
    for content in (b'', b'PK', *(whole(state) for state in ({'a': 1}, [1], torch.zeros(3), None))):
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match='checkpoint.pt cannot be used.*delete it to start anew'
        ) as error:
            run(config, tmp_path / 'runs')
        assert '\n' not in str(error.value)


def test_a_checkpoint_of_which_one_byte_is_wrong_is_not_gone_on_with(tmp_path, monkeypatch):
    def stop(*given, **more):
        write(*given, **more)
        raise KeyboardInterrupt

    write, config = Checkpoint.write, resolve(**{**QUICK, 'epochs': 2})
    data = retrieval_set(config).read(config.resize)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, 'write', stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, data, folder=tmp_path, progress=False)
    file = tmp_path / 'checkpoint.pt'
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x55
    file.write_bytes(content)
    with pytest.raises(ValueError, match='cannot be used .it cannot be read, .* is damaged.*anew'):
        train(config, data, folder=tmp_path, progress=False)


def test_a_checkpoint_with_another_history_is_not_gone_on_with(tmp_path):
    file, session = tmp_path / 'checkpoint.pt', {'made_by': {}, 'seconds': 1.0}
    for history in ([], ['1'], [{}, {}], 'e', {0: {}}):
        file.write_bytes(whole({'key': 'k', 'epoch': 1, 'history': history}))
        with pytest.raises(ValueError, match='its history does not have as many epochs'):
            load_checkpoint(file, 'k')
    for sessions in (
        None,
        [1],
        [{}],
        [{**session, 'seconds': 'long'}],
        [{**session, 'made_by': 1}],
    ):
        state = {'key': 'k', 'epoch': 1, 'history': [{}], 'sessions': {'sessions': sessions}}
        file.write_bytes(whole(state))
        with pytest.raises(ValueError, match='it does not fit'):
            load_checkpoint(file, 'k', sessions=Sessions({}))
    file.write_bytes(whole(state | {'sessions': {'sessions': [session]}}))
    assert load_checkpoint(file, 'k', sessions=Sessions({})) == [{}]


def whole(state):
    "What torch writes of it."
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_models_of_a_run_follow_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        HashModel('small', 8, 'none', image_size=16).save_pretrained(tmp_path / 'model')
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / 'model').iterdir()} == {
        '0o600'
    }
    HashModel('small', 8, 'none', image_size=16).save_pretrained(tmp_path / 'open')
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / 'open').iterdir()} == {
        0o666 & ~before
    }


def test_only_a_name_that_says_so_is_looked_for_on_the_hub(tmp_path, monkeypatch):
    asked = []

    def fetched(name, file, **options):
        asked.append((name, file, options))
        return tmp_path / 'model' / file

    monkeypatch.setattr('dcwh.model.hf_hub_download', fetched)
    for where in ('me/my-model', 'runs/nowhere/model', 'my-model', tmp_path / 'nowhere'):
        with pytest.raises(FileNotFoundError, match='is not there'):
            HashModel.from_pretrained(where)
    assert not asked
    model = HashModel('small', 8, 'none', image_size=16)
    model.save_pretrained(tmp_path / 'model')
    assert (
        HashModel.from_pretrained('hf://me/my-model', revision='v1').identity() == model.identity()
    )
    assert asked == [
        ('me/my-model', file, {'revision': 'v1'}) for file in ('model.safetensors', 'config.json')
    ]


def test_no_weights_are_downloaded_for_a_saved_model(tmp_path, monkeypatch):
    model = HashModel('resnet18', 8, 'none', image_size=32)
    model.save_pretrained(tmp_path)
    held = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(
        json.dumps({**held, 'weights': 'default'})
    )  # as a stranger may write it
    monkeypatch.setattr(
        'torch.hub.load_state_dict_from_url', lambda *_, **__: pytest.fail('a download')
    )
    assert HashModel.from_pretrained(tmp_path).identity() == model.identity()


# what is seen while a run goes on


def test_epochs_are_told_and_tracked(tmp_path, capsys):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ['run', '--recipe', 'quick', '--detail', 'none', '--runs', str(tmp_path)]
    made = CliRunner().invoke(app, [*words, '--tracker', 'tensorboard'])
    assert not made.exit_code, made.output
    folder = next(tmp_path.rglob('result.json')).parent
    history = read_result(folder / 'result.json')['history']
    assert [line[:14] for line in made.stderr.splitlines()] == [
        f'epoch {n} of 4: ' for n in (1, 2, 3, 4)
    ]
    assert f'model: {folder / "model"}' in made.stdout
    with open(folder / 'history.csv') as file:
        rows = list(csv.DictReader(file))
    assert [float(row['loss']) for row in rows] == [epoch['loss'] for epoch in history]
    events = EventAccumulator(str(folder / 'tensorboard')).Reload().Scalars('loss')
    assert [event.step for event in events] == [1, 2, 3, 4]
    assert [event.value for event in events] == pytest.approx([epoch['loss'] for epoch in history])
    refused = CliRunner().invoke(app, [*words, '--seed', '1', '--tracker', 'paper'])
    assert refused.exit_code == 2 and "tracker is 'paper'; installed are" in refused.stderr


def test_every_message_counts_epochs_from_1(tmp_path, caplog):
    caplog.set_level('INFO', 'dcwh')
    run(resolve(**QUICK, epochs=2, settings={'sigma': 100}), tmp_path)  # centres are held
    told = [int(n) for n in re.findall(r'epoch (\d+)', caplog.text)]
    assert 'epoch 1: two class means are only' in caplog.text and set(told) == {1, 2}


def test_a_row_an_epoch_while_it_goes_on_and_where_it_was_resumed(tmp_path):
    config = resolve(**QUICK)
    killed, said = python(KILL_IN_EPOCH + RUN, tmp_path)
    assert killed == -signal.SIGKILL, said
    assert (
        len(next(tmp_path.rglob('history.csv')).read_text().splitlines()) == 2
    )  # a head, an epoch
    again = CliRunner().invoke(
        app,
        [
            'run',
            '--recipe',
            'quick',
            '--bits',
            str(config.bits),
            '--detail',
            'none',
            '--runs',
            str(tmp_path),
        ],
    )
    assert again.stderr.splitlines()[0] == 'resumed at epoch 2 of 4'


@pytest.mark.whole
def test_a_compiled_network_learns_the_same(tmp_path):
    plain = run(resolve(**QUICK, optimizer='sgd', lr=0.01), tmp_path)
    compiled = run(resolve({'compile': 'default'}, **QUICK, optimizer='sgd', lr=0.01), tmp_path)
    for one, other in zip(plain['history'], compiled['history'], strict=True):
        assert other['loss'] == pytest.approx(one['loss'], rel=1e-3)
    assert plain['config']['hash'] != compiled['config']['hash']
    assert compiled['metrics']['map'] == pytest.approx(plain['metrics']['map'], abs=0.01)


# templates of one's own


def own_template(path, **defaults):
    "The run template with other defaults and a cell of its own."
    notebook = json.loads(TEMPLATE.read_text())
    (cell,) = (c for c in notebook['cells'] if c['metadata'].get('tags') == ['parameters'])
    source = ''.join(cell['source'])
    for name, default in defaults.items():
        source, found = re.subn(rf'(?m)^({name}: \w+ = ).*?(  #.*)?$', rf'\g<1>{default!r}', source)
        assert found == 1
    cell['source'] = source
    notebook['cells'] = [*notebook['cells'][:7], {**cell, 'metadata': {}, 'source': '"my own"'}]
    notebook['cells'][-1]['id'] = 'own'
    path.write_text(json.dumps(notebook))
    return path


def held(tmp_path):
    "Configurations of the results, and the folders that have reports."
    files = results(tmp_path)
    return [read_result(file)['config'] for file in files], [
        file.parent for file in files if file.with_name('report.ipynb').is_file()
    ]


def test_run_report_row_and_folder_of_an_own_template_are_of_one_configuration(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    own = {'bits': 8, 'epochs': 1, 'settings': {'map_top_k': 5, 'sigma': 2.0}, 'seed': 4}
    own_template(tmp_path / 'mine.ipynb', recipe='quick', resume=False, **own)
    words = ['run', '--template', 'mine.ipynb', '--detail', 'brief', '--record', '--modified']
    done = CliRunner().invoke(app, [*words, '--seed', '5', '--set', 'sigma=3'])
    assert done.exit_code == 0, done.output
    (config,), (folder,) = held(tmp_path)
    meant = {**own, 'seed': 5, 'map_top_k': 5, 'sigma': 3, 'recipe': 'quick'}
    assert all(config[name] == value for name, value in meant.items() if name != 'settings')
    assert config['hash'] in (folder / 'report.ipynb').read_text()
    assert [row['hash'] for row in read_table(tmp_path / 'reports/digits.csv')] == [config['hash']]
    done = CliRunner().invoke(app, [*words, '--seed', '5', '--set', 'sigma=3'])
    assert 'finished' in done.output
    alone = ['run', '--template', 'mine.ipynb', '--detail', 'none', '--set', 'epochs=2']
    done = CliRunner().invoke(app, [*alone, '--bits', '16', '--runs', 'alone'])
    assert done.exit_code == 0, done.output
    (config,), reports = held(tmp_path / 'alone')
    assert (config['bits'], config['epochs'], config['sigma']) == (16, 2, 2) and not reports


def with_parameters(path, cell='', forgotten=(), **own):
    "The run template with parameters and a cell of its own. What is not forgotten is handed on."
    notebook = json.loads(own_template(path, recipe='quick').read_text())
    for one in notebook['cells']:
        source = ''.join(one['source'])
        if one['metadata'].get('tags') == ['parameters']:
            source += ''.join(f'\n{name} = {default!r}' for name, default in own.items())
        last = '    evaluate_on=evaluate_on,\n'
        handed = ''.join(f'    {name}={name},\n' for name in own if name not in forgotten)
        one['source'] = source.replace(last, last + handed)
    notebook['cells'][-1]['source'] = cell
    path.write_text(json.dumps(notebook))


def of_template(*words):
    return CliRunner().invoke(app, ['run', '--template', 'mine.ipynb', *words])


def test_parameters_of_an_own_template_can_be_set(tmp_path, monkeypatch):
    "The kernel has the values, too, also of parameters that are no settings."
    monkeypatch.chdir(tmp_path)
    own = {'head_lr': 0.03, 'sigma': 0.0, 'flip': True, 'optimizer': '', 'map_top_k': 100}
    cell = "print(f'{head_lr:.1f}, {epochs:d}, {top:d}')"
    with_parameters(tmp_path / 'mine.ipynb', cell, ('top',), **own, top=10)
    meant = {'head_lr': 0.1, 'sigma': 3, 'flip': False, 'optimizer': 'sgd', 'epochs': 1}
    given = {**meant, 'top': 20}
    words = [word for name, value in given.items() for word in ('--set', f'{name}={value}'.lower())]
    done = of_template('--detail', 'brief', *words)
    assert done.exit_code == 0, done.output
    (config,), (folder,) = held(tmp_path)
    assert meant | {'map_top_k': 100} == {name: config[name] for name in (*meant, 'map_top_k')}
    assert '0.1, 1, 20' in (folder / 'report.ipynb').read_text()
    for name in ('detail', 'runs'):
        done = of_template('--set', f'{name}=brief')
        assert done.exit_code == 2 and f'give --{name} brief, without --set' in done.output
    assert "top is 'x'; it should be int, such as 10" in of_template('--set', 'top=x').output
    assert 'made anew by --force' in of_template('--set', 'resume=false').output


def test_another_value_of_an_own_parameter_is_another_report(tmp_path, monkeypatch):
    "The run is not made again. Without the option, the default is meant."
    monkeypatch.chdir(tmp_path)
    with_parameters(
        tmp_path / 'mine.ipynb', "print('shown', top, tag)", ('top', 'tag'), top=10, tag='a'
    )
    words = ['--detail', 'brief', '--set', 'epochs=1']
    for more, said, again in (
        (['--set', 'top=20', '--set', 'tag=2026'], 'shown 20 2026', False),
        (['--set', 'top=20', '--set', 'tag=2026'], 'shown 20 2026', True),
        (['--set', 'top=30'], 'shown 30 a', False),
        ([], 'shown 10 a', False),
        ([], 'shown 10 a', True),
    ):
        done = of_template(*words, *more)
        assert done.exit_code == 0 and ('finished' in done.output) == again, done.output
        (result,) = results(tmp_path)
        assert said in result.with_name('report.ipynb').read_text()
    with_parameters(tmp_path / 'mine.ipynb', '', ('tracker',), tracker='')
    assert 'has a parameter tracker, as `report` has one' in of_template().output


def test_a_zero_of_an_own_template_is_the_recipes_or_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_parameters(tmp_path / 'mine.ipynb', head_lr=0.0)
    done = of_template()
    said = "head_lr is 0 as a parameter, which could mean the recipe's 1, too"
    assert done.exit_code == 2 and said in done.output and not Path('runs').exists()
    done = of_template('--detail', 'brief', '--set', 'head_lr=0', '--set', 'epochs=1')
    assert done.exit_code == 0, done.output
    assert [config['head_lr'] for config in held(tmp_path)[0]] == [0]


def test_a_report_shows_the_run_that_it_is_made_for(tmp_path, monkeypatch):
    "Not the one of a template that forgets a parameter. That one is not begun."
    monkeypatch.chdir(tmp_path)
    with_parameters(tmp_path / 'mine.ipynb', '', ('momentum',), momentum=0.5)
    done = of_template('--detail', 'brief', '--set', 'epochs=1')
    said = (
        'the template runs momentum=0.9, and its parameters say momentum=0.5; hand all of them on'
    )
    assert done.exit_code == 2 and said in done.output, done.output
    assert [config['momentum'] for config in held(tmp_path)[0]] == [0.5]
    assert len(list(tmp_path.glob('runs/*/dcwh-*'))) == 1


def note(report):
    "Add a note to a report, as somebody does in JupyterLab."
    notebook = nbformat.read(report, as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell('a day of thought'))
    nbformat.write(notebook, report)
    return report.read_bytes()


def test_an_executed_notebook_knows_whether_somebody_has_changed_it(tmp_path):
    template, made = tmp_path / 'template.ipynb', tmp_path / 'made.ipynb'
    parameters = nbformat.v4.new_code_cell('n = 1', metadata={'tags': ['parameters']})
    cells = [parameters, nbformat.v4.new_code_cell('n')]
    kernel = {'kernelspec': {'name': 'python3', 'language': 'python', 'display_name': 'python3'}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), template)
    assert not is_changed(made)
    execute(template, made, {'n': 2})
    assert not is_changed(made)
    noted = note(made)
    assert is_changed(made) and is_changed(template)
    with pytest.raises(ValueError, match='made.ipynb is there: somebody has changed it'):
        execute(template, made, {'n': 3})
    assert made.read_bytes() == noted
    execute(template, made, {'n': 3}, force=True)
    assert not is_changed(made) and 'n = 3' in made.read_text()


def test_another_template_or_detail_makes_its_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_template(tmp_path / 'mine.ipynb')
    words = ['run', '--recipe', 'quick', '--bits', '8', '--set', 'epochs=1', '--detail']

    def again(*more):
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code == 0, done.output
        ((folder,),) = held(tmp_path)[1:]
        made = (folder / 'report.ipynb').read_text()
        return 'finished' in done.output, 'my own' in made, 'figures.precision_recall' in made

    assert again('brief') == (False, False, False)
    before = results(tmp_path)[0].stat().st_mtime_ns
    assert again('brief') == (True, False, False)
    assert again('full') == (False, False, True)  # by the same codes
    assert again('full') == (True, False, True)
    assert again('full', '--template', 'mine.ipynb')[:2] == (False, True)
    assert again('full', '--template', 'mine.ipynb')[:2] == (True, True)
    assert again('brief', '--template', 'mine.ipynb')[:2] == (False, True)
    assert again('none')[0]
    assert results(tmp_path)[0].stat().st_mtime_ns == before
    # a report that somebody has changed is kept, and never lost to a run that would be made again
    report = results(tmp_path)[0].with_name('report.ipynb')
    noted = note(report)
    for more in (['brief'], ['full', '--template', 'mine.ipynb'], ['brief', '--report', report]):
        done = CliRunner().invoke(app, [*words, *map(str, more)])
        assert done.exit_code == 0 and 'finished' in done.stdout, done.output
        assert done.stderr.startswith(f'{report.relative_to(tmp_path)} is kept') or (
            done.stderr.startswith(f'{report} is kept')
        )
        assert report.read_bytes() == noted
    other = CliRunner().invoke(app, [*words, 'brief', '--seed', '1', '--report', str(report)])
    report.with_name('query.npz').unlink()
    for done in (other, CliRunner().invoke(app, [*words, 'brief'])):
        assert done.exit_code == 2 and 'somebody has changed it' in done.stderr, done.output
        assert report.read_bytes() == noted and len(results(tmp_path)) == 1
    for detail in ('brief', 'none'):
        done = CliRunner().invoke(app, [*words, detail, '--template', 'nowhere.ipynb'])
        assert done.exit_code == 2 and 'nowhere.ipynb is not there' in done.stderr


def net_of(activation, seed=0):
    "A backbone of one's own, seeded."
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32), activation())


def test_a_checkpoint_is_of_the_model_that_was_trained(tmp_path):
    "Of two models of one shape, the second took the weights of the first."
    config = resolve(**QUICK, epochs=1)
    data = retrieval_set(config).read(16)
    first = train(config, data, net_of(nn.ReLU), tmp_path, progress=False)
    still = net_of(nn.ReLU)
    still[1].requires_grad_(False)
    for other in (net_of(nn.Tanh), net_of(nn.ReLU, seed=1), still, None):
        with pytest.raises(ValueError, match='a model that started otherwise'):
            train(config, data, other, tmp_path, progress=False)
    again = train(config, data, net_of(nn.ReLU), tmp_path, progress=False)
    assert again.history == first.history and again.model.identity() == first.model.identity()


@pytest.mark.parametrize('name, sizes', [('image_size', (32, 0)), ('resize', (16, 20))])
def test_a_model_for_images_of_other_sizes_is_refused(name, sizes):
    "It was trained at the size of the configuration, and encoded at its own."
    config = resolve(**QUICK, epochs=1)
    model = HashModel('small', 16, 'none', *sizes)
    with pytest.raises(ValueError, match=f'^{name} of the model is'):
        train(config, retrieval_set(config).read(16), model, progress=False)
