"""The kernel for GPUs in Triton's interpreter against numba, to the integer.

    TRITON_INTERPRET=1 python tests/kernel.py

A program of its own: Triton reads the variable when it is imported.
"""

import numpy as np

from dcwh.codes import Codes
from dcwh.counting import _count_by_triton, histograms


def sides(rng, bits, labels, lengths):
    "Few distinct codes, so that distance 0 occurs, and the opposite of one, so that `bits` does."
    pool = rng.random((6, bits)) < 0.5
    pool[1] = ~pool[0]
    return [Codes.from_bits(pool[rng.integers(0, 6, n)], labels(rng, n)) for n in lengths]


def one(rng, n):
    return rng.integers(0, 3, n)


def huge(rng, n):
    return rng.integers(0, 3, n) * 2**32 + 7  # differ in the upper word alone


def several(rng, n):
    return rng.random((n, 70)) < 0.04


def none(rng, n):
    return np.zeros((n, 3), bool)


def check(query, database, graded, **options):
    counts = histograms(query, database, graded)
    found = _count_by_triton(query, database, np.zeros_like(counts), 'cpu', 64, 4, **options)
    assert (found == counts).all(), (query.bits, query.labels.shape, len(database), graded, options)


if __name__ == '__main__':
    rng = np.random.default_rng(0)
    for bits in (1, 31, 64, 129):
        check(*sides(rng, bits, one, (2, 70)), graded=False)
    for bits in (16, 48):
        check(*sides(rng, bits, several, (2, 70)), graded=True)
    for labels in (one, huge, several, none):
        for sizes in ((1, 1), (5, 64)):  # 4 queries and 64 images are one program
            check(*sides(rng, 16, labels, sizes), graded=False)
    for options in ({'bins': 0}, {'room': 200}):  # without shared memory; in parts
        for labels in (one, several):
            check(*sides(rng, 20, labels, (3, 130)), True, **options)
    print('the same')
