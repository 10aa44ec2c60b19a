"""What re-ranking a shortlist gains and costs on codes of CIFAR-10 (JPEG): writes
benchmarks/reranking.csv.

.venv/bin/python benchmarks/reranking.py runs/cifar10-jpeg-default/dcwh-48-seed0-def7e8b6 …

Given the folders of runs (codes and outputs of query and database). mAP@100 and mAP@1000
(normaliser min) of the first 1,000 queries: by the codes alone (expected over ties), by the
shortlist that `CodeIndex.rerank` orders, and by outputs on both sides, which would have to be
stored. The database is shuffled first: images of a class lie together in it, many have the same
code, and the order of ties would otherwise tell classes apart. Milliseconds of a query, a
hundred at a time, on one thread."""

from pathlib import Path
from sys import argv
from time import perf_counter

import faiss
import numpy as np
import torch
from tables import write_table

from dcwh.codes import Codes
from dcwh.evaluation import ap_of_outputs, divisor, evaluate
from dcwh.search import CodeIndex

QUERIES = 1_000
faiss.omp_set_num_threads(1)
torch.set_num_threads(1)


def map_of(relevant, total):
    "mAP of rankings given as relevance, shape (Q, k), divided by the relevant that were found."
    precision = relevant.cumsum(1) / np.arange(1, relevant.shape[1] + 1) * relevant
    return float(
        (precision.sum(1) / divisor(total, relevant.sum(1), relevant.shape[1], 'min')).mean()
    )


def milliseconds(call, parts, queries):
    clock = perf_counter()
    for part in parts:
        call(part)
    return f'{1e3 * (perf_counter() - clock) / queries:.3g}'


COLUMNS = ['run', 'ranked by', 'shortlist', 'mAP@100', 'mAP@1000', 'a query (ms)']
DEPTHS = 100, 1000
FILES = 'query.npz', 'database.npz', 'query-outputs.npy', 'database-outputs.npy'


def rows_of(folder):
    "What the codes and outputs of a run give: by codes, by shortlists, by outputs of both sides."
    query, database = (Codes.load(folder / name) for name in FILES[:2])
    h, z = (np.load(folder / name).astype(np.float32) for name in FILES[2:])
    shuffled = np.random.default_rng(0).permutation(len(database))
    query, h, z, database = query[:QUERIES], h[:QUERIES], z[shuffled], database[shuffled]
    index = CodeIndex.build(Codes(database.packed, database.bits, None, np.arange(len(database))))
    parts = [slice(n, n + 100) for n in range(0, len(query), 100)]
    total = (query.labels[:, None] == database.labels).sum(1)
    asked = Codes(query.packed, query.bits, None, query.ids)
    found = [evaluate(query, database, k).map_at(k, 'min') for k in DEPTHS]
    took = milliseconds(lambda part: index.search(asked[part], 1000), parts, len(query))
    yield [folder.name, 'codes', '', *in_four_digits(found), took]
    for shortlist in (1000, 5000):
        ids = index.rerank(h, 1000, shortlist)[1]
        relevant = database.labels[ids] == query.labels[:, None]
        found = [map_of(relevant[:, :k], total) for k in DEPTHS]
        took = milliseconds(
            lambda part: index.rerank(h[part], 1000, shortlist),  # noqa: B023
            parts,
            len(query),
        )
        yield [
            folder.name,
            'outputs of the query, codes of the database',
            shortlist,
            *in_four_digits(found),
            took,
        ]
    sides = torch.from_numpy(h), torch.from_numpy(z), query.labels, database.labels
    found = [ap_of_outputs(*sides, k, 'min').mean() for k in DEPTHS]
    yield [folder.name, 'outputs on both sides', '', *in_four_digits(found), '']


def in_four_digits(numbers):
    return [f'{number:.4f}' for number in numbers]


def main(words):
    "Measure all folders, then write. Raises SystemExit with a line where one is not there."
    if not words:
        raise SystemExit('give folders of runs, such as runs/digits-default/dcwh-48-seed0-…')
    folders = [Path(word) for word in words]
    for file in (folder / name for folder in folders for name in FILES):
        if not file.is_file():
            raise SystemExit(f'{file} is not there; give folders of runs')
    rows = [row for folder in folders for row in rows_of(folder)]
    write_table(Path(__file__).with_suffix('.csv'), [COLUMNS, *rows])


if __name__ == '__main__':
    main(argv[1:])
