"""mAP of 10,000 queries against 50,000 codes of 48 bits in 10 classes: ours beside what people
use today.

make benchmark

The peers are written here after the form that public code has in common. All run in one session
on the same codes, after a warm-up on few queries: the quick ones three times, of which the least
counts, the slow ones once. What they return stands beside how long they took. The last two rank
real-valued outputs of which the codes are the signs. The table is benchmarks/evaluation.csv."""

import faiss
import numpy as np
import pytest
import torch

from dcwh.codes import Codes, unpack
from dcwh.counting import _count_by_torch
from dcwh.evaluation import ap_in_order, ap_of_outputs, evaluate

QUERIES, DATABASE, BITS, CLASSES = 10_000, 50_000, 48, 10


@pytest.fixture(scope='module')
def sides():
    """Each class a random corner of the cube, each image that corner with a quarter of its bits
    flipped."""
    rng = np.random.default_rng(0)
    corners = rng.choice([-1.0, 1.0], (CLASSES, BITS))
    labels = [rng.integers(0, CLASSES, n) for n in (QUERIES, DATABASE)]
    return [
        Codes.from_outputs(corners[y] * np.where(rng.random((len(y), BITS)) < 0.25, -1, 1), y)
        for y in labels
    ]


@pytest.fixture
def measure(benchmark, sides):
    def measured(f, name, rounds=3, warm=100):
        f(sides[0][:warm], sides[1])
        benchmark.extra_info['name'], benchmark.extra_info['map'] = (
            name,
            benchmark.pedantic(f, sides, rounds=rounds),
        )
        return benchmark.extra_info['map']

    return measured


def ours(query, database):
    numbers = evaluate(query, database).to_dict()
    return numbers['map'], numbers['map_pessimistic'], numbers['map_optimistic']


def loop_of_numpy(query, database):
    "A matrix product, an argsort and a mean of precisions for each query."
    q, d = (unpack(side.packed, side.bits).astype(np.float32) for side in (query, database))
    total = 0.0
    for code, label in zip(q, query.labels, strict=True):
        relevant = (database.labels == label).astype(np.float32)
        ranked = relevant[np.argsort(0.5 * (BITS - code @ d.T))]
        places = np.flatnonzero(ranked) + 1.0
        if len(places):
            total += np.mean(np.arange(1, len(places) + 1) / places)
    return total / len(q)


def topk_of_torch(query, database, rows=100):
    "Distances of a hundred queries at a time, ranked by a topk over the whole database."
    q, d = (torch.from_numpy(unpack(side.packed, side.bits)).float() for side in (query, database))
    y, z, total = torch.from_numpy(query.labels), torch.from_numpy(database.labels), 0.0
    for part, labels in zip(q.split(rows), y.split(rows), strict=True):
        _, order = (0.5 * (BITS - part @ d.T)).topk(len(d), largest=False)
        ranked = (labels[:, None] == z).gather(1, order).float()
        precision = ranked.cumsum(1) / torch.arange(1, len(d) + 1)
        total += ((precision * ranked).sum(1) / ranked.sum(1).clamp(min=1)).sum().item()
    return total / len(q)


def nearest_of_faiss(query, database):
    "Not a mAP: the one nearest neighbour of each query, by exhaustive search."
    index = faiss.IndexBinaryFlat(database.packed.shape[1] * 8)
    index.add(database.packed)
    index.search(query.packed, 1)


def outputs(codes):
    "Real-valued outputs with these codes as their signs, without ties."
    rng = np.random.default_rng(len(codes))
    return torch.from_numpy(
        unpack(codes.packed, codes.bits) * rng.gamma(4, size=(len(codes), BITS))
    )


def ours_of_outputs(query, database):
    sides = outputs(query), outputs(database)
    return float(ap_of_outputs(*sides, query.labels, database.labels).mean())


def stable_argsort_of_torch(query, database, rows=83):
    "Euclidean distances of 83 queries at a time, ranked by a stable argsort: ours as it was."
    q, d = outputs(query), outputs(database)
    y, z, total = torch.from_numpy(query.labels), torch.from_numpy(database.labels), 0.0
    for part, labels in zip(q.split(rows), y.split(rows), strict=True):
        order = torch.cdist(part, d).argsort(dim=1, stable=True)
        ranked = (labels[:, None] == z).gather(1, order)
        precision = ranked.cumsum(1).double() / torch.arange(1, len(d) + 1) * ranked
        total += (precision.sum(1) / ranked.sum(1).clamp(min=1)).sum().item()
    return total / len(q)


def count_by_torch(query, database):
    _count_by_torch(query, database, np.zeros((len(query), 2, BITS + 1), np.int32), 'cpu')


def test_ours(measure):
    expected, pessimistic, optimistic = measure(ours, 'dcwh evaluate: mAP, its bounds, radius 2')
    assert pessimistic < expected < optimistic


def test_ours_on_torch(measure):
    measure(count_by_torch, 'dcwh histograms by torch, here on the CPU', rounds=1)


def test_ours_in_order(measure):
    measure(
        lambda q, d: float(ap_in_order(q, d).mean()),
        'dcwh ap_in_order: ties in the order of the database',
    )


def test_numpy(measure):
    measure(loop_of_numpy, 'numpy: argsort for each query', rounds=1)


def test_torch(measure):
    measure(topk_of_torch, 'torch: topk over the database, 100 queries at a time', rounds=1)


def test_faiss(measure):
    measure(nearest_of_faiss, 'faiss IndexBinaryFlat: one nearest neighbour, no mAP')


def test_ours_of_outputs(measure):
    measure(ours_of_outputs, 'dcwh ap_of_outputs: real-valued outputs, sorted', rounds=1)


def test_argsort_of_outputs(measure):
    measure(stable_argsort_of_torch, 'torch: real-valued outputs, a stable argsort', rounds=1)
