"""What is printed works: README's code runs as it stands, notebooks are valid and become pages
without raw tables."""

import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from dcwh.cli import app, data, index
from dcwh.results import read_results, summary

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
COMMITTED = sorted({*(ROOT / 'nbs').rglob('*.ipynb'), *(ROOT / 'reports').rglob('*.ipynb')})
NOTEBOOKS = [
    p for p in COMMITTED if not any(part.startswith('.') for part in p.relative_to(ROOT).parts)
]
TUTORIALS = sorted((ROOT / 'nbs/tutorials').glob('*.ipynb'))
TABLE = re.compile(r'^\|.*\|$')


def name(path):
    return path.relative_to(ROOT).as_posix()


def blocks(language, text=README):
    found = re.findall(r'^```(\w*)\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    return [code for named, code in found if named == language]


def tables(markdown):
    "The lines of each table of a text, code left out."
    text = re.sub(r'```.*?```', '', markdown, flags=re.DOTALL)
    runs = re.findall(r'(?:^\|.*\|[ ]*\n?)+', text, re.MULTILINE)
    return [run.strip().splitlines() for run in runs]


def cells(line):
    return len(re.split(r'(?<!\\)\|', re.sub(r'`[^`]*`', '', line.strip().strip('|'))))


@pytest.fixture(scope='module')
def notebooks():
    return {path: nbformat.read(path, as_version=nbformat.NO_CONVERT) for path in NOTEBOOKS}


def test_readme_s_code_works_when_it_is_pasted(capsys):
    (code,) = blocks('python')
    torch.manual_seed(0)
    exec(code, {})
    assert float(capsys.readouterr().out) > 0.9


@pytest.mark.parametrize('device', ['cpu', *['cuda'] * torch.cuda.is_available()])
def test_the_loop_of_the_guide_trains_and_evaluates(device):
    loop, scores = blocks('python', (ROOT / 'docs/loop.md').read_text())
    images = torch.randn(64, 1, 8, 8)
    loader = [(images[i : i + 16], torch.arange(i, i + 16) % 4) for i in range(0, 64, 16)]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 48)).to(device)
    before = model[1].weight.detach().clone()
    given = {
        'model': model,
        'device': device,
        'loader': loader,
        'epochs': 2,
        'query_loader': loader[:1],
        'database_loader': loader[1:],
    }
    exec(loop, given)
    assert not torch.equal(before, model[1].weight)
    *_, last = scores.strip().splitlines()
    exec(scores.replace(last, f'metrics = {last}'), given)
    assert (
        0 < given['metrics']['map'] <= 1
        and given['metrics']['queries'] == 16
        and given['metrics']['database'] == 48
    )


def test_readme_says_what_to_clone_and_to_activate_before_any_other_command():
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini')
    first, *_ = blocks('')
    assert f'git clone {ini["DEFAULT"]["git_url"]}' in first and 'make report' in first
    bare = re.search(r'^(dcwh|papermill|snakemake) ', README, re.MULTILINE).start()
    assert README.index('source .venv/bin/activate') < bare


def test_readme_s_papermill_writes_below_runs():
    for line in re.findall(r'^papermill nbs.*', README, re.MULTILINE):
        words = line.split()
        assert words[2].startswith('runs/') and ' -p out ' not in line, line
        assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize('page', ['.', 'nbs'])
def test_readmes_link_to_files_that_are_there(page):
    text = (ROOT / page / 'README.md').read_text()
    prose = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    targets = re.findall(r'\]\(([^)#:\s]+)(?:#[^)]*)?\)', prose)
    assert targets and [t for t in targets if not (ROOT / page / t).exists()] == []


@pytest.mark.parametrize('path', ['tour', *(f'tutorials/{p.stem}' for p in TUTORIALS)])
def test_notebooks_to_learn_from_open_elsewhere(path, notebooks):
    """By links to where settings.ini says. Their first code installs dcwh where it is missing;
    tests and website leave it out."""
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini')
    cfg, file = ini['DEFAULT'], f'nbs/{path}.ipynb'
    title, install = notebooks[ROOT / file].cells[:2]
    place = f'{cfg["user"]}/{cfg["repo"]}'
    for link in (
        f'https://colab.research.google.com/github/{place}/blob/{cfg["branch"]}/{file}',
        f'https://mybinder.org/v2/gh/{place}/{cfg["branch"]}?labpath={file}',
    ):
        assert f']({link})' in title.source
    flags = cfg['tst_flags'].split()
    assert install.source.startswith('#| hide\n#| notest\n') and 'notest' in flags
    extras, url = re.search(r'"dcwh\[(.*)\] @ git\+(.*)"', install.source).groups()
    assert {*extras.split(',')} <= {*cfg['extras'].split()} and url == cfg['git_url']
    shell = InteractiveShell.instance()
    found = shell.run_cell(install.source)  # nothing is installed where dcwh is
    InteractiveShell.clear_instance()
    assert found.success


@pytest.mark.parametrize('page', ['results', 'claims', 'gallery'])
def test_pages_that_the_website_completes_say_so_where_it_does_not(page):
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini')
    text = (ROOT / f'docs/{page}.md').read_text()
    _, shown, _ = re.split('<!-- (?:made by the website|end) -->', text)
    host = ini['DEFAULT']['doc_host'] + ini['DEFAULT']['doc_baseurl']
    assert f'{host}/{page}.html' in shown
    targets = re.findall(r'\]\((\.\./[^)]+)\)', shown)
    assert targets and all((ROOT / 'docs' / target).exists() for target in targets)


def test_the_map_has_every_notebook():
    text = (ROOT / 'nbs/README.md').read_text()
    shown = [path for path in NOTEBOOKS if path.is_relative_to(ROOT / 'nbs')]
    paths = [path.relative_to(ROOT / 'nbs').as_posix() for path in shown]
    assert [p for p in paths if f']({p})' not in text and p != 'index.ipynb'] == []


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_is_a_valid_notebook(path, notebooks):
    nbformat.validate(notebooks[path])


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_tables_have_as_many_cells_as_their_head(path, notebooks):
    texts = [c.source for c in notebooks[path].cells if c.cell_type == 'markdown']
    texts += [
        o.data['text/markdown']
        for c in notebooks[path].cells
        for o in c.get('outputs', [])
        if 'text/markdown' in o.get('data', {})
    ]
    for text in texts:
        for head, *rows in tables(text):
            assert [row for row in rows if cells(row) != cells(head)] == [], head


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_cells_of_frames_show_no_backticks(path):
    assert re.findall('<td>[^<\n]*`', path.read_text()) == []


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_formulas_are_closed_and_escaped_once(path, notebooks):
    for cell in notebooks[path].cells:
        if cell.cell_type != 'markdown':
            continue
        prose = re.sub(r'```.*?```|`[^`\n]*`', '', cell.source, flags=re.DOTALL)
        assert len(re.findall(r'(?<!\\)\$', prose)) % 2 == 0, cell.source
        formulas = re.findall(r'\$\$(.+?)\$\$|(?<!\\)\$([^$]+)\$', prose, re.DOTALL)
        assert [f for f in formulas if re.search(r'\\\\[a-zA-Z]{2}', ''.join(f))] == []


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_code_in_prose_ends_where_the_command_does(path, notebooks):
    texts = [cell.source for cell in notebooks[path].cells if cell.cell_type == 'markdown']
    spans = re.findall('`([^`\n]+)`', re.sub('```.*?```', '', '\n'.join(texts), flags=re.DOTALL))
    assert [span for span in spans if re.search('pip install .* (in|of|and) ', span)] == []


def test_examples_of_help_name_models_as_they_may_be_named():
    """A folder below runs, or hf:// and a name; a bare owner/name would be a folder that is not
    there."""
    commands = [command for part in (app, data, index) for command in part.registered_commands]
    text = '\n'.join(command.callback.__doc__ for command in commands).replace('\\\n', '')
    examples = [shlex.split(line) for line in text.splitlines() if line.strip().startswith('dcwh ')]
    names = [words[words.index('--model') + 1] for words in examples if '--model' in words]
    names += [words[2] for words in examples if words[1] == 'encode']
    names += [word for words in examples for word in words if 'hash-model' in word]
    assert len(names) > 4
    assert [said for said in names if not said.startswith(('runs/', 'hf://'))] == []


@pytest.mark.parametrize(
    'path', [p for p in NOTEBOOKS if p.is_relative_to(ROOT / 'reports')], ids=name
)
def test_a_report_becomes_a_page_with_tables(path, notebooks):
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_notebook_node(notebooks[path])
    body = re.sub(r'<(script|style|pre).*?</\1>', '', page[page.index('<body') :], flags=re.DOTALL)
    lines = html.unescape(re.sub(r'<[^>]+>', '', body)).splitlines()
    assert '<table' in body and [line for line in lines if TABLE.match(line.strip())] == []


def test_the_comparison_shows_all_of_its_rows(notebooks):
    notebook = notebooks[ROOT / 'reports/compare.ipynb']
    shown = [
        o.data['text/html']
        for c in notebook.cells
        for o in c.get('outputs', [])
        if 'text/html' in o.get('data', {})
    ]
    assert not [table for table in shown if '<td>...</td>' in table or '<th>...</th>' in table]
    table = summary(read_results(ROOT / 'reports'))
    for n, (dataset, rows) in enumerate(
        table.groupby('dataset')
    ):  # for each a table, and what it was measured on
        for row in rows.itertuples():
            assert f'{row.map:.3f}' in shown[2 * n] and row.method in shown[2 * n], (dataset, row)
    assert 'README of github.com/mzhang367/dcwh' in ''.join(shown)  # a published number


def test_make_report_takes_one_thread_unless_told():
    def planned(*more):
        return subprocess.run(
            ['make', '-p', '-n', 'report', f'VENV={ROOT}', *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={'PATH': '/usr/bin:/bin'},
        ).stdout

    assert 'report: OMP_NUM_THREADS := 1' in planned() or 'OMP_NUM_THREADS = 1' in planned()
    assert 'OMP_NUM_THREADS = 8' in planned('OMP_NUM_THREADS=8')


@pytest.mark.parametrize(
    'user, args, code',
    [(0, '', 2), (0, '--allow-root', 0), (0, '--ServerApp.allow_root=True', 0), (1000, '', 0)],
)
def test_make_lab_says_what_root_has_to_say(tmp_path, user, args, code):
    (tmp_path / 'id').write_text(f'#!/bin/sh\necho {user}\n')
    (tmp_path / 'id').chmod(0o755)
    env = {k: v for k, v in os.environ.items() if not k.startswith('MAKE')}  # of make test
    done = subprocess.run(
        ['make', 'allowed', f'ARGS={args}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**env, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'},
    )
    assert (
        done.returncode == code
        and done.stdout == ''
        and ('make lab ARGS=--allow-root' in done.stderr) == (code > 0)
    ), done


def test_hooks_leave_the_clone_as_it_was(tmp_path):
    (tmp_path / '.jupyter').mkdir()  # of the home
    clone, kept = tmp_path / 'clone', ['settings.ini', '.gitattributes', '.gitconfig']
    subprocess.run(['git', 'init', '--quiet', clone], check=True)
    for file in kept:
        shutil.copy(ROOT / file, clone)
    install = Path(sys.executable).with_name('nbdev_install_hooks')
    env = {**os.environ, 'HOME': str(tmp_path)}
    subprocess.run([install], cwd=clone, check=True, capture_output=True, env=env)
    assert {p.name for p in clone.iterdir()} == {'.git', *kept}
    for file in kept:
        assert (clone / file).read_bytes() == (ROOT / file).read_bytes(), file
