"""On a GPU, where there is one: the numbers of the processor, and steps that wait for nothing."""

import warnings

import numpy as np
import pytest
import torch
from test_processes import ALONE, EVERY_METHOD, launch

from dcwh.codes import Codes
from dcwh.config import resolve
from dcwh.counting import _count_by_torch, histograms
from dcwh.data import load
from dcwh.evaluation import ap_of_outputs, evaluate
from dcwh.experiment import run
from dcwh.metrics import HashRetrieval
from dcwh.model import HashModel
from dcwh.training import accelerator_of, build, loader_of, numerics, train_epoch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU is here')
GPU = 'cuda'


def sides(bits, classes, several):
    "Random queries and a database."
    rng = np.random.default_rng(bits)
    for n in (90, 5_000):
        shape = (n, classes) if several else n
        labels = rng.random(shape) < 0.3 if several else rng.integers(0, classes, shape)
        packed = np.packbits(rng.integers(0, 2, (n, bits), dtype=np.uint8), axis=1)
        yield Codes.from_packed(packed, bits, labels)


@pytest.mark.parametrize('several, graded', [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize('bits, classes', [(1, 2), (31, 5), (48, 100), (64, 10), (1_000, 40)])
def test_distances_are_counted_alike(bits, classes, several, graded):
    query, database = sides(bits, classes, several)
    expected = histograms(query, database, graded)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # of a kernel that does not run here
        assert np.array_equal(histograms(query, database, graded, GPU), expected)
    assert np.array_equal(_count_by_torch(query, database, np.zeros_like(expected), GPU), expected)
    one, two = (evaluate(query, database, device=at).to_dict() for at in ('cpu', GPU))
    assert one == two


def test_the_metric_of_torchmetrics_lives_there():
    pytest.importorskip('torchmetrics')
    h, y, found = torch.randn(300, 24), torch.arange(300) % 7, []
    for device in ('cpu', GPU):
        metric = HashRetrieval(top_k=9).to(device)
        metric.update(h[:50].to(device), y[:50].to(device), 'query')
        metric.update(h[50:].to(device), y[50:].to(device), 'database')
        found.append({name: float(value) for name, value in metric.compute().items()})
    assert found[0] == found[1]


@pytest.mark.parametrize('top_k', [None, 100])
def test_outputs_are_ranked_alike(top_k):
    g = torch.Generator().manual_seed(0)
    y, z = np.arange(60) % 5, np.arange(3_000) % 5
    query, database = torch.randn(60, 48, generator=g), torch.randn(3_000, 48, generator=g)
    database[::3] = database[0]  # ties
    one, two = (ap_of_outputs(query, database, y, z, top_k, device=at) for at in ('cpu', GPU))
    assert one == pytest.approx(two, abs=1e-12)


def test_every_method_learns_alike(tmp_path):
    (tmp_path / 'script.py').write_text(EVERY_METHOD)
    made = {}
    for place, hidden in {'cpu': {'CUDA_VISIBLE_DEVICES': ''}, GPU: {}}.items():
        out = tmp_path / f'{place}.pt'
        done = launch(1, tmp_path / 'script.py', out, env=ALONE | hidden)
        assert not done.returncode, done.stderr
        made[place] = torch.load(out, weights_only=True, map_location='cpu')
    apart = {
        (name, epoch, term): abs(value - made[GPU][name]['history'][epoch][term])
        for name, parts in made['cpu'].items()
        for epoch, facts in enumerate(parts['history'])
        for term, value in facts.items()
        if not isinstance(value, str)
    }
    assert {where: gap for where, gap in apart.items() if gap > 1e-3} == {}


def waits(config, images):
    "How often an epoch waits for the GPU."
    accelerator = accelerator_of(config)
    model, criterion, optimizer = build(config, 10, images=len(images))
    model, optimizer = accelerator.prepare(model.to(accelerator.device), optimizer)
    criterion.to(accelerator.device)
    loader = loader_of(config, images, accelerator)
    assert loader.held.is_cuda
    counts = []
    for number in range(2):  # the first one also makes what lasts for the run
        criterion.begin_epoch(number + 1, 3)
        torch.cuda.set_sync_debug_mode('warn')
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            train_epoch(config, loader, number, accelerator, model, criterion, optimizer)
        torch.cuda.set_sync_debug_mode('default')
        criterion.end_epoch()
        counts.append(sum('synchroniz' in str(each.message) for each in seen))
    return counts[-1]


@pytest.mark.parametrize('method', ['dcwh', 'ce', 'dtsh', 'dsdh'])
def test_a_step_waits_for_nothing(method):
    "An epoch of five times as many steps waits as often."
    words = {'dataset': 'digits', 'bits': 48, 'recipe': 'gpu', 'method': method, 'compile': 'off'}
    images = load('digits').train
    steps = 9, 45
    counts = [
        waits(resolve(**words, batch_size=-(-len(images) // number)), images) for number in steps
    ]
    assert 0 < counts[0] == counts[1]


def test_a_deterministic_run_is_the_same_twice(tmp_path):
    config = resolve(dataset='digits', bits=16, recipe='quick', deterministic=True)
    one, two = (run(config, tmp_path / name) for name in 'ab')
    assert one['history'] == two['history'] and one['metrics'] == two['metrics']


def test_the_recipe_for_gpus_learns_and_its_model_encodes_alike(tmp_path):
    config = resolve(dataset='digits', bits=48, recipe='gpu')
    result = run(config, tmp_path / 'runs')
    assert result['metrics']['map'] > 0.9
    assert result['manifest']['device'] == torch.cuda.get_device_name()
    model = HashModel.from_pretrained(next(tmp_path.rglob('model')))
    images = load('digits').query
    with numerics(resolve(dataset='digits', bits=48)):  # float32 as on the processor
        one, two = (model.to(device).encode(images) for device in ('cpu', GPU))
    assert one.bits == 48 and np.mean(np.unpackbits(one.packed ^ two.packed)) < 1e-3
