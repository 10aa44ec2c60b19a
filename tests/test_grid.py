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
    (folder / 'grid.yaml').write_text(json.dumps({'grid': grid, **config}))
    return start(folder, folder / 'grid.yaml', *more)


def results(folder): return {file.name: file.stat().st_mtime_ns for file in sorted((folder / 'reports').rglob('*.json'))}


QUICK = {'dataset': 'digits', 'bits': 16, 'recipe': 'quick', 'epochs': 2}


@pytest.mark.slow
def test_the_smoke_grid_runs_as_it_is_shipped_and_is_not_run_again(tmp_path):
    grid = ROOT / 'workflow/grids/smoke.yaml'
    shipped = yaml.safe_load(grid.read_text())
    done = start(tmp_path / 'a', grid)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'a' / shipped['out'] / 'compare.ipynb').is_file()
    smoke = shipped['grid']
    shutil.move(tmp_path / 'a' / shipped['out'], tmp_path / 'a/reports')   # now of a grid with folders of its own
    for model in (tmp_path / 'a/reports').glob('*/*/'): shutil.rmtree(model)
    first = results(tmp_path / 'a')
    assert len(first) == 4
    # a fresh clone has the result files, with any times, and nothing else
    (tmp_path / 'b').mkdir()
    subprocess.run(['cp', '-r', tmp_path / 'a/reports', tmp_path / 'b/reports'], check=True)
    os.utime(tmp_path / 'b/reports/compare.ipynb')   # newer than all of them
    again = snakemake(tmp_path / 'b', [*smoke, {**QUICK, 'epochs': 1}])
    assert again.returncode == 0, again.stderr[-3000:]
    assert len(results(tmp_path / 'b')) == 5 and len(list((tmp_path / 'b/runs').rglob('*.log'))) == 1   # only the run that was new
    # a result under the name of another run, and one that is torn
    one, other, torn, _ = (next((tmp_path / 'b/reports').rglob(name)) for name in first)
    other.write_text(one.read_text())
    torn.write_text(torn.read_text()[:100])
    refused = snakemake(tmp_path / 'b', smoke)
    assert refused.returncode == 1 and 'delete them' in refused.stderr and other.name in refused.stderr and torn.name in refused.stderr and one.name not in refused.stderr


@pytest.mark.parametrize(('detail', 'with_error'), [('brief', [False, True]), ('none', [True])])
def test_a_run_that_fails_leaves_its_report_and_no_result_and_the_others_go_on(detail, with_error, tmp_path):
    failed = snakemake(tmp_path, [{**QUICK, 'lr': [1e9, 1e-3]}], detail=detail)
    assert failed.returncode == 1 and len(results(tmp_path)) == 1
    reports = ['FloatingPointError' in file.read_text() for file in (tmp_path / 'reports').rglob('dcwh-*.ipynb')]
    assert sorted(reports) == with_error and any('the loss is' in log.read_text() for log in (tmp_path / 'runs').rglob('*.log'))


def test_a_killed_grid_goes_on(tmp_path):
    grid = [{**QUICK, 'seed': [0, 1, 2], 'epochs': 1}]
    snakemake(tmp_path, grid, '--dry-run', '--quiet')
    with subprocess.Popen([*COMMAND, '--directory', str(tmp_path), '--configfile', str(tmp_path / 'grid.yaml')], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while not results(tmp_path) and process.poll() is None: time.sleep(.1)
        os.killpg(process.pid, signal.SIGKILL)
    first = results(tmp_path)
    assert 1 <= len(first) < 3   # it was killed before its end
    again = snakemake(tmp_path, grid)
    assert again.returncode == 0, again.stderr[-3000:]
    assert len(results(tmp_path)) == 3 and all(results(tmp_path)[name] == when for name, when in first.items())


@pytest.mark.parametrize('grid', sorted((ROOT / 'workflow/grids').glob('*.yaml')), ids=lambda file: file.stem)
def test_every_grid_can_be_planned(grid, tmp_path):
    blocks = [[len(value) if isinstance(value, list) else 1 for value in block.values()] for block in yaml.safe_load(grid.read_text())['grid']]
    plan = subprocess.run([*COMMAND, '--directory', str(tmp_path), '--configfile', str(grid), '--dry-run'], capture_output=True, text=True, env=ENV)
    assert plan.returncode == 0, plan.stderr[-3000:]
    assert len(re.findall('^rule run:', plan.stdout, re.MULTILINE)) == sum(map(math.prod, blocks))   # each combination is one run, and listed
    assert grid.stem != 'paper' or 'ESTIMATE' in plan.stderr


def test_without_a_grid_it_says_which_to_give(tmp_path):
    assert 'add --configfile workflow/grids/smoke.yaml' in subprocess.run([*COMMAND, '--directory', str(tmp_path)], capture_output=True, text=True, env=ENV).stderr


def test_the_paper_s_grid_can_be_planned_for_a_cluster(tmp_path):
    grid, profile = ROOT / 'workflow/grids/paper.yaml', ROOT / 'workflow/profiles/slurm'
    plan = subprocess.run([*COMMAND[:3], '--directory', str(tmp_path), '--configfile', str(grid), '--workflow-profile', str(profile), '--resources', 'gpu=16', '--dry-run'], capture_output=True, text=True, env=ENV)
    assert plan.returncode == 0, plan.stderr[-3000:]
    assert len(re.findall('resources: .*gpu=1, runtime=720, mem_mb=32000', plan.stdout)) == 96


@pytest.mark.parametrize(('content', 'said'), [
    ('grid:', 'grid is null'), ('grid: []', 'grid is []'), ('grid: digits', 'grid is "digits"'), ('grid: {bits: 16}', 'a list of blocks'),
    ('grid: [bits]', 'block 1 is "bits"'), ('grid: [{bits: 16}, {}]', 'block 2 is {}'), ('grid: [{bits: }]', 'bits is null'), ('grid: [{bits: []}]', 'bits is []'),
    ('grid: [{bits: many}]', 'bits is'), ('grid: [{bites: 16}]', "unknown setting 'bites'"), ('grid: [{lr: .inf}]', 'lr is Infinity'), ('grid: [{epochs: 2026-01-01}]', 'epochs is "2026-01-01"'),
    ('grid: [{bits: 16}]\ncores: 2', 'unknown in a grid file: "cores"'), ('grid: [{bits: 16}]\ndetail: long', 'none, brief or full'), ('grid: [{bits: 16}]\nthreads: 0', 'threads is 0'),
    ('grid: [{bits: 16}]\nminutes: soon', 'minutes is "soon"'), ('grid: [{bits: 16}]\nout: [a]', 'out is ["a"]'), ('grid: [{bits: 16}]\nruns: "{a}"', 'without braces'),
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
    names = checked(f'out: {json.dumps(folder)}\nruns: {json.dumps(folder)}\ngrid: [{{bits: 16, epochs: 1, method_settings: {{}}}}]')
    (name, _), = names['RUNS'].items()
    line = names['command'](type('Wildcards', (), {'name': name}))
    first, _, second = line.partition(' || ')
    words = shlex.split(first)
    assert words[:6] == ['dcwh', 'run', '--out', folder, '--runs', folder]
    assert words[-2:] == ['--detail', 'none'] and shlex.split(second)[-2:] == ['--detail', 'brief']


def test_the_lines_of_a_grid_in_a_folder_with_spaces(tmp_path):
    plan = snakemake(tmp_path, [QUICK], '--dry-run', '--printshellcmds', out='my reports', runs='my runs')
    assert plan.returncode == 0, plan.stderr[-3000:]
    lines = [line.partition('Shell command: ')[2] for line in plan.stdout.splitlines() if 'Shell command: ' in line and 'dcwh' in line]
    assert len(lines) == 2 and all('my reports' in ' '.join(word for word in shlex.split(line) if ' ' in word) for line in lines)


@pytest.mark.parametrize('profile', ['default', 'slurm'])
def test_a_result_of_another_process_stays_when_a_run_fails(profile):
    settings = yaml.safe_load((ROOT / f'workflow/profiles/{profile}/config.yaml').read_text())
    assert settings['keep-incomplete'] and settings['ignore-incomplete'] and settings['nolock']
