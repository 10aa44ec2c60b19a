"""What a GPU does with a training step and with an evaluation, beside the least that it could take.

    python benchmarks/gpu.py               # on a GPU; writes benchmarks/gpu.csv
    python benchmarks/gpu.py --sizes cpu   # on a processor, alike; writes benchmarks/step.csv
    python benchmarks/gpu.py --sizes tiny --out FILE   # does all of it run?

Nothing but this repository is needed.

- Whole steps: images per second of `train_epoch` on images that live on the device, beside a bare
  loop over the same compiled network, with the same batch, precision, layout and optimizer.
- Waits: the same step with each thing that would make the GPU wait put back, one at a time.
- Cuts: a batch from bytes to floats, by one gather and by a loop over its images.
- Evaluation: distances of all pairs of codes, counted for every query.
- A run of CIFAR-10 (JPEG), if its images are there: its mAP beside the one recorded on a CPU.
"""

import logging
from argparse import ArgumentParser
from collections import namedtuple
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from tables import write_table
from torch.nn.functional import pad
from torch.profiler import ProfilerActivity, profile

from dcwh.codes import Codes
from dcwh.config import resolve
from dcwh.counting import histograms
from dcwh.data import epoch_draws, load, prepare
from dcwh.evaluation import evaluate
from dcwh.experiment import processor, run
from dcwh.files import writable
from dcwh.results import row_of_config
from dcwh.sources import Source, Split
from dcwh.training import accelerator_of, build, loader_of, numerics, train_epoch

HERE = Path(__file__).parent
GPU = torch.cuda.is_available()
DEVICE = torch.device('cuda' if GPU else 'cpu')
Sizes = namedtuple('Sizes', 'backbones waiting steps batch side queries database table')
LITE = 'timm/tf_efficientnet_lite0'
SIZES = {
    'gpu': Sizes(('resnet50', LITE, 'googlenet'), LITE, 40, 256, 224, 10_000, 1_000_000, 'gpu.csv'),
    'cpu': Sizes(('resnet18',), 'resnet18', 4, 128, 64, 1_000, 100_000, 'step.csv'),
    'tiny': Sizes(('small',), 'small', 3, 8, 16, 20, 300, None),
}
BITS = 64
CIFAR = HERE.parent / 'data/cache/cifar10'


def seconds(work, rounds=3):
    "The least time of some rounds, with everything done on the device at their end."
    least = float('inf')
    for _ in range(rounds):
        if GPU:
            torch.cuda.synchronize()
        start = perf_counter()
        work()
        if GPU:
            torch.cuda.synchronize()
        least = min(least, perf_counter() - start)
    return least


def busy(work):
    "The share of the time in which the GPU computes. The rest it waits for the processor."
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        took = seconds(work, rounds=1)
    return sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / took


def noise(sizes):
    "Images of noise in ten classes, all of them for training."
    number, side = sizes.steps * sizes.batch, sizes.side
    few = np.random.default_rng(0).integers(0, 256, (sizes.batch, side, side, 3), dtype=np.uint8)
    images = np.resize(few, (number + 10, side, side, 3))
    labels = np.arange(number + 10) % 10
    split = Split.by_test(np.arange(number + 10) >= number)
    return load(Source('noise', images, labels, tuple('0123456789'), split)).train


class Step:
    "A network in training: what `train` makes of a configuration, and a bare loop over it."

    def __init__(self, backbone, images, sizes, compiled=True):
        said = {
            'weights': 'none',
            'workers': 0,
            'batch_size': sizes.batch,
            'flip': True,
            'image_size': sizes.side,
            'resize': sizes.side,
            'padding': sizes.side // 10,
            'compile': 'default' if compiled and GPU else 'off',
        }
        if not GPU:
            said |= {'precision': 'fp32'}
        self.sizes = sizes
        self.config = resolve(
            said, dataset='folder/noise', bits=48, recipe='gpu', backbone=backbone
        )
        self.images, self.accelerator = images, accelerator_of(self.config)
        model, self.criterion, optimizer = build(self.config, 10, images=len(images))
        self.criterion.to(DEVICE)
        self.net, self.optimizer = self.accelerator.prepare(model.to(DEVICE), optimizer)
        if self.config.compile != 'off':
            self.net = torch.compile(self.net, dynamic=False)
        self.loader = loader_of(self.config, images, self.accelerator)

    def ours(self):
        "One epoch as it is trained."
        self.criterion.begin_epoch(1, 3)
        train_epoch(
            self.config, self.loader, 1, self.accelerator, self.net, self.criterion, self.optimizer
        )
        self.criterion.end_epoch()

    def bare(self):
        "As many steps on one batch that is there already, with the least loss there is."
        x = torch.rand(self.sizes.batch, 3, self.sizes.side, self.sizes.side, device=DEVICE)
        x = x.contiguous(memory_format=torch.channels_last)
        self.net.train()
        for _ in range(self.sizes.steps):
            self.optimizer.zero_grad()
            self.accelerator.backward(self.net(x).square().mean())
            self.optimizer.step()

    def waiting(self, sent=False, looked=False, read=False, sliced=False):
        "An epoch in which the step waits where it is told to."
        order, draws = epoch_draws(0, 1, len(self.images))
        labels, source = torch.from_numpy(self.images.labels), self.images.source.images
        here = labels.to(DEVICE)
        held = torch.from_numpy(source) if sent else self.loader.held
        if held is None:
            held = torch.from_numpy(source).permute(0, 3, 1, 2)
        elif sent:
            held = held.permute(0, 3, 1, 2)
        places, there = torch.from_numpy(order), draws.to(DEVICE)
        on_device = places.to(DEVICE)
        self.net.train()
        self.criterion.train()
        self.criterion.begin_epoch(1, 3)
        for part in range(0, len(places), self.sizes.batch):
            index = on_device[part : part + self.sizes.batch]
            x = held[(places if sent else on_device)[part : part + self.sizes.batch]].to(DEVICE)
            cut, side = by_slices if sliced else prepare, self.sizes.side
            x = cut(x, side, side, there[index], self.config.padding, True)
            y = labels[places[part : part + self.sizes.batch]].to(DEVICE) if sent else here[index]
            self.optimizer.zero_grad()
            h = self.net(x.contiguous(memory_format=torch.channels_last))
            loss = self.criterion(h, y, index)
            if looked and not torch.isfinite(loss):
                raise FloatingPointError
            self.accelerator.backward(loss)
            self.optimizer.step()
            if read:
                torch.stack(list(self.criterion.last.values())).tolist()


def by_slices(images, side, _, draws, padding, flip):
    "A random cut of each image by itself, in a loop."
    bordered = pad(images.float(), [padding] * 4, mode='reflect') if padding else images.float()
    steps = bordered.shape[-1] - side + 1
    cuts = []
    for image, (top, left), mirrored in zip(
        bordered, (draws[:, :2] * steps).long().tolist(), (draws[:, 2] < 0.5).tolist(), strict=True
    ):
        cut = image[:, top : top + side, left : left + side]
        cuts.append(cut.flip(2) if mirrored else cut)
    return torch.stack(cuts) / 255


def steps_of(backbone, images, sizes):
    "Images per second of our whole step and of the bare loop, and memory."
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    step, start = Step(backbone, images, sizes), perf_counter()
    step.ours()
    yield f'{backbone}: the first epoch, compiling', perf_counter() - start, 's', ''
    ways = {'bare loop': step.bare, 'whole step': step.ours}
    rounds = [[seconds(way, rounds=1) for way in ways.values()] for _ in range(3)]  # by turns
    bare, ours = (len(images) / least for least in np.min(rounds, axis=0))
    yield f'{backbone}: bare loop', bare, 'images per second', ''
    yield f'{backbone}: whole step', ours, 'images per second', ours / bare
    if GPU:
        for way, work in ways.items():
            yield f'{backbone}, {way}: the GPU computes', busy(work), 'of the time', ''
        yield f'{backbone}: memory', torch.cuda.max_memory_allocated() / 2**30, 'GiB', ''


def waits_of(backbone, images, sizes):
    "Images per second where the step waits, as a share of the one that waits for nothing."
    step, free = Step(backbone, images, sizes), None
    each = {
        'images from the host': 'sent',
        'loss looked at': 'looked',
        'terms read': 'read',
        'cuts in a loop': 'sliced',
    }
    waits = {
        'no wait': {},
        **{name: {option: True} for name, option in each.items()},
        'all of them': dict.fromkeys(each.values(), True),
    }
    step.waiting()
    for name, options in waits.items():
        rate = len(images) / seconds(partial(step.waiting, **options), rounds=2)
        free = free or rate
        yield f'{backbone}, waits: {name}', rate, 'images per second', rate / free
    if not GPU:
        return
    plain = Step(backbone, images, sizes, compiled=False)
    plain.ours()
    rate = len(images) / seconds(plain.ours, rounds=2)
    yield f'{backbone}: whole step, not compiled', rate, 'images per second', rate / free


def cuts(sizes):
    "Images per second from bytes to floats: cut alone, and enlarged from a third of the side."
    draws = torch.rand(sizes.batch, 3, device=DEVICE)
    for name, side in {'cut': sizes.side, 'enlarged and cut': sizes.side // 3}.items():
        shape = sizes.batch, side, side, 3
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE).permute(0, 3, 1, 2)
        ways = {'by one gather' if side == sizes.side else 'as it is done': prepare}
        if side == sizes.side:
            ways['in a loop'] = by_slices
        loop = None
        for way, cut in reversed(ways.items()):
            work = partial(cut, images, sizes.side, sizes.side, draws, sizes.side // 10, True)
            work()
            rate = sizes.batch / seconds(work, rounds=10)
            loop = loop or rate
            yield f'{sizes.side} px, {name}, {way}', rate, 'images per second', rate / loop


def evaluations(sizes):
    "Seconds in which all distances are counted, and what of it is the least."
    rng, pairs = np.random.default_rng(0), sizes.queries * sizes.database
    sides = [
        Codes.from_packed(
            rng.integers(0, 256, (n, BITS // 8), dtype=np.uint8), BITS, rng.integers(0, 10, n)
        )
        for n in (sizes.queries, sizes.database)
    ]
    ways = {'numba, on the processor': lambda: histograms(*sides)}
    if GPU:
        from dcwh.counting import _count_by_torch, _count_by_triton

        def counts():
            return np.zeros((sizes.queries, 2, BITS + 1), np.int32)

        ways = {
            'kernel': lambda: _count_by_triton(*sides, counts(), DEVICE),
            'plain torch': lambda: _count_by_torch(*sides, counts(), DEVICE),
            'histograms on cuda': lambda: histograms(*sides, device='cuda'),
            **ways,
        }
    least, expected = floor(pairs), histograms(*sides)
    if least:
        yield 'counting: floor, computed', least, 's', 1.0
    for name, way in ways.items():
        assert np.array_equal(way(), expected), name
        took = seconds(way, rounds=3)
        yield f'counting: {name}', took, 's', took / least if least else ''
    whole = seconds(lambda: evaluate(*sides, device=DEVICE), rounds=2)
    yield 'evaluate, with mAP and all else', whole, 's', whole / least if least else ''


def floor(pairs):
    """Seconds that popcounts and counts of all pairs take at least: two words of 32 bits a pair,
    16 popcounts and 32 additions in shared memory a clock in each multiprocessor."""
    if not GPU:
        return None
    card = torch.cuda.get_device_properties(0)
    clock = getattr(card, 'clock_rate', 1.7e6) * 1e3
    return pairs * (2 / 16 + 1 / 32) / (card.multi_processor_count * clock)


def cifar():
    "mAP of the recorded configuration, in float32, on this device and on the processor it names."
    config = resolve(dataset='folder/cifar10-jpeg', bits=48, data_dir=str(CIFAR))
    row = row_of_config(config, HERE.parent / 'reports')
    if not CIFAR.is_dir() or row is None:
        return
    result = run(config, HERE.parent / 'runs/benchmark', resume=False)
    yield 'CIFAR-10 (JPEG), 48 bits, float32: mAP', result['metrics']['map'], '', ''
    yield f'the same, recorded on {row["device"]}: mAP', row['map'], '', ''
    for phase, took in result['manifest']['seconds'].items():
        yield f'CIFAR-10 (JPEG), 48 bits, float32: {phase}', took, 's', ''


def measured(sizes):
    "All rows, each as soon as it is there."
    images = noise(sizes)
    with numerics(resolve(dataset='digits', bits=48, recipe='gpu')):
        for backbone in sizes.backbones:
            yield from steps_of(backbone, images, sizes)
        yield from waits_of(sizes.waiting, images, sizes)
        yield from cuts(sizes)
    yield from evaluations(sizes)
    if sizes is SIZES['gpu']:
        yield from cifar()


def main():
    parser = ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--sizes', choices=SIZES, default='gpu' if GPU else 'tiny')
    parser.add_argument('--out', help='the table; gpu.csv and step.csv stand beside this file')
    asked = parser.parse_args()
    sizes = SIZES[asked.sizes]
    if sizes is SIZES['tiny']:
        where = '' if GPU else ' No GPU is here: --sizes cpu measures the processor.'
        print(f'Trial sizes: these times show that all of it runs, and measure nothing.{where}')
    out = asked.out or (sizes.table and HERE / sizes.table)
    if out:
        writable(out)  # or all would be measured in vain
    logging.getLogger('dcwh').setLevel(logging.ERROR)  # centres of noise are held, again and again
    device, rows = torch.cuda.get_device_name() if GPU else processor(), []
    for what, value, unit, share in measured(sizes):
        rows.append([device, what, f'{value:.4g}', unit, share and f'{share:.3g}'])
        print(*rows[-1], sep=' | ', flush=True)
    head = ['device', 'what', 'value', 'unit', 'of the bare loop, the floor']
    if out:
        write_table(out, [head, *rows])


if __name__ == '__main__':
    main()
