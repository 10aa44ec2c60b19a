"""Grids of runs: what is done is not done again, what fails or is killed stops nothing else."""

import importlib.util
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
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import SMALLEST
from PIL import Image
from safetensors.torch import save_file

from dcwh.config import resolve
from dcwh.experiment import run
from dcwh.model import HashModel
from dcwh.results import read_table, record, write_rows

NEEDED = "grids need snakemake: pip install '.[workflow]' in a clone of dcwh"
pytest.importorskip('snakemake', reason=NEEDED)

# a folder of snakemake's, which has its end with the process
pytestmark = [
    pytest.mark.filterwarnings('ignore:Implicitly cleaning up:ResourceWarning'),
    pytest.mark.usefixtures('begun'),
]

ROOT = Path(__file__).parents[1]
GRIDS = sorted((ROOT / 'workflow/grids').glob('*.yaml'))
COMMAND = str(Path(sys.executable).with_name('snakemake'))
CORES = ['--cores', '2']
WORDS = ['--snakefile', str(ROOT / 'workflow/Snakefile'), '--directory']


def start(folder, *more, **env):
    "Call snakemake in this process, for a process of its own takes seconds before it begins."
    from snakemake.cli import main

    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main([*WORDS, str(folder), *more])
    code = end.value.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def linked(folder):
    "A folder into which the repository's templates and recipes are linked."
    folder.mkdir(exist_ok=True)
    for name in ('nbs', 'data'):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return folder


def written(folder, grid, **config):
    "A grid file."
    folder.mkdir(exist_ok=True)
    file = folder / 'grid.yaml'
    file.write_text(json.dumps({'grid': grid, 'modified': True, **config}))
    return file


def snakemake(folder, grid, *more, **config):
    "Run a grid in a folder of its own."
    file = written(folder, grid, **config)
    return start(linked(folder), *CORES, '--configfile', str(file), *more)


def rows(folder):
    "The rows of digits, by the names of their runs."
    table = folder / 'reports/digits.csv'
    return {row['run']: row for row in read_table(table)} if table.is_file() else {}


def begun(folder):
    return sorted((folder / 'runs').rglob('log.txt'))


QUICK = {'dataset': 'digits', 'bits': 16, 'recipe': 'quick', 'epochs': 2}


@pytest.mark.slow
def test_the_smoke_grid_runs_as_it_is_shipped_and_is_not_run_again(tmp_path):
    grid, shipped = ROOT / 'workflow/grids/smoke.yaml', tmp_path / 'a/runs/smoke'
    done = start(linked(tmp_path / 'a'), *CORES, '--configfile', str(grid))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (shipped / 'compare.ipynb').is_file() and len(read_table(shipped / 'digits.csv')) == 4
    # a fresh clone has the table and the comparison, with any times, and nothing else
    clone, smoke = tmp_path / 'b', yaml.safe_load(grid.read_text())['grid']
    (clone / 'reports').mkdir(parents=True)
    for name in ('digits.csv', 'compare.ipynb'):
        shutil.copy(shipped / name, clone / 'reports')
    os.utime(clone / 'reports/compare.ipynb', (0, 0))  # older than all
    again = snakemake(clone, smoke)
    assert again.returncode == 0 and 'Nothing to be done' in again.stderr, again.stderr[-3000:]
    # only the run that is new
    runs = '--until', 'run'  # the comparison was made above
    more = snakemake(clone, [*smoke, {**QUICK, 'epochs': 1}], *runs)
    assert more.returncode == 0, more.stderr[-3000:]
    assert len(rows(clone)) == 5 and len(begun(clone)) == 1
    # a run that is finished and lost its row, as when it was killed between the two: recorded
    (log,) = begun(clone)
    result = log.with_name('result.json')
    finished = result.read_bytes()
    others = [row for run, row in rows(clone).items() if run not in str(log)]
    write_rows(clone / 'reports/digits.csv', others)
    mended = snakemake(clone, [*smoke, {**QUICK, 'epochs': 1}], *runs)
    assert mended.returncode == 0 and len(others) == 4 and len(rows(clone)) == 5
    assert result.read_bytes() == finished
    assert 'finished: mAP' in log.read_text()
    # a table that is damaged
    table = clone / 'reports/digits.csv'
    table.write_text(table.read_text()[:-50])
    refused = snakemake(clone, smoke)
    assert refused.returncode == 1 and 'digits.csv' in refused.stderr and 'line' in refused.stderr


@pytest.mark.parametrize(('detail', 'wrong'), [('brief', [False, True]), ('none', [True])])
def test_a_run_that_fails_leaves_its_report_and_no_row_and_others_go_on(detail, wrong, tmp_path):
    failed = snakemake(tmp_path, [{**QUICK, 'lr': [1e9, 1e-3]}], detail=detail)
    assert failed.returncode == 1 and len(rows(tmp_path)) == 1
    reports = [file.read_text() for file in (tmp_path / 'runs').rglob('report.ipynb')]
    assert sorted('FloatingPointError' in report for report in reports) == wrong
    assert any('the loss is' in log.read_text() for log in begun(tmp_path))


def test_a_killed_grid_goes_on(tmp_path):
    grid = [{**QUICK, 'seed': [0, 1, 2], 'epochs': 1}]
    file = written(tmp_path, grid)
    words = [COMMAND, *WORDS, str(linked(tmp_path)), *CORES, '--configfile', str(file)]
    silent = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    with subprocess.Popen(words, **silent, start_new_session=True) as process:
        while not rows(tmp_path) and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    first = rows(tmp_path)
    assert 1 <= len(first) < 3  # it was killed before its end
    again = snakemake(tmp_path, grid, '--until', 'run')
    assert again.returncode == 0, again.stderr[-3000:]
    assert len(rows(tmp_path)) == 3
    assert {name: rows(tmp_path)[name] for name in first} == first  # seconds, too


def test_code_with_changes_is_refused_before_anything_runs(checked, monkeypatch):
    monkeypatch.setattr('dcwh.experiment.commit', lambda: 'abc-modified')
    with pytest.raises(checked.error, match='changes that are in no commit.*modified=true'):
        checked('grid: [{bits: 16}]')
    checked('grid: [{bits: 16}]\nmodified: true')


@pytest.mark.parametrize('grid', GRIDS, ids=lambda file: file.stem)
def test_every_grid_can_be_planned(grid, tmp_path):
    asked = yaml.safe_load(grid.read_text())
    words = [*CORES, '--configfile', str(grid), '--dry-run', '--printshellcmds']
    plan = start(linked(tmp_path), *words, '--config', 'modified=true')
    assert plan.returncode == 0, plan.stderr[-3000:]
    listed = re.findall('^rule run:', plan.stdout, re.MULTILINE)
    assert len(listed) == sum(map(runs_of, asked['grid']))  # a run for each combination
    assert ('on_gpu.py 1 dcwh run' in plan.stdout) == ('gpu' in asked)
    assert ('ESTIMATE' in plan.stderr) == ('cost' in asked)


def runs_of(block):
    "How many combinations a block has."
    return math.prod(len(value) for value in block.values() if isinstance(value, list))


def test_without_a_grid_it_says_which_to_give(tmp_path):
    said = start(tmp_path, *CORES).stderr
    assert 'add --configfile workflow/grids/smoke.yaml' in said


def test_the_paper_s_grid_can_be_planned_for_a_cluster(tmp_path):
    grid, profile = ROOT / 'workflow/grids/paper.yaml', ROOT / 'workflow/profiles/slurm'
    words = ['--configfile', str(grid), '--dry-run', '--workflow-profile', str(profile)]
    words += ['--resources', 'gpu=16', '--config', 'modified=true']
    plan = start(tmp_path, *words)
    assert plan.returncode == 0, plan.stderr[-3000:]
    assert len(re.findall('resources: .*gpu=1, runtime=240, mem_mb=32000', plan.stdout)) == 96


def test_runs_begin_in_the_order_of_the_file_each_on_a_gpu_of_its_own(tmp_path):
    stand_in = tmp_path / 'bin/dcwh'  # says what it was called with, instead of running
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $*" >> calls\n')
    stand_in.chmod(0o755)
    grid = [{'bits': 48, 'seed': 2}, {'bits': [16, 24]}, {'bits': 48, 'method': 'ce'}]
    words = [*CORES, '--configfile', str(written(tmp_path, grid, gpu=1)), '--resources', 'gpu=1']
    path = f'{stand_in.parent}:{os.environ["PATH"]}'
    done = start(tmp_path, *words, PATH=path, CUDA_VISIBLE_DEVICES='GPU-a', TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    calls = [line for line in (tmp_path / 'calls').read_text().splitlines() if ' run ' in line]
    asked = [re.findall('^GPU-a|--(?:bits|method|seed) [^ ]+', line) for line in calls]
    assert asked == [
        ['GPU-a', '--bits 48', '--seed 2'],
        ['GPU-a', '--bits 16'],
        ['GPU-a', '--bits 24'],
        ['GPU-a', '--bits 48', '--method ce'],
    ]


def test_a_run_on_two_gpus_has_two_processes(checked):
    names = checked('grid: [{bits: 16}]\nmodified: true\ngpu: 2')
    words = shlex.split(names['command'](SimpleNamespace(name=next(iter(names['RUNS'])))))
    assert words[1:3] == [str(ROOT / 'workflow/on_gpu.py'), '2']
    assert words[3:7] == ['accelerate', 'launch', '--multi_gpu', '--num_processes']
    assert words[7:13] == ['2', '--main_process_port', '0', '-m', 'dcwh', 'run']


@pytest.fixture
def on_gpu(monkeypatch, tmp_path):
    "workflow/on_gpu.py as a module, on a machine without GPUs."
    spec = importlib.util.spec_from_file_location('on_gpu', ROOT / 'workflow/on_gpu.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'cards', dict)
    monkeypatch.setattr(module, 'counted', list)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    return module


@pytest.mark.parametrize(
    ('given', 'names'),
    [
        ('0', ['0']),
        ('3,1', ['3', '1']),
        (' 0, 1 ', ['0', '1']),
        ('0,0', ['0']),
        ('', []),
        ('-1', []),
        ('2,-1,3', ['2']),
        ('0,,1', ['0']),
        ('NoDevFiles', []),
        ('GPU-8932f937,MIG-1b', ['GPU-8932f937', 'MIG-1b']),
        (None, ['0', '1']),
    ],
)
def test_the_gpus_that_may_be_used_are_those_that_cuda_would_see(given, names, on_gpu, monkeypatch):
    if given is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
    assert on_gpu.devices({'0': 'GPU-aa', '1': 'GPU-bb'}) == names


def test_a_gpu_has_one_lock_under_all_its_names(on_gpu, monkeypatch):
    known = {'0': 'GPU-8932', '1': 'GPU-77'}
    assert {on_gpu.lock_of(name, known) for name in ('0', 'GPU-8932', 'GPU-89')} == {'GPU-8932'}
    assert on_gpu.lock_of('1', known) == 'GPU-77'
    assert on_gpu.lock_of('MIG-GPU-8932/1/0', known) == 'all-MIG-GPU-8932_1_0'
    monkeypatch.setenv('SLURM_JOB_ID', '12')  # GPU 0 of one job is not GPU 0 of another
    assert on_gpu.lock_of('0', {}) == '12-0'


def test_two_gpus_are_taken_together_or_not_at_all(on_gpu, tmp_path):
    files = {name: tmp_path / name for name in ('0', '1', '2')}
    first = on_gpu.take(files, 2)
    assert list(first) == ['0', '1']
    assert on_gpu.take(files, 2) == {}  # and lets the third go again
    second = on_gpu.take(files, 1)
    assert list(second) == ['2'] and on_gpu.take(files, 1) == {}
    os.close(first['1'])
    assert list(on_gpu.take(files, 1)) == ['1']


@pytest.mark.parametrize(
    ('given', 'words', 'said'),
    [
        (
            None,
            ['1', 'true'],
            'a run asks for 1 GPU, and there is none here; without one, say gpu: 0',
        ),
        ('', ['1', 'true'], "there is none here (CUDA_VISIBLE_DEVICES is '')"),
        (
            '5',
            ['2', 'true'],
            'a run asks for 2 GPU, and those there are: 5 (CUDA_VISIBLE_DEVICES is',
        ),
        (None, ['one', 'true'], 'give a number of GPUs'),
        (None, ['1'], 'give a number of GPUs'),
    ],
)
def test_gpus_that_are_not_there_are_named(given, words, said, on_gpu, monkeypatch):
    if given is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
    with pytest.raises(ValueError) as error:
        on_gpu.main(words)
    assert said in str(error.value) and '\n' not in str(error.value)


@pytest.mark.slow
def test_a_comparison_is_made_where_there_is_something_to_compare(tmp_path):
    "A grid of another study ends without one. A later comparison says what it does not show."
    comparison, grid = tmp_path / 'reports/compare.ipynb', [{**QUICK, 'epochs': 1}]
    for said in ('is of study comparison: none is made', 'Nothing to be done'):
        done = snakemake(tmp_path, grid, study='mine')
        assert done.returncode == 0 and said in done.stderr, done.stderr[-3000:]
    assert [row['study'] for row in rows(tmp_path).values()] == ['mine']
    assert not comparison.exists()
    other = snakemake(tmp_path, grid, study='ablation')
    assert '1 of the runs are recorded with study mine, not ablation, and stay so' in other.stderr
    more = snakemake(tmp_path, [{**QUICK, 'epochs': 1, 'bits': 8}])
    assert more.returncode == 0, more.stderr[-3000:]
    assert 'not shown, runs of other studies: mine 1' in comparison.read_text()


def on_gpus(count, visible, folder):
    "A process that has so many of the visible GPUs; it names them, and waits for a line."
    words = [sys.executable, str(ROOT / 'workflow/on_gpu.py'), str(count)]
    words += ['sh', '-c', 'echo "$CUDA_VISIBLE_DEVICES"; read wait']
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': visible, 'TMPDIR': str(folder)}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


def has(process):
    return process.stdout.readline().strip()


def end(*processes):
    for process in processes:
        process.kill()
        process.communicate()


def test_each_of_many_has_a_gpu_of_its_own_and_a_killed_one_gives_it_back(tmp_path):
    visible = [str(number) for number in range(8)]
    running = [on_gpus(1, ','.join(visible), tmp_path) for _ in visible]
    try:
        assert sorted(map(has, running)) == visible
        running.append(on_gpus(1, ','.join(visible), tmp_path))
        assert running[-1].stderr.readline().startswith('waiting for 1 of the GPUs 0, 1, 2')
        freed = running[3]
        named = Path(f'/proc/{freed.pid}/environ').read_bytes().decode()
        os.kill(freed.pid, signal.SIGKILL)
        assert f'CUDA_VISIBLE_DEVICES={has(running[-1])}\0' in named
    finally:
        end(*running)


def test_one_waits_until_both_gpus_are_free(tmp_path):
    running = [on_gpus(1, '0,1', tmp_path) for _ in range(2)]
    try:
        assert sorted(map(has, running)) == ['0', '1']
        running.append(on_gpus(2, '0,1', tmp_path))
        assert 'waiting for 2' in running[2].stderr.readline()
        for process in running[:2]:
            process.communicate('\n')  # they end by themselves
        assert has(running[2]) == '0,1'
    finally:
        end(*running)


def test_without_a_gpu_asked_for_the_command_is_simply_run(tmp_path):
    process = on_gpus(0, 'as it is', tmp_path)
    assert process.communicate('\n') == ('as it is\n', '')
    assert process.returncode == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('grid:', 'grid is null'),
        ('grid: []', 'grid is []'),
        ('grid: digits', 'grid is "digits"'),
        ('grid: {bits: 16}', 'a list of blocks'),
        ('grid: [bits]', 'block 1 is "bits"'),
        ('grid: [{bits: 16}, {}]', 'block 2 is {}'),
        ('grid: [{bits: }]', 'bits is null'),
        ('grid: [{bits: []}]', 'bits is []'),
        ('grid: [{bits: many}]', 'bits is'),
        ('grid: [{bites: 16}]', "unknown setting 'bites'"),
        ('grid: [{lr: .inf}]', 'lr is Infinity'),
        ('grid: [{epochs: 2026-01-01}]', 'epochs is "2026-01-01"'),
        ('grid: [{bits: 16}]\ncores: 2', 'unknown in a grid file: "cores"'),
        ('grid:\n  - {bits: 16}\n  - {seed: 0, bits: 24, seed: 1}', 'line 3: seed is given twice'),
        ('grid: [{bits: 16}]\ngrid: [{bits: 24}]', 'line 1: grid is given twice'),
        ('grid: [{bits: 010}]', 'YAML reads 010 as 8'),
        ('grid:\n- {bits: 16,\n   seed: [0, 1:30]}', 'line 3: YAML reads 1:30 as 90'),
        ('grid: [{lr: 1_0.5}]', 'YAML reads 1_0.5 as 10.5'),
        ('grid: &itself\n- {bits: 16}\n- *itself', 'block 2 is a list that holds itself'),
        ('grid: [{bits: 16}]\ndetail: long', 'none, brief or full'),
        ('grid: [{bits: 16}]\nthreads: 0', 'threads is 0'),
        ('grid: [{bits: 16}]\ngpu: -1', 'gpu is -1'),
        ('grid: [{dataset: folder/x, data_dir: [a, b], bits: 16}]', 'asked for twice, from other'),
        ('grid: [{bits: 16}]\nminutes: soon', 'minutes is "soon"'),
        ('grid: [{bits: 16}]\nreports: [a]', 'reports is ["a"]'),
        ('grid: [{bits: 16}]\nstudy: My trials', 'study is "My trials"'),
        ('grid: [{bits: 16}]\nmodified: 1', 'modified is 1'),
        ('grid: [{bits: 16}]\nruns: "{a}"', 'without braces'),
        ('modified: true\ngrid: [{bits: 16}]\ncost: cheap', 'cost is "cheap"'),
        (
            'modified: true\n'  # this test may run where dcwh/ has changes
            'grid: [{bits: 16}]\ncost: {basis: a, ms_per_image: {}, images: {}}',
            'no numbers for small on digits',
        ),
    ],
    ids=lambda text: text[:30].replace('\n', ' '),
)
def test_a_grid_file_that_is_wrong_is_told_so(content, said, checked):
    with pytest.raises(checked.error) as error:
        checked(content)
    assert said in str(error.value)
    assert '\n' not in str(error.value) and 'object' not in str(error.value)


@pytest.fixture
def checked(tmp_path, monkeypatch):
    "The first part of the Snakefile, up to its rules, in this process: a snakemake takes seconds."
    from snakemake.exceptions import WorkflowError

    monkeypatch.chdir(tmp_path)
    code = (ROOT / 'workflow/Snakefile').read_text().partition('\nlocalrules:')[0]

    def run(content):
        file = tmp_path / 'grid.yaml'
        file.write_text(content)
        names = {
            'config': yaml.safe_load(content),
            'WorkflowError': WorkflowError,
            'workflow': SimpleNamespace(basedir=ROOT / 'workflow', configfiles=[file]),
        }
        exec(code, names)
        return names

    run.error = WorkflowError
    return run


def test_rows_of_other_superclasses_or_weights_are_refused_as_a_run_is(
    checked, tmp_path, monkeypatch
):
    for number in range(16):
        file = tmp_path / 'birds' / 'abcd'[number % 4] / f'{number}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (8, 8), 10 * number).save(file)
    kin, weights = tmp_path / 'birds/superclasses.csv', tmp_path / 'birds.safetensors'
    kin.write_text('class,superclass\na,x\nb,x\nc,y\nd,y\n')
    torch.manual_seed(0)
    save_file(HashModel('small', 8, 'none', 8).backbone.state_dict(), weights)
    places = {'data_dir': str(tmp_path / 'birds'), 'weights': str(weights)}
    settings = {**SMALLEST, **places, 'dataset': 'folder/birds', 'bits': 8}
    monkeypatch.setattr('dcwh.experiment.commit', lambda: 'abc')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # after so little training codes are equal
        record(run(resolve(settings), tmp_path / 'other'), tmp_path / 'reports')
    content = json.dumps({'grid': [settings]})
    assert checked(content)['LEFT'] == []
    held, began = kin.read_text(), weights.read_bytes()
    kin.write_text(held.replace('b,x', 'b,y'))
    with pytest.raises(checked.error, match='was measured with superclasses'):
        checked(content)
    kin.write_text(held.replace('b,x', ''))
    with pytest.raises(checked.error, match='1 classes of folder/birds have no superclass'):
        checked(content)
    kin.unlink()  # what was trained and searched is the same without
    assert checked(content)['LEFT'] == []
    kin.write_text(held)
    weights.write_bytes(began + b' ')
    with pytest.raises(checked.error, match='began with other weights'):
        checked(content)
    weights.write_bytes(began)
    shutil.rmtree(tmp_path / 'birds')
    assert checked(content)['LEFT'] == []  # a row is read without its images


@pytest.mark.parametrize('folder', ['my runs', "it's", '"a"', '$HOME', 'a;b', 'a*'])
def test_folders_keep_their_names_in_the_shell(folder, checked):
    grid = [{'bits': 16, 'epochs': 1, 'method_settings': {}}]
    asked = {'modified': True, 'reports': folder, 'runs': folder, 'grid': grid}
    names = checked(json.dumps(asked))
    ((name, _),) = names['RUNS'].items()
    line = names['command'](SimpleNamespace(name=name))
    first, _, second = line.partition(' || ')
    words = shlex.split(first)
    assert words[:6] == ['dcwh', 'run', '--reports', folder, '--runs', folder]
    assert words[-2:] == ['--detail', 'none'] and shlex.split(second)[-2:] == ['--detail', 'brief']


def test_the_lines_of_a_grid_in_a_folder_with_spaces(tmp_path):
    asked = {'reports': 'my reports', 'runs': 'my runs'}
    plan = snakemake(tmp_path, [QUICK], '--dry-run', '--printshellcmds', **asked)
    assert plan.returncode == 0, plan.stderr[-3000:]
    lines = re.findall('^Shell command: (.*dcwh.*)', plan.stdout, re.MULTILINE)
    assert len(lines) == 2
    assert all('my reports' in shlex.split(line.replace('(', ' ')) for line in lines)


@pytest.mark.parametrize('profile', ['default', 'gpus', 'slurm'])
def test_a_result_of_another_process_stays_when_a_run_fails(profile):
    settings = yaml.safe_load((ROOT / f'workflow/profiles/{profile}/config.yaml').read_text())
    assert settings['keep-incomplete'] and settings['ignore-incomplete'] and settings['nolock']
