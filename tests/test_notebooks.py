"""Every notebook runs from top to bottom and prints what is committed; dcwh/ and README.md are what
the notebooks say; the rules of CONTRIBUTING that a machine can see."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from outputs import comparable, same, same_but_counts
from programs import python

ROOT = Path(__file__).parents[1]
NUMBERED = sorted((ROOT / 'nbs').glob('[0-9][0-9]_*.ipynb'))
OTHERS = 'index.ipynb', 'tour.ipynb', 'experiments/*.ipynb', 'tutorials/*.ipynb'
NOTEBOOKS = [*NUMBERED, *(p for others in OTHERS for p in sorted((ROOT / 'nbs').glob(others)))]
FLOOR = {p.stem.split('_', 1)[1]: int(p.stem[:2]) for p in NUMBERED}
ALL = sorted(
    p
    for p in (ROOT / 'nbs').rglob('*.ipynb')
    if not any(part.startswith(('.', '_')) for part in p.relative_to(ROOT).parts)
)
MODULES = sorted((ROOT / 'dcwh').glob('*.py'))
LONGEST = 60  # lines of an exported cell
LIMIT = 900  # seconds that a notebook may take
IMAGES = {'51ad798f', '98e3e799'}  # tutorials on the digits where CIFAR-10 is not at hand
ON_IMAGES = [p for p in NOTEBOOKS if p.stem in ('own_images', 'search')]
LOCAL = {  # what is another on another processor:
    'e90a65e1',  # answers and name of a model
    '204e9021',  # answers of a model
    '29214d51',  # the name of the processor
}
# of a training there: counts may differ
COUNTED = {'fd3ad22e', '35c3cf26', 'ec2e0c7d', 'eba8b0b9', '0c3d9245'}
BY_HAND = '__init__.py', '__main__.py'  # names handed on, python -m dcwh: of no notebook

# one process a notebook, as a reader has: what one of them imports or seeds cannot help the next
RUN = """
import json, os, sys
import nbdev
from pathlib import Path
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.test import test_nb

class Keeping(CaptureShell):
    "Keeps what each cell gives, by its id."
    given = {}
    def cell(self, cell, **settings):
        cell.outputs = []
        super().cell(cell, **settings)
        if cell.cell_type == 'code':
            self.given[cell.id] = cell.outputs

test_nb.__globals__['CaptureShell'] = Keeping
nbdev.nbdev_export = lambda: None  # once for all, in test_package_is_what_notebooks_export
os.chdir(Path(sys.argv[1]).parent)
sys.path.insert(0, '')
os.environ.pop('IN_TEST', None)
config = get_config()
skipped = config.tst_flags.split()
ok, seconds = test_nb(Path(sys.argv[1]), skip_flags=skipped, basepath=config.config_path)
Path(sys.argv[2]).write_text(json.dumps(Keeping.given))
sys.exit(not ok)
"""


def name(path):
    return path.relative_to(ROOT).as_posix()


def run(args, cwd):
    "Run Python; fail with what it said if it fails."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT,
    )
    if done.returncode:
        pytest.fail(f'{args[-1]} failed:\n{done.stdout[-6000:]}', pytrace=False)


def exported(path):
    "The exported cells of a notebook, without their directives."
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == 'code' and re.match(
            r'\s*(#\|.*\n\s*)*#\|\s*export[is]?\b', cell.source
        ):
            yield re.sub(r'^\s*#\|.*\n?', '', cell.source, flags=re.MULTILINE)


def imported(tree, package='dcwh'):
    "The full names of all modules that a piece of code imports, at the top or inside functions."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            module = '.'.join(filter(None, [package if node.level else '', node.module]))
            yield from (
                (f'{module}.{alias.name}' for alias in node.names)
                if module == package
                else [module]
            )


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_runs_and_prints_what_it_says(path, tmp_path):
    runs_and_prints(without_images(path, tmp_path) if path in ON_IMAGES else path, tmp_path)


@pytest.mark.whole
@pytest.mark.skipif(not (ROOT / 'data/cache/cifar10').is_dir(), reason='CIFAR-10 is not here')
@pytest.mark.parametrize('path', ON_IMAGES, ids=name)
def test_on_images_it_prints_what_it_says(path, tmp_path):
    runs_and_prints(path, tmp_path)


def without_images(path, folder):
    "A copy of a notebook in a folder without data/cache: it takes the digits."
    copy = folder / path.relative_to(ROOT)
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / 'settings.ini', folder)
    return Path(shutil.copy(path, copy))


def runs_and_prints(path, tmp_path):
    tables = {p: p.read_bytes() for p in (ROOT / 'reports').glob('*.csv')}
    code, said = python(RUN, path, tmp_path / 'given.json', limit=LIMIT)
    if code == -signal.SIGKILL:
        said += f'\nkilled, after {LIMIT} s if by nobody else'
    if code:
        pytest.fail(f'{path} failed:\n{said[-6000:]}', pytrace=False)
    changed = [name(p) for p, before in tables.items() if p.read_bytes() != before]
    assert changed == [], 'they are not what the notebooks write; look at git diff and commit them'
    stale = differing(path, json.loads((tmp_path / 'given.json').read_text()))
    assert not stale, 'what these cells print is not what is committed; run the notebook again'


def differing(path, given):
    "Cells that were executed: the text that is committed, and the one that the code now gives."
    cells = [c for c in json.loads(path.read_text())['cells'] if c['id'] in given.keys() - LOCAL]
    pairs = {c['id']: (comparable(c['outputs']), comparable(given[c['id']])) for c in cells}
    fits = {cell: same_but_counts if cell in COUNTED else same for cell in pairs}
    stale = {cell: pair for cell, pair in pairs.items() if not fits[cell](*pair)}
    return {} if stale.keys() & IMAGES else stale


def test_outputs_are_compared():
    def printed(text):
        return {'output_type': 'stream', 'name': 'stdout', 'text': text}

    figure = {'output_type': 'display_data', 'data': {'image/png': '', 'text/plain': 'Figure'}}
    table = {'output_type': 'execute_result', 'data': {'text/html': '<b>mAP</b> 0.9'}}
    assert comparable([figure, printed('a\n'), table]) == comparable(
        [printed(['a\n']), table, figure]
    )
    assert comparable([printed('took 1.5 s in /tmp/x1')]) == comparable(
        [printed('took 20 s in /tmp/y')]
    )
    assert comparable([printed('10%|█ | 1/9\r100%|██| 9/9\nend')]) == comparable([printed('end')])
    card = 'its identity `{}`, its split `a4ad1c52aa1e1faa`'
    names = [card.format(name) for name in ('22d454f0313eddc8', 'b47c1d98b9f82476')]
    assert len({comparable([printed(text)]) for text in names}) == 1
    assert comparable([printed(names[0])]) != comparable([printed(names[0].replace('a4', 'b4'))])
    assert same('mAP 0.995, 1,000 images', 'mAP 0.997, 1,000 images')
    assert not same('mAP 0.995, 1,000 images', 'mAP 0.895, 1,000 images')
    assert not same('mAP 0.995', 'map 0.995') and not same('2 epochs', '3 epochs')
    assert not same('dcwh-16', 'dcwh-48')
    assert same_but_counts('5 of 9: 0.33', '8 of 9: 0.29')
    assert not same_but_counts('5 of 9: 0.33', '5 of 9: 0.03')
    assert not same_but_counts('5 of 9', '5 in 9')


def test_what_hangs_is_ended():
    code, _ = python('import time; time.sleep(3600)', limit=1)
    assert code == -signal.SIGKILL


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "What the notebooks, exported and cleaned on their own, give."
    root = tmp_path_factory.mktemp('project')
    for file in ('settings.ini', 'pyproject.toml'):
        shutil.copy(ROOT / file, root)
    shutil.copytree(ROOT / 'nbs', root / 'nbs')
    (root / 'dcwh').mkdir()
    run(['-c', 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()'], root)
    run(['-c', 'from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()'], root)
    return root


def test_package_is_what_notebooks_export(copy):
    here, there = (
        {p.name: p.read_text() for p in (root / 'dcwh').glob('*.py')} for root in (ROOT, copy)
    )
    for name in BY_HAND:
        here.pop(name)
        there.pop(name, None)
    assert here.keys() == there.keys(), (
        'dcwh/ and the notebooks differ in their modules; run: make export'
    )
    assert [m for m in here if here[m] != there[m]] == [], (
        'these modules differ from their notebooks; run: make export'
    )
    assert (ROOT / 'pyproject.toml').read_text() == (copy / 'pyproject.toml').read_text(), (
        'run: make export'
    )


@pytest.mark.parametrize('path', ALL, ids=name)
def test_is_clean(path, copy):
    dirty = path.read_text() != (copy / name(path)).read_text()
    assert not dirty, (
        'the notebook holds counters, run times or other noise; run: make clean-notebooks'
    )


@pytest.mark.parametrize('path', NUMBERED, ids=name)
def test_imports_from_lower_numbers_only(path):
    number = int(path.stem[:2])
    modules = {
        m.split('.')[1]
        for cell in exported(path)
        for m in imported(ast.parse(cell))
        if m.startswith('dcwh.') and m != 'dcwh.recipes'
    }
    wrong = {m for m in modules if FLOOR.get(m, 99) >= number}
    assert not wrong, (
        f'{path.name} imports dcwh.{", dcwh.".join(sorted(wrong))}, which does not stand lower'
    )


@pytest.mark.parametrize('path', NUMBERED, ids=name)
def test_exported_cells_are_short(path):
    long = {
        cell.split('\n')[0]: n
        for cell in exported(path)
        if (n := sum(bool(line.strip()) for line in cell.splitlines())) > LONGEST
    }
    assert not long, f'exported cells of {path.name} with more than {LONGEST} lines: {long}'


@pytest.mark.parametrize('path', MODULES, ids=name)
def test_needs_nothing_of_development(path):
    wrong = {
        m
        for m in imported(ast.parse(path.read_text()))
        if m.split('.')[0] in ('fastcore', 'nbdev', 'execnb')
    }
    assert not wrong, f'{path.name} imports {", ".join(sorted(wrong))}; users do not have it'


@pytest.mark.skipif(not (ROOT / 'nbs/index.ipynb').exists(), reason='nbs/index.ipynb is not there')
def test_readme_is_what_index_says():
    run(['workflow/readme.py', '--check'], ROOT)
