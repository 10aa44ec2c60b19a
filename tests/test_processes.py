"""Training in several processes: the same as in one, for every method, also killed and resumed.

Processes are started by torchrun and speak by gloo. The smooth network has no corner at which a
last bit decides, so that all differences are of rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcwh.codes import Codes
from dcwh.methods import METHODS

pytestmark = pytest.mark.whole
ALONE = {name: value for name, value in os.environ.items() if not name.startswith('ACCELERATE')}
ALONE['OMP_NUM_THREADS'] = '1'
TOGETHER = {**ALONE, 'ACCELERATE_USE_CPU': 'true'}
EVERY_METHOD = """
import json, sys, torch
from torch import nn
from dcwh.methods import METHODS
from dcwh.data import load
from dcwh.config import resolve
from dcwh.training import accelerator_of, train
data, trained = load('digits', train_per_class=20), {}
asked = [{'method': method} for method in METHODS] + [{'centres': 'exact'}]
for words in asked:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32), nn.Tanh())
    config = resolve(dataset='digits', bits=16, epochs=2, lr=1e-3, batch_size=64, **words)
    made = train(config, data, backbone, progress=False)
    parts = {'history': made.history, 'weights': dict(made.model.state_dict()),
             'criterion': dict(made.criterion.state_dict())}
    trained['exact' if 'centres' in words else words['method']] = parts
if accelerator_of(config).is_main_process: torch.save(trained, sys.argv[1])
"""
NORMALISED = """
import sys, torch
from dcwh.data import load
from dcwh.config import resolve
from dcwh.training import accelerator_of, train
config = resolve(dataset='digits', bits=16, epochs=1, optimizer='sgd', lr=1e-4, batch_size=48)
made = train(config, load('digits', train_per_class=20), progress=False)
parts = {'history': made.history, 'weights': dict(made.model.state_dict()), 'criterion': {}}
if accelerator_of(config).is_main_process: torch.save({'small': parts}, sys.argv[1])
"""
OWN_LOOP = """
import sys, torch
from torch import distributed, nn
from dcwh.loss import DCWHLoss
from dcwh.methods import Balanced
from dcwh.optimizer import TwoStep
g = torch.Generator().manual_seed(0)
y = torch.arange(240) % 4
x = 3 * torch.randn(4, 20, generator=g)[y] + torch.randn(240, 20, generator=g)
rank, world = 0, 1
several = distributed.is_torchelastic_launched()
if several:
    distributed.init_process_group('gloo')
    rank, world = distributed.get_rank(), distributed.get_world_size()
trained = {}
for name, kind, rule in (('running', TwoStep, 'running'), ('exact', TwoStep, 'exact'),
                         ('balanced', Balanced, 'running')):
    torch.manual_seed(0)
    net = nn.Linear(20, 16)
    if several: net = nn.parallel.DistributedDataParallel(net)
    criterion = kind(DCWHLoss(4, 16, generator=torch.Generator().manual_seed(0)), rule=rule)
    optimizer, history = torch.optim.SGD(net.parameters(), 0.1), []
    for epoch in range(4):
        criterion.begin_epoch(epoch, 4)
        for batch in torch.arange(240).split(60):
            own = batch[rank::world]
            optimizer.zero_grad()
            criterion(net(x[own]), y[own]).backward()
            optimizer.step()
        facts = criterion.end_epoch(lambda: (net(x[rank::world]), y[rank::world]))
        history.append({'apart': facts['least_centre_distance']})
    weights = {k.removeprefix('module.'): v for k, v in net.state_dict().items()}
    parts = {'history': history, 'weights': weights, 'criterion': dict(criterion.state_dict())}
    trained[name] = parts
torch.save(trained, sys.argv[1] + '.' * rank)  # a file for each process
"""
DYING = """
import os, signal, dcwh.model
from dcwh.cli import app
steps, forward = iter(range(40)), dcwh.model.HashModel.forward
def dying(self, x):
    if os.environ['RANK'] == '1' and next(steps, None) is None: os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, x)
dcwh.model.HashModel.forward = dying
app()
"""


def launch(processes, *words, env=TOGETHER, **options):
    "Run a script, or a module, in several processes; in one, without a launcher."
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    command = [sys.executable, *(launcher if processes > 1 else []), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=env, **options)


def trained(script, processes, folder):
    "What a script has saved."
    file, out = folder / 'script.py', folder / f'{processes}.pt'
    file.write_text(script)
    done = launch(processes, file, out, env=TOGETHER if processes > 1 else ALONE)
    assert not done.returncode, done.stderr
    return torch.load(out, weights_only=True)


def assert_close(one, many):
    "History and weights within 1e-5."
    assert one.keys() == many.keys()
    for name, parts in one.items():
        for epoch, other in zip(parts['history'], many[name]['history'], strict=True):
            for term, value in epoch.items():
                assert other[term] == pytest.approx(value, abs=1e-5), (name, term)
        for kind in ('weights', 'criterion'):
            for tensor, value in parts[kind].items():
                found = many[name][kind][tensor].double()
                torch.testing.assert_close(
                    found,
                    value.double(),
                    rtol=1e-5,
                    atol=1e-5,
                    msg=lambda said, of=f'{name}, {tensor}': f'{of}: {said}',
                )


@pytest.fixture(scope='module')
def of_one(tmp_path_factory):
    return trained(EVERY_METHOD, 1, tmp_path_factory.mktemp('one'))


@pytest.mark.parametrize('processes', (2, 3))
def test_every_method_is_the_same_in_several_processes(tmp_path, of_one, processes):
    assert of_one.keys() == {*METHODS, 'exact'}
    assert_close(of_one, trained(EVERY_METHOD, processes, tmp_path))


def test_centres_are_the_same_in_all_processes_of_a_loop_of_ones_own(tmp_path):
    one, two = (trained(OWN_LOOP, processes, tmp_path) for processes in (1, 2))
    assert_close(one, two)
    other = torch.load(tmp_path / '2.pt.', weights_only=True)
    for name, parts in two.items():
        for tensor, value in parts['criterion'].items():
            assert torch.equal(value, other[name]['criterion'][tensor]), (name, tensor)


def test_batch_statistics_are_those_of_the_whole_batch(tmp_path):
    assert_close(trained(NORMALISED, 1, tmp_path), trained(NORMALISED, 3, tmp_path))


def test_killed_and_resumed(tmp_path):
    words = ['run', '--recipe', 'quick', '--detail', 'none']
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    done = launch(2, '-m', 'dcwh', *words, '--runs', whole)
    assert not done.returncode, done.stderr
    (tmp_path / 'dying.py').write_text(DYING)
    assert launch(2, tmp_path / 'dying.py', *words, '--runs', killed).returncode
    assert list(killed.rglob('checkpoint.pt')) and not list(killed.rglob('result.json'))
    again = launch(2, '-m', 'dcwh', *words, '--runs', killed)
    assert not again.returncode and 'resumed at epoch' in again.stderr, again.stderr
    one, two = (json.loads(next(runs.rglob('result.json')).read_text()) for runs in (whole, killed))
    assert one['history'] == two['history'] and one['metrics'] == two['metrics']
    sides = [Codes.load(next(runs.rglob('query.npz'))) for runs in (whole, killed)]
    assert (sides[0].packed == sides[1].packed).all()
    assert 'processes' in one['manifest']['device'] and not list(whole.rglob('checkpoint.pt'))


def test_a_run_with_its_report(tmp_path):
    words = [
        'run',
        '--recipe',
        'quick',
        '--set',
        'optimizer=sgd',
        '--set',
        'lr=0.01',
        '--modified',
        '--record',
        '--template',
        Path('nbs/templates/run.ipynb').resolve(),
    ]
    places = ['--detail', 'none', '--runs', 'alone', '--reports', 'one']
    alone = launch(1, '-m', 'dcwh', *words, *places, cwd=tmp_path, env=ALONE)
    together = launch(2, '-m', 'dcwh', *words, '--reports', 'tables', cwd=tmp_path)
    assert not alone.returncode and not together.returncode, together.stderr
    assert together.stdout.count('mAP') == together.stdout.count('report: ') == 1  # one speaks
    files = [next((tmp_path / runs).rglob('result.json')) for runs in ('runs', 'alone')]
    found = [json.loads(file.read_text())['metrics']['map'] for file in files]
    assert found[0] == pytest.approx(found[1], abs=0.001)
    assert len((tmp_path / 'tables/digits.csv').read_text().splitlines()) == 2
    assert '"output_type": "error"' not in files[0].with_name('report.ipynb').read_text()


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path):
    words = ['-m', 'dcwh', 'run', '--recipe', 'quick', '--detail', 'none', '--runs', tmp_path]
    refused = launch(2, *words, env=ALONE)
    assert refused.returncode and 'set ACCELERATE_USE_CPU=true' in refused.stderr
    assert not list(tmp_path.rglob('result.json'))


def test_layers_whose_statistics_cannot_be_joined_are_refused(tmp_path):
    words = ['run', '--detail', 'none', '--runs', tmp_path]
    for setting in ('backbone=timm/tf_efficientnet_lite0', 'weights=none', 'image_size=32'):
        words += ['--set', setting]
    refused = launch(2, '-m', 'dcwh', *words)
    assert refused.returncode and 'processes share on GPUs only' in refused.stderr
