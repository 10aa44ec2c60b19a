"""What each kind of index costs and finds: writes benchmarks/search.csv, a row as it is
measured; rows that are there are not measured again.

.venv/bin/python benchmarks/search.py [most codes]

Codes of 1,000 classes, a tenth of the bits turned; queries of the same classes, that are not
among them. Each measurement is a process of its own, on a quiet machine. Building takes all
cores; questions are asked one at a time, and a hundred at a time, on one thread. Recall is the
share of the ten answers that are no farther than the tenth nearest. Memory is what the process
has grown by, beyond the codes (read from /proc, so on Linux only); for LanceDB the size on disk."""

import json
from csv import DictReader, DictWriter
from pathlib import Path
from subprocess import run
from sys import argv, executable
from tempfile import TemporaryDirectory
from time import perf_counter

import faiss
import numpy as np
from tables import most_of

from dcwh.codes import Codes
from dcwh.search import CodeIndex

CLASSES, TURNED, QUERIES, K = 1_000, 0.1, 100, 10
KINDS = {
    'flat': ('flat', {}),
    'ivf': ('ivf', {}),
    'multihash': ('multihash', {}),
    'lance': ('lance', {}),
    'lance, lists': ('lance', {'lists': 'root'}),
    'hnsw': ('hnsw', {}),
}
COLUMNS = [
    'codes',
    'bits',
    'kind',
    'build (s)',
    'memory (MB)',
    'on disk (MB)',
    'recall',
    'one query (ms)',
    'of a hundred (ms)',
    'FAISS alone (ms)',
]


def codes(n, bits, seed):
    "Made a part at a time, so that making them takes no more memory than having them."
    corners, rng = (
        np.random.default_rng(0).random((CLASSES, bits)) < 0.5,
        np.random.default_rng(seed),
    )
    packed = np.empty((n, bits // 8), np.uint8)
    for start in range(0, n, 10_000):
        y = rng.integers(CLASSES, size=min(10_000, n - start))
        packed[start : start + len(y)] = np.packbits(
            corners[y] ^ (rng.random((len(y), bits), np.float32) < TURNED), axis=1
        )
    return Codes(packed, bits, None, np.arange(n))


def resident():
    return (
        int(
            next(
                line
                for line in Path('/proc/self/status').read_text().splitlines()
                if line.startswith('VmRSS')
            ).split()[1]
        )
        / 1024
    )


def seconds(call):
    return min((first := timed(call)), *(timed(call) for _ in range(4 if first < 5 else 1)))


def timed(call):
    clock = perf_counter()
    call()
    return perf_counter() - clock


def measure(n, bits, name):
    kind, options = KINDS[name]
    database, query = codes(n, bits, 1), codes(QUERIES, bits, 2)
    options = {o: int(n**0.5) if v == 'root' else v for o, v in options.items()}
    with TemporaryDirectory() as folder:
        path = f'{folder}/index.lance' if kind == 'lance' else f'{folder}/index.npz'
        before, clock = resident(), perf_counter()
        index = CodeIndex.build(
            database, kind, **options, **({'path': path} if kind == 'lance' else {})
        )
        built, grown = perf_counter() - clock, resident() - before
        if kind != 'lance':
            index.save(path)
        disk = sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file()) / 1e6
        farthest = faiss.knn_hamming(query.packed, database.packed, K)[0][:, -1:]
        faiss.omp_set_num_threads(1)
        found = index.search(query, K)[0]
        ones = [query[i : i + 1] for i in range(QUERIES)]
        one = seconds(lambda: [index.search(q, K) for q in ones]) / QUERIES
        hundred, alone = one, None  # LanceDB is asked one at a time in any case
        if kind != 'lance':  # in turn, so that both find the same machine
            turns = [
                (
                    timed(lambda: index.search(query, K)),
                    timed(lambda: index.structure.search(query.packed, K)),
                )
                for _ in range(10)
            ]
            hundred, alone = np.min(turns, axis=0) / QUERIES
    return {
        'build (s)': f'{built:.3g}',
        'memory (MB)': '' if kind == 'lance' else round(grown),
        'on disk (MB)': round(disk),
        'recall': round(float(((found >= 0) & (found <= farthest)).mean()), 3),
        'one query (ms)': f'{1e3 * one:.3g}',
        'of a hundred (ms)': f'{1e3 * hundred:.3g}',
        'FAISS alone (ms)': '' if alone is None else f'{1e3 * alone:.3g}',
    }


if len(argv) == 4:
    print(json.dumps(measure(int(argv[1]), int(argv[2]), argv[3])))
else:
    file, most = Path(__file__).with_suffix('.csv'), most_of(argv[1:], least=100_000, most=10**7)
    there = (
        {(row['codes'], row['bits'], row['kind']) for row in DictReader(file.open())}
        if file.exists()
        else ()
    )
    with open(file, 'a', newline='') as f:
        table = DictWriter(f, COLUMNS, lineterminator='\n')
        if not there:
            table.writeheader()
        for point in (
            (n, bits, name)
            for n in (100_000, 1_000_000, 10_000_000)
            if n <= most
            for name in KINDS
            for bits in (32, 64, 128)
        ):
            if tuple(map(str, point)) in there:
                continue
            done = run([executable, __file__, *map(str, point)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            table.writerow(
                dict(zip(COLUMNS, point, strict=True)) | json.loads(done.stdout.splitlines()[-1])
            )
            f.flush()
