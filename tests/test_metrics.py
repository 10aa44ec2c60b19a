"""dcwh.metrics where it is meant to work: in several processes, in Lightning, in accelerate."""

import socket
from itertools import product

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import distributed, nn
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader, TensorDataset

from dcwh.codes import Codes
from dcwh.evaluation import evaluate
from dcwh.metrics import HashRetrieval


def images(several, sizes=(37, 301)):
    "Query and database: features, labels, positions. Sizes are odd: processes get different ones."
    rng = np.random.default_rng(0)
    centres = np.random.default_rng(1).normal(size=(12, 20))
    for n in sizes:
        y = rng.random((n, 12)) < 0.2 if several else rng.integers(0, 5, n)
        x = (y.astype(float) if several else np.eye(12)[y]) @ centres + rng.normal(size=(n, 20))
        yield torch.from_numpy(x).float(), torch.from_numpy(y), torch.arange(n)


def at_once(several, top_k=100):
    sides = (Codes.from_outputs(x, y) for x, y, _ in images(several))
    return evaluate(*sides, top_k, graded=several).to_dict()


SIDES = ('query', 'database')
WITHOUT = [(), ('query',), ('database',), SIDES]  # what a process has seen no batch of
MODES = list(product((False, True), (False, True), WITHOUT))  # several labels, ids, sides missed


def share(n, rank, world, without, ids):
    "Positions that a process sees. With ids, image 0 comes from all, as a padding sampler has it."
    last = world - 1
    if without:
        mine = torch.arange(rank, n, last) if rank < last else torch.arange(0)
    else:
        mine = torch.arange(rank, n, world)
    return torch.cat([mine, torch.tensor([0])]) if ids and len(mine) else mine


def one_of_several(rank, world, port, results):
    "The process that misses a side is the last, then the first."
    distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=world
    )
    for mode, turned in product(range(len(MODES)), (False, True)):
        several, with_ids, without = MODES[mode]
        metric = HashRetrieval(top_k=100, graded=several)
        for side, (x, y, ids) in zip(SIDES, images(several), strict=True):
            place = world - 1 - rank if turned else rank
            mine = share(len(x), place, world, side in without, with_ids)
            for part in mine.split(16) if len(mine) else ():
                metric.update(x[part], y[part], side, ids[part] if with_ids else None)
        own = len(metric.query_packed)
        results[mode, turned, rank] = metric.compute()
        assert len(metric.query_packed) == own  # its own batches again
    distributed.destroy_process_group()


@pytest.mark.filterwarnings('ignore:The ``compute`` method')
@pytest.mark.parametrize('world', [2, pytest.param(3, marks=pytest.mark.whole)])
def test_several_processes_give_what_one_gives(world):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    expected = {several: at_once(several) for several in (False, True)}
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        start_processes(one_of_several, (world, port, results), world, start_method='forkserver')
        found = dict(results)
    assert len(found) == 2 * world * len(MODES)
    for (mode, turned, rank), numbers in found.items():
        several, with_ids, _ = MODES[mode]
        known = {name: expected[several][name] for name in numbers}
        # without ids, queries come in another order, and their mean may differ in its last digit
        if not with_ids:
            known = pytest.approx(known, rel=1e-12)
        assert numbers == known, (MODES[mode], turned, rank)


MISFITS = {  # what the last process has, where the first has 9 bits of model a, class numbers
    'code length': {'bits': 16},
    'model': {'model': 'b'},
    'form of query labels': {'labels': np.eye(4, 8, dtype=bool)},
}


def one_of_two_that_differ(rank, port, results):
    distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    for what, changed in MISFITS.items():
        made = {'bits': 9, 'model': 'a', 'labels': np.arange(4)} | (changed if rank else {})
        bits = np.eye(4, made.pop('bits'), dtype=bool)
        metric = HashRetrieval()
        for side in SIDES:
            metric.update(Codes.from_bits(bits, **made), side=side)
        before = len(metric.query_packed), int(metric.bits)
        try:
            metric.compute()
        except ValueError as e:
            results[what, rank] = str(e)
        assert (len(metric.query_packed), int(metric.bits)) == before
    distributed.destroy_process_group()


def test_processes_that_differ_are_refused():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        start_processes(one_of_two_that_differ, (port, results), 2, start_method='forkserver')
        found = dict(results)
    assert found.keys() == set(product(MISFITS, (0, 1)))
    assert all(what in said for (what, _), said in found.items())


def test_all_is_missing():
    with pytest.raises(ValueError, match='query side is empty'), pytest.warns(UserWarning):
        HashRetrieval().compute()


def test_lightning_logs_the_numbers(tmp_path):
    import lightning  # here, so that the processes above need not

    class Hashing(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.retrieval = nn.Identity(), HashRetrieval(top_k=100)

        def validation_step(self, batch, batch_idx, dataloader_idx):
            x, y, ids = batch
            self.retrieval.update(
                self.net(x), y, side=('query', 'database')[dataloader_idx], ids=ids
            )

        def on_validation_epoch_end(self):
            self.log_dict(self.retrieval.compute())
            self.retrieval.reset()

    loaders = [DataLoader(TensorDataset(*side), 32) for side in images(False)]
    trainer = lightning.Trainer(
        accelerator='cpu',
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    logged = trainer.validate(Hashing(), loaders, verbose=False)
    assert logged[0]['map'] == pytest.approx(at_once(False)['map'], abs=1e-6)
    assert logged[0]['queries'] == 37


def test_an_accelerate_loop_gives_the_numbers():
    metric = HashRetrieval(top_k=100)
    for side, data in zip(('query', 'database'), images(False), strict=True):
        loader = Accelerator(cpu=True).prepare(DataLoader(TensorDataset(*data), 32))
        for x, y, ids in loader:
            metric.update(x, y, side, ids)
    assert metric.compute().items() <= at_once(False).items()
