"""Grids of runs: what is done is not done again, what fails stops nothing else, what is killed goes on."""
from pathlib import Path
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

pytest.importorskip('snakemake', reason="grids need snakemake: pip install 'dcwh[workflow]'")

ROOT = Path(__file__).parents[1]
COMMAND = [str(Path(sys.executable).with_name('snakemake')), '--snakefile', str(ROOT / 'workflow/Snakefile'), '--cores', '2']
ENV = {**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}


def snakemake(folder, grid, *more, **config):
    "Run a grid in a folder of its own; the repository's templates and recipes are linked into it."
    folder.mkdir(exist_ok=True)
    for name in ('nbs', 'data'): (folder / name).exists() or (folder / name).symlink_to(ROOT / name)
    (folder / 'grid.yaml').write_text(json.dumps({'grid': grid, **config}))
    return subprocess.run([*COMMAND, '--directory', str(folder), '--configfile', str(folder / 'grid.yaml'), *more], capture_output=True, text=True, env=ENV)


def results(folder): return {file.name: file.stat().st_mtime_ns for file in sorted((folder / 'reports').rglob('*.json'))}


QUICK = {'dataset': 'digits', 'bits': 16, 'recipe': 'quick', 'epochs': 2}


@pytest.mark.slow
def test_the_smoke_grid_runs_and_is_not_run_again(tmp_path):
    smoke = [{'dataset': 'digits', 'method': ['dcwh', 'ce'], 'bits': 16, 'seed': [0, 1], 'recipe': 'quick'}]
    assert smoke == yaml.safe_load((ROOT / 'workflow/grids/smoke.yaml').read_text())['grid']
    done = snakemake(tmp_path / 'a', smoke)
    assert done.returncode == 0, done.stderr[-3000:]
    first = results(tmp_path / 'a')
    assert len(first) == 4 and (tmp_path / 'a/reports/compare.ipynb').is_file()
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
    failed = snakemake(tmp_path, [{**QUICK, 'lr': [1e30, 1e-3]}], detail=detail)
    assert failed.returncode == 1 and len(results(tmp_path)) == 1
    reports = ['FloatingPointError' in file.read_text() for file in (tmp_path / 'reports').rglob('dcwh-*.ipynb')]
    assert sorted(reports) == with_error and any('the loss is' in log.read_text() for log in (tmp_path / 'runs').rglob('*.log'))


def test_a_killed_grid_goes_on(tmp_path):
    grid = [{**QUICK, 'seed': [0, 1, 2], 'epochs': 1}]
    snakemake(tmp_path, grid, '--dry-run', '--quiet')
    with subprocess.Popen([*COMMAND, '--directory', str(tmp_path), '--configfile', str(tmp_path / 'grid.yaml')], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 240
        while not results(tmp_path) and time.monotonic() < deadline: time.sleep(.1)
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
