"""What a step of each loss costs alone, and what the method adds to a whole training step.

make benchmark ARGS="-k training"

Losses: forward and backward on random outputs, without a network, on one thread; one number is
varied at a time around a batch of 128, 48 bits, 10 classes and 50,000 training images. `exp,
sum, log` is the class-wise loss in the form that public code has; with centres that stay,
neither has a gradient of the centres. Whole steps: ResNet-18 at 64 pixels on 512 images of
noise, beside a bare loop of the same network, cross-entropy and SGD; epochs of the same with
centres in closed form, and without; each divided by the number of steps. Steps of the paper's
grid: its backbones at 224 pixels on a batch of 16. Ends of an epoch: what a method does there
with 50,000 outputs. The table is benchmarks/training.csv."""

from time import perf_counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dcwh.config import resolve
from dcwh.data import load, prepare
from dcwh.loss import ClassWiseLoss
from dcwh.methods import METHODS
from dcwh.sources import Source, Split
from dcwh.training import accelerator_of, build, loader_of, train_epoch

BASE = {'batch': 128, 'bits': 48, 'classes': 10, 'images': 50_000}
VARIED = [
    BASE,
    *(
        {**BASE, name: value}
        for name, values in {
            'batch': (32, 512),
            'bits': (16, 1024),
            'classes': (100, 1_000, 10_000),
            'images': (5_000, 1_000_000),
        }.items()
        for value in values
    ),
]


class ExpSumLog(nn.Module):
    """The class-wise loss as public code has it: squared distances by one matrix product,
    exponentials, their sum, small constants, a logarithm, and a mask."""

    def __init__(self, classes, bits):
        super().__init__()
        self.centres, self.variance = nn.Parameter(torch.randn(classes, bits)), bits / 4

    def forward(self, h, y):
        squared = (h.square().sum(1, keepdim=True) + self.centres.square().sum(1)).addmm_(
            h, self.centres.T, alpha=-2
        )
        density = torch.exp(-squared / (2 * self.variance))
        share, own = (
            density / (density.sum(1, keepdim=True) + 1e-6),
            y[:, None] == torch.arange(len(self.centres)),
        )
        return -(torch.log(share + 1e-6) * own.float()).sum() / len(h)


def criterion_of(method, point):
    config = resolve(dataset='digits', method=method, bits=point['bits'])
    return METHODS[method].build(
        config, point['classes'], point['images'], torch.Generator().manual_seed(0)
    )


def batch_of(point):
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(point['batch'], point['bits'], generator=g),
        torch.randint(point['classes'], (point['batch'],), generator=g),
        torch.randint(point['images'], (point['batch'],), generator=g),
    )


def kept_for_backward(step):
    "Megabytes of the tensors that autograd keeps, each storage once."
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    return sum(seen.values()) / 1e6


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measured(benchmark, name, point, criterion, loss):
    h, y, index = batch_of(point)

    def step():
        h.requires_grad_().grad = None
        loss(h, y, index).backward()

    step()
    started = perf_counter()
    step()
    slow = perf_counter() - started > 0.5  # seconds, of which a hundredth says nothing
    kept = [
        *criterion.parameters(),
        *criterion.buffers(),
        *(t for t in [getattr(criterion, 'sums', None)] if isinstance(t, torch.Tensor)),
    ]  # sums for the class means
    state = sum(t.nbytes for t in kept) / 1e6
    benchmark.extra_info.update(method=name, **point, state=state, kept=kept_for_backward(step))
    benchmark.pedantic(
        step, rounds=2 if slow else 30, iterations=1 if slow else 3, warmup_rounds=0 if slow else 1
    )


@pytest.mark.parametrize('point', VARIED, ids=lambda p: '-'.join(map(str, p.values())))
@pytest.mark.parametrize(
    'method', [m for m in METHODS if m not in ('dcwh-tanh', 'dcwh-sigmoid', 'dcwh-cube')]
)  # which measure their own gradients
def test_loss(benchmark, one_thread, method, point):
    if METHODS[method].remembers and point['images'] * point['classes'] > 1e7:
        pytest.skip(
            'the labels that are remembered alone are tens of megabytes and more; '
            'fewer classes say enough'
        )
    try:
        criterion = criterion_of(method, point).train()
    except ValueError as e:
        pytest.skip(str(e))  # 10,000 classes have no 10,000 corners of 16 bits far apart
    criterion.begin_epoch(0, 2)
    if hasattr(criterion, 'memory'):
        criterion.memory.seen[:] = True  # as after the first epoch
    measured(benchmark, method, point, criterion, criterion)


@pytest.mark.parametrize(
    'point', [{**BASE, 'classes': c} for c in (10, 100, 1_000)], ids=lambda p: str(p['classes'])
)
@pytest.mark.parametrize(
    'form',
    (
        'class-wise term alone',
        'exp, sum, log',
        'class-wise term alone, centres that stay',
        'exp, sum, log, centres that stay',
    ),
)
def test_form(benchmark, one_thread, form, point):
    criterion = (ExpSumLog if form.startswith('exp') else ClassWiseLoss)(
        point['classes'], point['bits']
    ).requires_grad_('stay' not in form)
    measured(benchmark, form, point, criterion, lambda h, y, index: criterion(h, y))


@pytest.mark.parametrize('method', ['dcwh', 'dsdh'])
def test_end_of_epoch(benchmark, one_thread, method):
    criterion, (h, y, _) = (
        criterion_of(method, BASE).train(),
        batch_of({**BASE, 'batch': BASE['images']}),
    )
    criterion.begin_epoch(1, 3)  # behind the epochs for which the centres stay
    if method == 'dcwh':
        criterion(h + 4 * criterion.centres[y], y)
    else:
        criterion.memory.write(h, y, torch.arange(len(h)))  # as if each image had been in a batch
        criterion.codes[:] = h.sign()
    benchmark.extra_info.update(method=f'end of an epoch: {method}', **BASE, state=None, kept=None)
    benchmark.pedantic(criterion.end_epoch, rounds=5, warmup_rounds=1)


def images_of_noise(number, side):
    rng = np.random.default_rng(0)
    return load(
        Source(
            'noise',
            rng.integers(0, 256, (number, side, side, 3), dtype=np.uint8),
            np.arange(number) % 10,
            tuple('0123456789'),
            Split.by_test(np.arange(number) < number // 5),
        )
    )


@pytest.mark.parametrize('backbone', ['googlenet', 'resnet50'])
def test_steps_of_the_paper(benchmark, one_thread, backbone):
    noise = images_of_noise(20, 240)
    config = resolve(
        {'workers': 0, 'weights': 'none', 'batch_size': 16},
        dataset='folder/noise',
        bits=48,
        recipe='paper',
        backbone=backbone,
    )
    (model, criterion, optimizer), accelerator = build(config, 10), accelerator_of(config)
    loader = loader_of(config, noise.train, accelerator)
    criterion.begin_epoch(0, 1)
    benchmark.extra_info.update(
        method=f"step of the paper's grid: {backbone}",
        batch=16,
        bits=48,
        classes=10,
        images=16,
        state=None,
        kept=None,
    )
    steps = config, loader, 0, accelerator, model, criterion, optimizer
    benchmark.pedantic(train_epoch, steps, rounds=3, warmup_rounds=1)


@pytest.fixture(scope='module')
def noise():
    "640 images of noise at 64 pixels, 512 of them for training."
    return images_of_noise(640, 64)


WHOLE = {
    'whole step: bare loop, cross-entropy': 'dcwh',
    **{
        f'whole step: {method}': method
        for method in ('dcwh', 'ce', 'hashnet', 'dch', 'dtsh', 'dpsh', 'dsdh')
    },
    'epoch: dcwh-fixed, centres that stay': 'dcwh-fixed',
    'epoch: dcwh, centres in closed form': 'dcwh',
}


@pytest.mark.parametrize('what', WHOLE)
def test_whole_steps(benchmark, one_thread, noise, what):
    config = resolve(
        {'optimizer': 'sgd', 'workers': 0, 'weights': 'none'},
        dataset='folder/noise',
        bits=48,
        method=WHOLE[what],
        backbone='resnet18',
        image_size=64,
        batch_size=128,
    )
    source, labels = (
        noise.train.source.images[noise.train.ids],
        torch.from_numpy(noise.train.labels),
    )
    model, criterion, optimizer = build(
        config, 10, images=BASE['images']
    )  # of which those that are remembered stand for 50,000
    if hasattr(criterion, 'memory'):
        criterion.memory.seen[:] = True
    head, images = nn.Linear(48, 10), torch.from_numpy(source).permute(0, 3, 1, 2)
    bare_optimizer = torch.optim.SGD(
        [*model.parameters(), *head.parameters()], lr=0.01, momentum=0.9, weight_decay=0.01
    )
    model.train()

    def bare():
        for rows in torch.randperm(len(labels)).split(128):
            x = prepare(
                images[rows],
                config.image_size,
                config.resize,
                torch.rand(len(rows), 3),
                config.padding,
                config.flip,
            )
            bare_optimizer.zero_grad()
            cross_entropy(
                head(model(x.contiguous(memory_format=torch.channels_last))), labels[rows]
            ).backward()
            bare_optimizer.step()

    def ours():
        criterion.begin_epoch(1, 3)
        train_epoch(config, loader, 1, accelerator, model, criterion, optimizer)
        if 'epoch' in what:
            criterion.end_epoch()  # sums kept while the epoch went by: no second pass

    accelerator = accelerator_of(config)
    loader = loader_of(config, noise.train, accelerator)
    benchmark.extra_info.update(
        method=what,
        batch=128,
        bits=48,
        classes=10,
        images=len(labels),
        state=None,
        kept=None,
        steps=len(labels) // 128,
    )
    benchmark.pedantic(
        bare if 'bare' in what else ours, rounds=10 if 'epoch' in what else 5, warmup_rounds=1
    )
