"""What pip installs: the modules and the recipes and nothing of development; importable without
nbdev, fastcore and execnb."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {p.name for p in (ROOT / 'dcwh').glob('*.py')}
RECIPES = {p.name for p in (ROOT / 'data/recipes').glob('*.yaml')}

# imports every module from the folder argv[1] as if the development tools were not there
IMPORT = """
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('fastcore', 'nbdev', 'execnb'):
            raise ImportError(f'{name} is not there')
sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
import dcwh
assert dcwh.__file__.startswith(sys.argv[1]), dcwh.__file__
names = sorted(m.name for m in pkgutil.iter_modules(dcwh.__path__))
for n in names: importlib.import_module('dcwh.' + n)
from importlib.resources import files
print(*names, *(p.name for p in files('dcwh.recipes').iterdir() if p.name.endswith('.yaml')))
"""


def run(*args, cwd):
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The sdist, and the wheel made from it, of a copy of the tree; no network is needed."
    tree, out = tmp_path_factory.mktemp('tree') / 'dcwh', tmp_path_factory.mktemp('dist')
    ignored = shutil.ignore_patterns(
        '.*', 'cache', 'runs', 'reports', 'build', 'dist', '*.egg-info', '__pycache__'
    )
    shutil.copytree(ROOT, tree, ignore=ignored)
    run('-m', 'build', '--no-isolation', '--outdir', out, tree, cwd=out)
    return next(out.glob('*.tar.gz')), next(out.glob('*.whl'))


def test_sdist_has_all_that_a_build_reads(built):
    with tarfile.open(built[0]) as archive:
        held = {'/'.join(Path(n).parts[1:]) for n in archive.getnames()}
    assert {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'} <= held
    assert {f'dcwh/{m}' for m in MODULES} | {f'data/recipes/{r}' for r in RECIPES} <= held
    assert not [n for n in held if n.endswith('.ipynb')]


def test_wheel_has_modules_and_recipes_only(built):
    with zipfile.ZipFile(built[1]) as archive:
        held = {n for n in archive.namelist() if '.dist-info/' not in n}
    assert held == {f'dcwh/{m}' for m in MODULES} | {
        f'dcwh/recipes/{r}' for r in RECIPES | {'__init__.py'}
    }


def test_wheel_imports_without_development_tools(built, tmp_path):
    run(
        '-m',
        'pip',
        'install',
        '--quiet',
        '--no-deps',
        '--no-index',
        '--target',
        tmp_path / 'site',
        built[1],
        cwd=tmp_path,
    )
    said = run('-c', IMPORT, tmp_path / 'site', cwd=tmp_path).split()
    assert {n + '.py' for n in said if not n.endswith('.yaml')} == MODULES - {'__init__.py'} | {
        'recipes.py'
    }
    assert {n for n in said if n.endswith('.yaml')} == RECIPES


def test_editable_install_sees_the_recipes():
    assert {p.name for p in files('dcwh.recipes').iterdir() if p.name.endswith('.yaml')} == RECIPES
