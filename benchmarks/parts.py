"""Evaluation in parts beside the whole at once, and in parts up to 100 million codes: writes
benchmarks/parts.csv. 100 queries, 64 bits, one label of 10 classes an image.

nice .venv/bin/python benchmarks/parts.py [largest database]

Codes are made part by part from a seed, so that a database of any size takes no memory; making
them is timed apart. Times are those of the processor, of all threads, so a busy machine changes
them little; the load beside them says how busy it was. Whole and parts alternate in one process,
and the least of seven counts. Memory is the peak beyond what was there before the codes (read from
/proc, so on Linux only). The last row is no measurement: ten times the row before."""

import os
from pathlib import Path
from subprocess import run
from sys import argv, executable
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
from pyarrow import parquet
from tables import most_of, write_table

from dcwh.codes import Codes
from dcwh.evaluation import evaluate
from dcwh.parts import PART, CodeParts
from dcwh.search import CodeIndex

QUERIES, CLASSES, BITS = 100, 10, 64
COMPARED = 10_000_000
SIZES = 1_000_000, 10_000_000, 100_000_000
COLUMNS = [
    'database',
    'way',
    'counting (s)',
    'making codes (s)',
    'memory (MB)',
    'mAP',
    'load',
    'measured',
]


def codes(n, seed):
    "A quarter of the bits of each class's corner turned."
    corners = np.random.default_rng(0).integers(0, 2**64, CLASSES, np.uint64)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    turned = rng.integers(0, 2**64, n, np.uint64) & rng.integers(0, 2**64, n, np.uint64)
    packed = (corners[labels] ^ turned).view(np.uint8).reshape(n, 8)
    return Codes.from_packed(packed, BITS, labels)


class Made:
    "Parts of a database as they are asked for; `seconds` went into making them."

    def __init__(self, n):
        self.n, self.seconds = n, 0.0

    def __iter__(self):
        for number, start in enumerate(range(0, self.n, PART)):
            clock = process_time()
            part = codes(min(PART, self.n - start), [2, number])
            self.seconds += process_time() - clock
            yield part


def whole(n):
    "All parts as one, each put into its place as it is made."
    packed, labels = np.empty((n, BITS // 8), np.uint8), np.empty(n, np.int64)
    start = 0
    for part in Made(n):
        stop = start + len(part)
        packed[start:stop], labels[start:stop] = part.packed, part.labels
        start = stop
    return Codes.from_packed(packed, BITS, labels)


def store(n, folder):
    "A database as a Lance table and as a file of Parquet."
    database = whole(n)
    columns = {'label': database.labels}
    table = CodeIndex.build(database, 'lance', columns, path=f'{folder}/codes.lance').table
    parquet.write_table(table.rows(['id', 'code', 'label'], 0, n), f'{folder}/codes.parquet')


def resident(peak):
    "Megabytes of this process: now, or at its peak since the last reset."
    name = 'VmHWM' if peak else 'VmRSS'
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def timed(query, database):
    "Seconds of the processor, and the mAP."
    clock = process_time()
    found = evaluate(query, database)
    found.to_dict()
    return process_time() - clock, found.map


def measure(n, way):
    "A row, but for its first two columns; `way` may be the path of a dataset."
    query = codes(QUERIES, 1)
    evaluate(query[:10], codes(100, 3)).to_dict()  # compiled before the clock starts
    Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here
    before = resident(peak=False)
    made = {'whole': whole, 'parts': Made}.get(way, lambda n: CodeParts.open(way))
    database = made(n)
    seconds, score = timed(query, database)
    making = database.seconds if way == 'parts' else 0.0
    grown = resident(peak=True) - before
    load = os.getloadavg()[0] / os.cpu_count()
    return f'{seconds - making:.2f}', f'{making:.2f}', round(grown), f'{score:.6f}', f'{load:.1f}'


def compare(n):
    "Whole and parts in turn: the least seconds of each."
    query, database = codes(QUERIES, 1), whole(n)
    evaluate(query[:10], codes(100, 3)).to_dict()
    slices = [database[start : start + PART] for start in range(0, n, PART)]
    turns = [(timed(query, database), timed(query, slices)) for _ in range(7)]
    assert len({score for turn in turns for _, score in turn}) == 1
    return [f'{min(turn[i][0] for turn in turns):.2f}' for i in (0, 1)]


def said(*words):
    "What a process of its own has measured."
    command = [executable, __file__, *map(str, words)]
    return run(command, capture_output=True, text=True, check=True).stdout.strip().split(',')


def rows(most):
    "The head, and the rows as they are measured."
    yield COLUMNS
    n = min(COMPARED, most)
    seconds = said(n, 'compare')
    for way, counting in zip(('whole', 'parts'), seconds, strict=True):
        yield [n, f'{way}, in turn', counting, '', '', '', '', 'yes']
    yield [n, 'whole', *said(n, 'whole'), 'yes']
    for n in sorted({SIZES[0], min(COMPARED, most)}):
        with TemporaryDirectory() as folder:
            store(n, folder)
            for kind in ('lance', 'parquet'):
                yield [n, f'parts, read from {kind}', *said(n, f'{folder}/codes.{kind}'), 'yes']
    for n in SIZES:
        if n <= most:
            row = [n, 'parts', *said(n, 'parts'), 'yes']
            yield row
    if most == SIZES[-1]:
        times = [f'{10 * float(value):.0f}' for value in row[2:4]]
        yield [10 * SIZES[-1], 'parts', *times, row[4], '', '', 'no: ten times the row before']


if len(argv) == 3:
    n, way = int(argv[1]), argv[2]
    print(*(compare(n) if way == 'compare' else measure(n, way)), sep=',')
elif __name__ == '__main__':
    most = most_of(argv[1:], least=SIZES[0], most=SIZES[-1])
    write_table(Path(__file__).with_suffix('.csv'), list(rows(most)))
