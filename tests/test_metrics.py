"""dcwh.metrics where it is meant to work: in two processes, in Lightning, in an accelerate loop."""
import socket

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import distributed, nn
from torch.multiprocessing import spawn
from torch.utils.data import DataLoader, TensorDataset

from dcwh.codes import Codes
from dcwh.evaluation import evaluate
from dcwh.metrics import HashRetrieval


def images(several, sizes=(37, 301)):
    "Query and database: features, labels, positions. The sizes are odd, so that processes get different numbers."
    rng = np.random.default_rng(0)
    for n in sizes:
        y = rng.random((n, 12)) < .2 if several else rng.integers(0, 5, n)
        x = (y.astype(float) if several else np.eye(12)[y]) @ np.random.default_rng(1).normal(size=(12, 20)) + rng.normal(size=(n, 20))
        yield torch.from_numpy(x).float(), torch.from_numpy(y), torch.arange(n)


def at_once(several, top_k=100):
    sides = (Codes.from_outputs(x, y) for x, y, _ in images(several))
    return evaluate(*sides, top_k, graded=several).to_dict()


def one_of_two(rank, port, several, alone, results):
    distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    metric = HashRetrieval(top_k=100, graded=several)
    for side, (x, y, ids) in zip(('query', 'database'), images(several)):
        mine = torch.cat([torch.arange(rank, len(x), 2), torch.tensor([0])])   # image 0 comes from both, as a padding sampler has it
        if alone: mine = torch.arange(len(x) if rank == 0 else 0)              # or the other has nothing at all
        for part in mine.split(16) if len(mine) else (): metric.update(x[part], y[part], side, ids[part])
    results[rank] = metric.compute()
    own = len(metric.query_packed)
    assert own == (0 if alone and rank else 2 + bool(alone))   # its own batches again
    distributed.destroy_process_group()


@pytest.mark.parametrize('several, alone', [(False, False), (True, False), (True, True)])
def test_two_processes_give_what_one_gives(several, alone):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        spawn(one_of_two, (port, several, alone, results), nprocs=2)
        for rank in (0, 1): assert results[rank].items() <= at_once(several).items() and results[rank]['queries'] == 37


def test_lightning_logs_the_numbers(tmp_path):
    import lightning   # here, so that the processes above need not

    class Hashing(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.retrieval = nn.Identity(), HashRetrieval(top_k=100)

        def validation_step(self, batch, batch_idx, dataloader_idx):
            x, y, ids = batch
            self.retrieval.update(self.net(x), y, side=('query', 'database')[dataloader_idx], ids=ids)

        def on_validation_epoch_end(self):
            self.log_dict(self.retrieval.compute())
            self.retrieval.reset()

    loaders = [DataLoader(TensorDataset(*side), 32) for side in images(False)]
    trainer = lightning.Trainer(accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)
    logged = trainer.validate(Hashing(), loaders, verbose=False)
    assert logged[0]['map'] == pytest.approx(at_once(False)['map'], abs=1e-6) and logged[0]['queries'] == 37


def test_an_accelerate_loop_gives_the_numbers():
    metric = HashRetrieval(top_k=100)
    for side, data in zip(('query', 'database'), images(False)):
        for x, y, ids in Accelerator(cpu=True).prepare(DataLoader(TensorDataset(*data), 32)): metric.update(x, y, side, ids)
    assert metric.compute().items() <= at_once(False).items()
