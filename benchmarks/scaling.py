"""Time and memory of `evaluate` as the database grows, 1,000 queries, one label of 10 classes an
image: writes benchmarks/scaling.csv.

.venv/bin/python benchmarks/scaling.py [largest database]

Each measurement is a process of its own. Memory is the peak between codes in place and numbers
in hand, less what was there before and less the histograms (read from /proc, so on Linux only)."""

from itertools import product
from pathlib import Path
from subprocess import run
from sys import argv, executable
from time import perf_counter

import numpy as np
from tables import most_of, write_table

from dcwh.codes import Codes
from dcwh.evaluation import evaluate

QUERIES, CLASSES, FLIPPED = 1_000, 10, 0.25
SIZES = 10_000, 100_000, 1_000_000, 10_000_000
LENGTHS = 16, 32, 64, 128, 1024


def codes(n, bits, seed):
    "Made a part at a time, so that making them takes no more memory than having them."
    corners, rng = (
        np.random.default_rng(0).random((CLASSES, bits)) < 0.5,
        np.random.default_rng(seed),
    )
    packed, labels = np.empty((n, -(-bits // 8)), np.uint8), rng.integers(0, CLASSES, n)
    for start in range(0, n, 10_000):
        part = slice(start, start + 10_000)
        packed[part] = np.packbits(
            corners[labels[part]] ^ (rng.random((len(labels[part]), bits), np.float32) < FLIPPED),
            axis=1,
        )
    return Codes(packed, bits, labels, np.arange(n))


def resident(peak):
    "Megabytes of this process: now, or at its peak since the last reset."
    line = next(
        line
        for line in Path('/proc/self/status').read_text().splitlines()
        if line.startswith('VmHWM' if peak else 'VmRSS')
    )
    return int(line.split()[1]) / 1024


def measure(n, bits):
    query, database = codes(QUERIES, bits, 1), codes(n, bits, 2)
    evaluate(query[:10], codes(100, bits, 3)).to_dict()  # compiled before the clock starts
    Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here
    before, clock = resident(peak=False), perf_counter()
    found = evaluate(query, database)
    found.to_dict()
    seconds, grown = perf_counter() - clock, resident(peak=True) - before
    return [
        f'{seconds:.2f}',
        round((database.packed.nbytes + database.labels.nbytes + database.ids.nbytes) / 2**20),
        round(found.counts.nbytes / 2**20, 1),
        round(grown - found.counts.nbytes / 2**20),
        f'{found.map:.4f}',
    ]


def rows(most):
    "The head, and a row for each size up to `most` and each code length, as they are measured."
    yield [
        'database',
        'bits',
        'seconds',
        'codes, labels, ids (MB)',
        'histograms (MB)',
        'beyond these (MB)',
        'mAP',
    ]
    for n, bits in product(SIZES, LENGTHS):
        if n > most:
            continue
        command = [executable, __file__, str(n), str(bits)]
        said = run(command, capture_output=True, text=True, check=True).stdout
        yield [n, bits, *said.strip().split(',')]


if len(argv) == 3:
    print(*measure(int(argv[1]), int(argv[2])), sep=',')
else:
    most = most_of(argv[1:], least=SIZES[0], most=SIZES[-1])
    write_table(Path(__file__).with_suffix('.csv'), list(rows(most)))
