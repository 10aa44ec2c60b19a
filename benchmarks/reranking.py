"""What re-ranking a shortlist gains and costs on codes of CIFAR-10 (JPEG): writes benchmarks/reranking.csv.

    .venv/bin/python benchmarks/reranking.py runs/cifar10-jpeg-default/dcwh-48-seed0-def7e8b6 …

Given the folders of runs (codes and outputs of query and database). mAP@100 and mAP@1000 (normaliser min) of the first 1,000 queries: by the codes alone (expected over ties), by the shortlist that `CodeIndex.rerank` orders, and by outputs on both sides, which would have to be stored.
The database is shuffled first: images of a class lie together in it, many have the same code, and the order of ties would otherwise tell classes apart.
Milliseconds of a query, a hundred at a time, on one thread.
"""
from csv import writer
from pathlib import Path
from sys import argv
from time import perf_counter

import faiss
import numpy as np
import torch

from dcwh.codes import Codes
from dcwh.evaluation import ap_of_outputs, divisor, evaluate
from dcwh.search import CodeIndex

QUERIES = 1_000
faiss.omp_set_num_threads(1)
torch.set_num_threads(1)


def map_of(relevant, total):
    "mAP of rankings given as relevance, shape (Q, k), divided by the relevant that were found."
    precision = relevant.cumsum(1) / np.arange(1, relevant.shape[1] + 1) * relevant
    return float((precision.sum(1) / divisor(total, relevant.sum(1), relevant.shape[1], 'min')).mean())


def milliseconds(call, parts):
    clock = perf_counter()
    for part in parts: call(part)
    return f'{1e3 * (perf_counter() - clock) / QUERIES:.3g}'


with open(Path(__file__).with_suffix('.csv'), 'w', newline='') as f:
    table = writer(f, lineterminator='\n')
    table.writerow(['run', 'ranked by', 'shortlist', 'mAP@100', 'mAP@1000', 'a query (ms)'])
    for folder in map(Path, argv[1:]):
        query, database = Codes.load(folder / 'query.npz')[:QUERIES], Codes.load(folder / 'database.npz')
        h, z = (np.load(folder / f'{role}-outputs.npy').astype(np.float32) for role in ('query', 'database'))
        shuffled = np.random.default_rng(0).permutation(len(database))
        h, z, database = h[:QUERIES], z[shuffled], database[shuffled]
        index = CodeIndex.build(Codes(database.packed, database.bits, None, np.arange(len(database))))
        parts, total = [slice(n, n + 100) for n in range(0, QUERIES, 100)], (query.labels[:, None] == database.labels).sum(1)
        asked = Codes(query.packed, query.bits, None, query.ids)
        table.writerow([folder.name, 'codes', '', *(f'{evaluate(query, database, k).map_at(k, "min"):.4f}' for k in (100, 1000)), milliseconds(lambda part: index.search(asked[part], 1000), parts)])
        for shortlist in (1000, 5000):
            ids = index.rerank(h, 1000, shortlist)[1]
            relevant = database.labels[ids] == query.labels[:, None]
            table.writerow([folder.name, 'outputs of the query, codes of the database', shortlist, *(f'{map_of(relevant[:, :k], total):.4f}' for k in (100, 1000)), milliseconds(lambda part: index.rerank(h[part], 1000, shortlist), parts)])
        table.writerow([folder.name, 'outputs on both sides', '', *(f'{ap_of_outputs(torch.from_numpy(h), torch.from_numpy(z), query.labels, database.labels, k, "min").mean():.4f}' for k in (100, 1000)), ''])
        f.flush()
