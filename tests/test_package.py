"""What pip installs: the modules and the recipes and nothing of development; importable without
nbdev, fastcore and execnb."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

import dcwh
import dcwh.sharing
from dcwh.cli import app

ROOT = Path(__file__).parents[1]
MODULES = {p.name for p in (ROOT / 'dcwh').glob('*.py')}
NAMES = {
    *('Codes', 'DCWHLoss', 'ClassWiseLoss', 'cube_loss', 'vertex_loss', 'TwoStep', 'evaluate'),
    *('HashRetrieval', 'METHODS', 'register', 'load', 'HashModel', 'Config', 'resolve', 'train'),
    *('run', 'CodeIndex', 'CodeParts'),
}
SHIPPED = {
    *(f'dcwh/recipes/{p.name}' for p in (ROOT / 'data/recipes').glob('*.yaml')),
    *(f'dcwh/superclasses/{p.name}' for p in (ROOT / 'data/superclasses').glob('*.csv')),
    *(f'dcwh/templates/{p.name}' for p in (ROOT / 'nbs/templates').glob('*.ipynb')),
    'dcwh/published/published.csv',
}

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
for n in names:
    module = importlib.import_module('dcwh.' + n)
    lost = [name for name in getattr(module, '__all__', ()) if not hasattr(module, name)]
    assert not lost, (n, lost)
from dcwh.files import SHIPPED, shipped
print(*names)
found = [p for kind in SHIPPED for p in shipped(kind, '').iterdir()]
print(*(p.relative_to(sys.argv[1]) for p in found))
"""


def run(*args, cwd, **env):
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=os.environ | env,
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
    assert {f'dcwh/{m}' for m in MODULES} <= held
    recipes = {name for name in held if name.startswith('data/recipes/')}
    assert {Path(name).name for name in recipes} == {
        p.name for p in (ROOT / 'data/recipes').iterdir()
    }
    notebooks = {name for name in held if name.endswith('.ipynb')}
    assert notebooks == {f'nbs/templates/{name}.ipynb' for name in ('run', 'compare', 'overlay')}


def test_wheel_has_modules_and_what_they_read(built):
    with zipfile.ZipFile(built[1]) as archive:
        held = {n for n in archive.namelist() if '.dist-info/' not in n}
    assert held == {f'dcwh/{m}' for m in MODULES} | {'dcwh/py.typed'} | SHIPPED


@pytest.fixture(scope='module')
def site(built, tmp_path_factory):
    "A folder of packages with the wheel in it, and nothing beside it."
    site = tmp_path_factory.mktemp('site')
    flags = '--quiet', '--no-deps', '--no-index', '--target'
    run('-m', 'pip', 'install', *flags, site, built[1], cwd=site)
    return site


def test_wheel_imports_without_development_tools(site, tmp_path):
    modules, files = run('-c', IMPORT, site, cwd=tmp_path).splitlines()
    assert {f'{name}.py' for name in modules.split()} == MODULES - {'__init__.py'}
    assert set(files.split()) == SHIPPED


@pytest.mark.parametrize('detail', ['none', pytest.param('brief', marks=pytest.mark.whole)])
def test_wheel_makes_a_run_and_a_report_in_any_folder(detail, site, tmp_path):
    "With a folder called dcwh in it: the package is found all the same."
    (tmp_path / 'dcwh').mkdir()
    asked = '--dataset', 'digits', '--bits', '8', '--recipe', 'quick', '--detail', detail
    words = '-m', 'dcwh', 'run', *asked, '--set', 'epochs=1'
    assert 'mAP' in run(*words, cwd=tmp_path, PYTHONPATH=str(site))
    assert list(tmp_path.glob('runs/digits-quick/*/result.json'))
    if detail == 'none':
        return
    assert list(tmp_path.glob('runs/digits-quick/*/report.ipynb'))
    run('-m', 'dcwh', 'compare', 'runs', '--out', 'all.ipynb', cwd=tmp_path, PYTHONPATH=str(site))
    assert 'report' in (tmp_path / 'all.ipynb').read_text()


def test_editable_install_is_found_from_any_folder(tmp_path):
    "Also where a folder is called dcwh, such as beside a clone."
    (tmp_path / 'dcwh').mkdir()
    place = run('-c', 'import dcwh; print(dcwh.__file__)', cwd=tmp_path, PYTHONPATH='').strip()
    assert (Path(place).parents[1] / 'settings.ini').is_file()


def test_import_is_quick_and_gives_the_public_names(tmp_path):
    heavy = 'torch', 'numpy', 'numba', 'pandas', 'pydantic'
    seconds = 'torchvision', 'sklearn', 'matplotlib', 'papermill'  # for those that need them
    code = f"""
import sys, dcwh
print([m for m in {heavy} if m in sys.modules])
import dcwh.experiment
print([m for m in {seconds} if m in sys.modules])
help(dcwh)
"""
    first, second, *told = run('-c', code, cwd=tmp_path).splitlines()
    assert first == second == '[]'
    for name in dcwh.__all__:
        assert getattr(dcwh, name) is not None
        assert name in dir(dcwh)
    with pytest.raises(AttributeError, match='dcwh has no nobody; public are Codes'):
        _ = dcwh.nobody
    assert set(dcwh.__all__) == NAMES | {'__version__'}
    assert 'HashModel.from_pretrained' in ' '.join(told)


EXTRA = re.compile(r"'(?:\.|dcwh)\[([\w,]+)\]'")  # as an error or a page names one
TEXTS = [
    *(ROOT / 'dcwh').glob('*.py'),
    *(
        p
        for folder in ('nbs', 'data', 'workflow', 'benchmarks')
        for p in (ROOT / folder).rglob('*')
    ),
    *ROOT.glob('*.md'),
]


def extras():
    "What each extra of settings.ini holds, by the names of distributions."
    settings = ConfigParser(interpolation=None)
    settings.read(ROOT / 'settings.ini')
    held = settings['DEFAULT']
    return {
        name: {re.match(r'[\w-]+', word)[0] for word in held[f'{name}_requirements'].split()}
        for name in held['extras'].split()
    }


def test_every_extra_that_is_named_is_there():
    texts = {p: p.read_text() for p in TEXTS if p.suffix in ('.py', '.md', '.ipynb', '.yaml')}
    named = {
        (p.name, name)
        for p, text in texts.items()
        for names in EXTRA.findall(text)
        for name in names.split(',')
    }
    assert len(named) > 9 and {name for _, name in named} <= {*extras(), 'dev'}


def needing(tree):
    "Modules that a piece of code tries to import, and the extra that is named where they are not."
    for node in ast.walk(tree):
        if not isinstance(node, ast.Try):
            continue
        said = EXTRA.findall(' '.join(map(ast.unparse, node.handlers)).replace('\\', ''))
        for part in (part for line in node.body for part in ast.walk(line)):
            names = [a.name for a in part.names] if isinstance(part, ast.Import) else []
            names += [part.module] if isinstance(part, ast.ImportFrom) else []
            yield from ((name.partition('.')[0], extra) for name in names for extra in said)


def test_the_extra_that_an_error_names_holds_what_is_missing():
    found = [
        pair
        for name in sorted(MODULES)
        for pair in needing(ast.parse((ROOT / 'dcwh' / name).read_text()))
    ]
    assert len(found) > 8
    brought = {'matplotlib': ['seaborn'], 'IPython': ['ipykernel']}
    held, distributions = extras(), packages_distributions() | brought
    for module, extra in found:  # seaborn brings matplotlib
        assert {*distributions[module]} & held[extra], f'{module} is not in the extra {extra}'
    assert {*dcwh.sharing.EXTRAS} <= held['onnx'] and 'pandas' in held['report']


@pytest.mark.parametrize('lost', [('gradio',), ('gradio', 'faiss'), ('faiss',)])
def test_serve_names_an_extra_that_holds_all_it_needs(lost, tmp_path, monkeypatch):
    from dcwh.codes import Codes
    from dcwh.search import CodeIndex

    codes = Codes.from_bits([[0, 1], [1, 0]], ids=['a', 'b'])
    CodeIndex.build(codes).save(tmp_path / 'a.index')
    for name in lost:
        monkeypatch.setitem(sys.modules, name, None)
    done = CliRunner().invoke(app, ['serve', str(tmp_path / 'a.index'), '--model', 'nowhere'])
    (extra,) = EXTRA.findall(done.stderr)
    packages = {'gradio': 'gradio', 'faiss': 'faiss-cpu'}
    assert done.exit_code == 2 and {packages[name] for name in lost} <= extras()[extra]


def test_the_version_is_the_same_everywhere():
    settings = ConfigParser(interpolation=None)
    settings.read(ROOT / 'settings.ini')
    version = settings['DEFAULT']['version']
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    heads = re.findall(r'^## \[(.*?)\](?: - (.*))?$', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    assert heads[0] == ('Unreleased', '')
    assert heads[1] == (version, str(cited['date-released']))
    assert dcwh.__version__ == cited['version'] == version


def test_the_citation_file_is_valid():
    "By the schema of the Citation File Format 1.2.0 (its authors, CC BY 4.0)."
    schema = json.loads((ROOT / 'tests/cff-1.2.0.json').read_text())
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    plain = json.loads(json.dumps(cited, default=str))  # dates as text
    jsonschema.validate(plain, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain | {'license': 'mine'}, schema)


@pytest.mark.parametrize('path', sorted((ROOT / '.github').rglob('*.y*ml')), ids=lambda p: p.name)
def test_forms_and_workflows_are_whole(path):
    held = yaml.safe_load(path.read_text())
    if path.parent.name == 'ISSUE_TEMPLATE':
        assert {'name', 'description', 'body'} <= held.keys()
        assert len({part['id'] for part in held['body']}) == len(held['body'])
    else:
        for job in held['jobs'].values():
            assert job['timeout-minutes'] and all('uses' in s or 'run' in s for s in job['steps'])


def test_every_python_that_is_allowed_is_tested():
    (matrix,) = re.findall(r'python: \[(.*)\]', (ROOT / '.github/workflows/test.yaml').read_text())
    settings = ConfigParser(interpolation=None)
    settings.read(ROOT / 'settings.ini')
    assert matrix.split(', ')[0] == f"'{settings['DEFAULT']['min_python']}'"
    assert matrix == "'3.11', '3.12', '3.13'"
