"""Grids of runs: what is done is not done again, what fails stops nothing else, what is killed goes on."""
from pathlib import Path
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from dcwh.results import read_table, write_rows

pytest.importorskip('snakemake', reason="grids need snakemake: pip install '.[workflow]' in a clone of dcwh")

ROOT = Path(__file__).parents[1]
COMMAND = [str(Path(sys.executable).with_name('snakemake')), '--snakefile', str(ROOT / 'workflow/Snakefile'), '--cores', '2']
ENV = {**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}


def start(folder, file, *more):
    "Run a grid file in a folder; the repository's templates and recipes are linked into it."
    folder.mkdir(exist_ok=True)
    for name in ('nbs', 'data'):
        if not (folder / name).exists(): (folder / name).symlink_to(ROOT / name)
    words = [*COMMAND, '--directory', str(folder), '--configfile', str(file), *more]
    return subprocess.run(words, capture_output=True, text=True, env=ENV)


def snakemake(folder, grid, *more, **config):
    "Run a grid in a folder of its own."
    folder.mkdir(exist_ok=True)
    (folder / 'grid.yaml').write_text(json.dumps({'grid': grid, 'modified': True, **config}))
    return start(folder, folder / 'grid.yaml', *more)


def rows(folder):
    "The rows of digits, by the names of their runs."
    table = folder / 'reports/digits.csv'
    return {row['run']: row for row in read_table(table)} if table.is_file() else {}


def begun(folder): return sorted((folder / 'runs').rglob('log.txt'))


QUICK = {'dataset': 'digits', 'bits': 16, 'recipe': 'quick', 'epochs': 2}


@pytest.mark.slow
def test_the_smoke_grid_runs_as_it_is_shipped_and_is_not_run_again(tmp_path):
    grid, shipped = ROOT / 'workflow/grids/smoke.yaml', tmp_path / 'a/runs/smoke'
    done = start(tmp_path / 'a', grid)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (shipped / 'compare.ipynb').is_file() and len(read_table(shipped / 'digits.csv')) == 4
    # a fresh clone has the table and the comparison, with any times, and nothing else
    clone, smoke = tmp_path / 'b', yaml.safe_load(grid.read_text())['grid']
    (clone / 'reports').mkdir(parents=True)
    for name in ('digits.csv', 'compare.ipynb'): shutil.copy(shipped / name, clone / 'reports')
    os.utime(clone / 'reports/compare.ipynb', (0, 0))   # older than all
    again = snakemake(clone, smoke)
    assert again.returncode == 0 and 'Nothing to be done' in again.stderr, again.stderr[-3000:]
    # only the run that is new
    more = snakemake(clone, [*smoke, {**QUICK, 'epochs': 1}])
    assert more.returncode == 0 and len(rows(clone)) == 5 and len(begun(clone)) == 1, more.stderr[-3000:]
    # a run that is finished and lost its row, as when it was killed between the two: recorded, not run
    name, log = next((name, log) for log in begun(clone) for name in rows(clone) if name in str(log))
    finished = log.with_name('result.json').read_bytes()
    write_rows(clone / 'reports/digits.csv', [row for run, row in rows(clone).items() if run != name])
    mended = snakemake(clone, [*smoke, {**QUICK, 'epochs': 1}])
    assert mended.returncode == 0 and len(rows(clone)) == 5 and log.with_name('result.json').read_bytes() == finished
    assert 'finished: mAP' in log.read_text()
    # a table that is damaged
    table = clone / 'reports/digits.csv'
    table.write_text(table.read_text()[:-50])
    refused = snakemake(clone, smoke)
    assert refused.returncode == 1 and 'digits.csv' in refused.stderr and 'line' in refused.stderr


@pytest.mark.parametrize(('detail', 'with_error'), [('brief', [False, True]), ('none', [True])])
def test_a_run_that_fails_leaves_its_report_and_no_row_and_the_others_go_on(detail, with_error, tmp_path):
    failed = snakemake(tmp_path, [{**QUICK, 'lr': [1e9, 1e-3]}], detail=detail)
    assert failed.returncode == 1 and len(rows(tmp_path)) == 1
    reports = ['FloatingPointError' in file.read_text() for file in (tmp_path / 'runs').rglob('report.ipynb')]
    assert sorted(reports) == with_error and any('the loss is' in log.read_text() for log in begun(tmp_path))


def test_a_killed_grid_goes_on(tmp_path):
    grid = [{**QUICK, 'seed': [0, 1, 2], 'epochs': 1}]
    snakemake(tmp_path, grid, '--dry-run', '--quiet')
    with subprocess.Popen([*COMMAND, '--directory', str(tmp_path), '--configfile', str(tmp_path / 'grid.yaml')], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while not rows(tmp_path) and process.poll() is None: time.sleep(.1)
        os.killpg(process.pid, signal.SIGKILL)
    first = rows(tmp_path)
    assert 1 <= len(first) < 3   # it was killed before its end
    again = snakemake(tmp_path, grid)
    assert again.returncode == 0, again.stderr[-3000:]
    assert len(rows(tmp_path)) == 3 and all(rows(tmp_path)[name] == row for name, row in first.items())   # seconds, too


def test_code_with_changes_is_refused_before_anything_runs(checked, monkeypatch):
    monkeypatch.setattr('dcwh.experiment.commit', lambda: 'abc-modified')
    with pytest.raises(checked.error, match='changes that are in no commit.*modified=true'): checked('grid: [{bits: 16}]')
    checked('grid: [{bits: 16}]\nmodified: true')


@pytest.mark.parametrize('grid', sorted((ROOT / 'workflow/grids').glob('*.yaml')), ids=lambda file: file.stem)
def test_every_grid_can_be_planned(grid, tmp_path):
    blocks = [[len(value) if isinstance(value, list) else 1 for value in block.values()] for block in yaml.safe_load(grid.read_text())['grid']]
    plan = subprocess.run([*COMMAND, '--directory', str(tmp_path), '--configfile', str(grid), '--dry-run', '--config', 'modified=true'], capture_output=True, text=True, env=ENV)
    assert plan.returncode == 0, plan.stderr[-3000:]
    assert len(re.findall('^rule run:', plan.stdout, re.MULTILINE)) == sum(map(math.prod, blocks))   # each combination is one run, and listed
    assert grid.stem != 'paper' or 'ESTIMATE' in plan.stderr


def test_without_a_grid_it_says_which_to_give(tmp_path):
    assert 'add --configfile workflow/grids/smoke.yaml' in subprocess.run([*COMMAND, '--directory', str(tmp_path)], capture_output=True, text=True, env=ENV).stderr


def test_the_paper_s_grid_can_be_planned_for_a_cluster(tmp_path):
    grid, profile = ROOT / 'workflow/grids/paper.yaml', ROOT / 'workflow/profiles/slurm'
    plan = subprocess.run([*COMMAND[:3], '--directory', str(tmp_path), '--configfile', str(grid), '--workflow-profile', str(profile), '--resources', 'gpu=16', '--dry-run', '--config', 'modified=true'], capture_output=True, text=True, env=ENV)
    assert plan.returncode == 0, plan.stderr[-3000:]
    assert len(re.findall('resources: .*gpu=1, runtime=720, mem_mb=32000', plan.stdout)) == 96


@pytest.mark.parametrize(('content', 'said'), [
    ('grid:', 'grid is null'), ('grid: []', 'grid is []'), ('grid: digits', 'grid is "digits"'), ('grid: {bits: 16}', 'a list of blocks'),
    ('grid: [bits]', 'block 1 is "bits"'), ('grid: [{bits: 16}, {}]', 'block 2 is {}'), ('grid: [{bits: }]', 'bits is null'), ('grid: [{bits: []}]', 'bits is []'),
    ('grid: [{bits: many}]', 'bits is'), ('grid: [{bites: 16}]', "unknown setting 'bites'"), ('grid: [{lr: .inf}]', 'lr is Infinity'), ('grid: [{epochs: 2026-01-01}]', 'epochs is "2026-01-01"'),
    ('grid: [{bits: 16}]\ncores: 2', 'unknown in a grid file: "cores"'), ('grid: [{bits: 16}]\ndetail: long', 'none, brief or full'), ('grid: [{bits: 16}]\nthreads: 0', 'threads is 0'),
    ('grid: [{dataset: folder/x, data_dir: [a, b], bits: 16}]', 'asked for twice, from other places'),
    ('grid: [{bits: 16}]\nminutes: soon', 'minutes is "soon"'), ('grid: [{bits: 16}]\nreports: [a]', 'reports is ["a"]'),
    ('grid: [{bits: 16}]\nstudy: My trials', 'study is "My trials"'), ('grid: [{bits: 16}]\nmodified: 1', 'modified is 1'), ('grid: [{bits: 16}]\nruns: "{a}"', 'without braces'),
    ('grid: [{bits: 16}]\ncost: cheap', 'cost is "cheap"'), ('grid: [{bits: 16}]\ncost: {basis: a, ms_per_image: {}, images: {}}', 'no numbers for small on digits'),
], ids=lambda text: text[:30].replace('\n', ' '))
def test_a_grid_file_that_is_wrong_is_told_so(content, said, checked):
    with pytest.raises(checked.error) as error: checked(content)
    assert said in str(error.value) and '\n' not in str(error.value) and 'object' not in str(error.value)


@pytest.fixture
def checked(tmp_path, monkeypatch):
    "The first part of the Snakefile, up to its rules, in this process: a snakemake takes seconds to start."
    from snakemake.exceptions import WorkflowError
    monkeypatch.chdir(tmp_path)
    code = (ROOT / 'workflow/Snakefile').read_text().partition('\nlocalrules:')[0]
    def run(content):
        names = {'config': yaml.safe_load(content), 'WorkflowError': WorkflowError}
        exec(code, names)
        return names
    run.error = WorkflowError
    return run


@pytest.mark.parametrize('folder', ['my runs', "it's", '"a"', '$HOME', 'a;b', 'a*'])
def test_folders_keep_their_names_in_the_shell(folder, checked):
    names = checked(f'modified: true\nreports: {json.dumps(folder)}\nruns: {json.dumps(folder)}\ngrid: [{{bits: 16, epochs: 1, method_settings: {{}}}}]')
    (name, _), = names['RUNS'].items()
    line = names['command'](type('Wildcards', (), {'name': name}))
    first, _, second = line.partition(' || ')
    words = shlex.split(first)
    assert words[:6] == ['dcwh', 'run', '--reports', folder, '--runs', folder]
    assert words[-2:] == ['--detail', 'none'] and shlex.split(second)[-2:] == ['--detail', 'brief']


def test_the_lines_of_a_grid_in_a_folder_with_spaces(tmp_path):
    plan = snakemake(tmp_path, [QUICK], '--dry-run', '--printshellcmds', reports='my reports', runs='my runs')
    assert plan.returncode == 0, plan.stderr[-3000:]
    lines = [line.partition('Shell command: ')[2] for line in plan.stdout.splitlines() if 'Shell command: ' in line and 'dcwh' in line]
    assert len(lines) == 2 and all('my reports' in shlex.split(line.replace('(', ' ')) for line in lines)


@pytest.mark.parametrize('profile', ['default', 'slurm'])
def test_a_result_of_another_process_stays_when_a_run_fails(profile):
    settings = yaml.safe_load((ROOT / f'workflow/profiles/{profile}/config.yaml').read_text())
    assert settings['keep-incomplete'] and settings['ignore-incomplete'] and settings['nolock']
