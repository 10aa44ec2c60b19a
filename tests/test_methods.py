"""A method of one's own: by name, by place, in runs, reports, grids, tables and cards."""

import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from dcwh.cli import app
from dcwh.config import Config, described, resolve
from dcwh.experiment import finished, recorded, report, run
from dcwh.loss import DCWHLoss
from dcwh.methods import BUILT_IN, METHODS, Balanced, method_of, register
from dcwh.results import read_result, read_table, record, row_of_config, run_name
from dcwh.sources import BENCHMARKS, SOURCES

pytestmark = pytest.mark.usefixtures('begun')

ROOT = Path(__file__).parents[1]
QUICK = {'dataset': 'digits', 'bits': 8, 'recipe': 'quick', 'epochs': 1}
SOURCE = """
from torch import nn
from dcwh.criterion import Criterion, in_full_precision, label_loss

class MyLoss(Criterion):
    "A linear classifier on scaled outputs."

    def __init__(self, num_classes, bits, *, scale=2.0):
        super().__init__()
        self.classifier, self.scale = nn.Linear(bits, num_classes), scale

    @in_full_precision
    def terms(self, h, y, index=None):
        return {'class': label_loss(self.classifier(self.scale * h), y)}
"""


@pytest.mark.parametrize(
    'file', sorted((ROOT / 'data/recipes').glob('*.yaml')), ids=lambda f: f.stem
)
def test_every_recipe_completes_every_method(file):
    name = file.stem if file.stem in {*SOURCES, *BENCHMARKS} else f'folder/{file.stem}'
    sections = yaml.safe_load(file.read_text())
    for part in sections.values():
        assert part.get('methods', {}).keys() <= set(BUILT_IN)
    for method in BUILT_IN:
        for recipe in {'default', 'quick', *sections}:
            config = resolve(dataset=name, method=method, bits=16, recipe=recipe)
            assert config.method == method and config.sigma > 0


@pytest.fixture
def place(tmp_path, monkeypatch, request):
    "package.module:Class in the current folder, of a package that no other test has."
    package = tmp_path / f'mine_{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / 'losses.py').write_text(SOURCE)
    for name in ('nbs', 'data'):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    return f'{package.name}.losses:MyLoss'


@pytest.fixture
def mine(place):
    "The same, registered as `mine`."
    made = method_of(place)
    METHODS['mine'] = made
    yield made
    METHODS.pop('mine', None)


def edited(file, text):
    "A module as somebody changes it: later. Within a second Python takes it for the same."
    later = file.stat().st_mtime + 2
    file.write_text(text)
    os.utime(file, (later, later))


def shell(*words):
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.mark.parametrize('method', BUILT_IN)
def test_settings_are_told_as_a_run_gets_them(method):
    for file in sorted((ROOT / 'data/recipes').glob('*.yaml')):
        dataset = file.stem if file.stem in SOURCES else f'folder/{file.stem}'
        told = {row['name']: row['default'] for row in described(dataset, method=method)}
        config = resolve(dataset=dataset, method=method, bits=16)
        assert told | {'bits': 16, 'sigma': config.sigma} == config.model_dump()


def test_a_shell_runs_it_records_it_and_does_not_run_it_again(place):
    words = ['run', '--method', place, '--bits', 8, '--recipe', 'quick', '--set', 'epochs=1']
    words += ['--detail', 'none', '--record', '--modified']
    first = shell(*words, '--set', 'method_settings={"scale": 3}')
    assert first.exit_code == 0, first.output
    config = resolve({'method_settings': {'scale': 3}}, method=place, **QUICK)
    result = finished(config)
    assert result['config']['method'] == place
    assert result['config']['method_settings'] == {'scale': 3}
    assert len(result['config']['method_code']) == 16
    folder = run_name(config)
    assert ':' not in folder and f'/{place.replace(":", ".")}-8-seed0-' in folder
    assert row_of_config(config)['method'] == place
    again = shell(*words, '--set', 'method_settings={"scale": 3}')
    assert again.output.startswith('finished: mAP ')


def test_papermill_finds_it(place):
    made = report(ROOT / 'nbs/templates/run.ipynb', method=place, detail='brief', **QUICK)
    assert place in made.read_text()
    assert '"output_type": "error"' not in made.read_text()


def test_changed_code_is_another_run(place, monkeypatch):
    before = resolve(method=place, **QUICK)
    run(before)
    assert recorded(resolve(method=place, **QUICK))
    file = Path(place.split(':')[0].replace('.', '/') + '.py')
    edited(file, SOURCE.replace('2.0', '4.0'))
    monkeypatch.delitem(sys.modules, place.split(':')[0])  # as in a new process
    after = resolve(method=place, **QUICK)
    assert after.method_code != before.method_code
    assert after.method_settings == {'scale': 4}
    assert run_name(after) != run_name(before)
    assert recorded(after) is None
    with pytest.raises(ValueError, match='method_code is .* leave method_code out'):
        resolve(before.model_dump())


def test_a_table_is_read_where_the_method_is_not(place, monkeypatch):
    config = resolve(method=place, **QUICK)
    run(config)
    record(finished(config), modified=True)
    plain = resolve(method='ce', **QUICK)
    run(plain)
    record(finished(plain), modified=True)
    monkeypatch.delitem(sys.modules, place.split(':')[0])
    Path(place.split('.')[0]).rename('elsewhere')
    rows = read_table('reports/digits.csv')
    assert {row['method'] for row in rows} == {place, 'ce'}
    made = shell('compare', 'reports', '--out', 'compare.ipynb')
    assert made.exit_code == 0, made.output
    said = Path('compare.ipynb').read_text()
    assert place in said and '"output_type": "error"' not in said
    assert place.split(':')[0] not in sys.modules
    with pytest.raises(ValueError, match='^method .* there is no module'):
        resolve(method=place, **QUICK)


def test_own_and_built_in_methods_stand_in_one_group(place):
    pytest.importorskip('pandas')
    from dcwh.results import comparison, read_results, summary

    for method in (place, 'ce', 'dcwh'):
        config = resolve(method=method, **QUICK)
        run(config)
        record(finished(config), modified=True)
    cells = comparison(summary(read_results('reports')))
    assert cells['group'].nunique() == 1
    names = ' '.join(cells['method'])
    assert f'{place}, method_code=' in names and 'scale=2' in names


def test_a_registered_name_is_known_at_once(mine):
    config = resolve(method='mine', **QUICK)
    assert run(config)['config']['method'] == 'mine'
    assert config.method_code == mine.code
    assert run_name(config).startswith('digits-quick/mine-8-seed0-')


def test_a_name_is_given_once_and_fits_into_names_of_files(mine):
    builder = type(mine.build(resolve(method='mine', **QUICK), 10, 30, None))
    for name in ('mine', 'dcwh', 'ce'):
        with pytest.raises(ValueError, match=f'^method {name} is there already'):
            register(name, builder)
    for name in ('a/b', '..', 'a:b', '', 'a b', None, 'x' * 101):
        with pytest.raises(ValueError, match='^name is'):
            register(name, builder)


WRONG = {
    'no_such_module:MyLoss': 'there is no module no_such_module, neither in',
    '{module}:Yours': 'has no Yours',
    '{module}:nn': 'is <module .* give a subclass of dcwh.criterion.Criterion',
    '{module}:Criterion': 'has no method terms',
    'torch.nn:Linear': 'is a class, and no subclass of dcwh.criterion.Criterion',
    '{module}:label_loss': 'asks for logits.* which is not known; known are num_classes, bits',
    'mine': "unknown method 'mine'; known are dcwh, .*package.module:Class",
    'a/b:C': "unknown method 'a/b:C'",
}


@pytest.mark.parametrize('method', WRONG)
def test_what_is_no_method_is_said_in_a_line_before_anything_starts(place, method):
    name = method.format(module=place.split(':')[0])
    with pytest.raises(ValueError, match=WRONG[method]) as error:
        resolve(method=name, **QUICK)
    assert '\n' not in str(error.value) and name in str(error.value)
    done = shell('run', '--method', name, '--detail', 'none')
    assert done.exit_code == 2
    assert not Path('runs').exists()


def test_a_grid_asks_for_it(place):
    pytest.importorskip('snakemake')
    grid = {'grid': [{**QUICK, 'method': [place, 'ce']}], 'modified': True}
    Path('grid.yaml').write_text(json.dumps(grid))
    from test_grid import start

    words = ['--configfile', 'grid.yaml', '--cores', '1', '--dry-run', '--printshellcmds']
    plan = start(Path.cwd(), *words)
    assert plan.returncode == 0, plan.stderr[-2000:]
    assert f'--method {place}' in plan.stdout + plan.stderr
    assert run_name(resolve(method=place, **QUICK)) in plan.stdout + plan.stderr


def test_a_card_says_that_the_method_is_no_part_of_dcwh(place):
    if not importlib.util.find_spec('jinja2'):
        pytest.skip('cards need jinja2')
    from dcwh.sharing import card

    config = resolve(method=place, **QUICK)
    run(config)
    said = str(card(read_result(Path('runs') / run_name(config) / 'result.json')))
    assert 'The method is no part of dcwh' in said
    assert 'arXiv:1803.04137' not in said


def test_built_in_methods_have_no_code_hash_and_keep_their_names():
    for name in BUILT_IN:
        config = resolve(method=name, **QUICK)
        assert config.method_code == ''
        assert 'method_code' not in config.model_dump(exclude_defaults=True)
    assert resolve(dataset='digits', bits=16).hash == '21f0064c5fe58151'
    assert Config.model_fields['method_code'].default == ''


def test_a_function_is_given_what_it_asks_for():
    asked = {}

    def build(config, images, *, weight=1.0):
        asked.update(config=config, images=images, weight=weight)
        return method_of('ce').build(SimpleNamespace(bits=8, method_settings={}), 10, 30, None)

    register('asking', build)
    try:
        config = resolve({'method_settings': {'weight': 5}}, method='asking', **QUICK)
        METHODS['asking'].build(config, 10, 1438, None)
    finally:
        del METHODS['asking']
    assert asked == {'config': config, 'images': 1438, 'weight': 5}


def test_a_method_that_would_fail_is_told_before_anything_is_written(place, monkeypatch):
    file = Path(place.split(':')[0].replace('.', '/') + '.py')
    for wrong, said in (
        ("{}['mine']", "KeyError: 'mine'"),
        ("{'held': h.square().mean()}", "called 'held'"),
        ("{'loss': h.square().mean()}", "called 'loss'"),
    ):
        terms = f'    def terms(self, h, y, index=None):\n        return {wrong}\n'
        edited(file, 'from dcwh.criterion import Criterion\nclass MyLoss(Criterion):\n' + terms)
        monkeypatch.delitem(sys.modules, place.split(':')[0], raising=False)
        done = shell('run', '--method', place, '--recipe', 'quick', '--detail', 'none')
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1, done.output
        assert done.stderr.startswith(f'method {place} fails on a batch') and said in done.stderr
        assert not Path('runs').exists()


def test_a_method_that_does_not_begin_as_a_module_is_told(place, monkeypatch):
    file = Path(place.split(':')[0].replace('.', '/') + '.py')
    text = 'from dcwh.criterion import Criterion\nclass MyLoss(Criterion):\n'
    text += '    def __init__(self, num_classes, bits):\n        pass\n'
    edited(file, text + "    def terms(self, h, y, index=None):\n        return {'a': h.mean()}\n")
    monkeypatch.delitem(sys.modules, place.split(':')[0], raising=False)
    done = shell('run', '--method', place, '--recipe', 'quick', '--detail', 'none')
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1, done.output
    assert 'its __init__ has to call super().__init__() first' in done.stderr


def test_centres_that_keep_kin_near_want_every_epoch_begun():
    "A batch after `end_epoch` would be added to the sums of the epoch before."
    criterion = Balanced(DCWHLoss(4, 8), 0.5)
    h, y = torch.randn(40, 8), torch.arange(40) % 4
    criterion.begin_epoch(0, 2)
    criterion(h, y)
    criterion.end_epoch()
    with pytest.raises(RuntimeError, match='a batch came after end_epoch; call begin_epoch'):
        criterion(h, y)
    criterion.begin_epoch(1, 2)
    criterion(h, y)
    assert criterion.sums[:, -1].sum() == 40
