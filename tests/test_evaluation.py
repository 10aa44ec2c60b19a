"Properties of dcwh.evaluation that hold for any codes: counts and AP against plain loops."

import os
import subprocess
import sys
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcwh import counting
from dcwh.codes import Codes
from dcwh.counting import IMAGES, QUERIES, WARPS, _count_by_torch, _kernel, histograms
from dcwh.evaluation import (
    _ranked,
    _ranked_by_torch,
    ap_in_order,
    ap_of_outputs,
    average_precision,
    evaluate,
    found_at,
    kinship,
    kinship_of_classes,
    ndcg,
)

quick = settings(max_examples=60, deadline=None)  # the first example compiles the kernels
normalisers = ('found', 'min', 'all')


@st.composite
def sides(draw, least=1, most=130):
    """Query and database of any length, with one label an image or several; few distinct codes,
    so that distance 0 occurs."""
    bits, several, seed = (
        draw(st.integers(least, most)),
        draw(st.booleans()),
        draw(st.integers(0, 2**32 - 1)),
    )
    sizes, classes = (draw(st.integers(1, 4)), draw(st.integers(1, 40))), draw(st.integers(1, 70))
    rng = np.random.default_rng(seed)
    pool = rng.normal(size=(draw(st.integers(1, 50)), bits))
    labels = [rng.random((n, classes)) < 0.1 if several else rng.integers(0, 5, n) for n in sizes]
    return tuple(
        Codes.from_bits(pool[rng.integers(0, len(pool), n)] >= 0, y)
        for n, y in zip(sizes, labels, strict=True)
    )


groups = st.lists(
    st.integers(0, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
    min_size=1,
    max_size=4,
).filter(lambda g: sum(n for n, _ in g) > 0)
cuts = st.one_of(st.none(), st.integers(1, 20))


@st.composite
def rows(draw):
    "Histograms of a few queries over one database size, with groups of thousands."
    rng, queries, bins = (
        np.random.default_rng(draw(st.integers(0, 2**32 - 1))),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 20)),
    )
    items = rng.multinomial(
        draw(st.integers(1, 20_000)),
        rng.dirichlet(np.full(bins, draw(st.sampled_from([0.1, 1, 10])))),
        size=queries,
    )
    return items, rng.binomial(items, rng.random((queries, bins)) ** draw(st.sampled_from([1, 8])))


def precision_sum(ranked, top_k, normaliser):
    "AP of one ranking by its definition; with shared labels in place of 0 and 1, weighted AP."
    seen, R = ranked[:top_k], sum(map(bool, ranked))
    precisions = [sum(seen[: i + 1]) / (i + 1) for i, hit in enumerate(seen) if hit]
    return sum(precisions) / max(
        1, {'found': len(precisions), 'min': min(R, len(seen)), 'all': R}[normaliser]
    )


def orders(groups):
    "Every distinct ranking: all permutations inside each group, each as often as any other."
    ties = [sorted(set(permutations([1] * r + [0] * (n - r)))) for n, r in groups]
    return [sum(parts, ()) for parts in product(*ties)]


@quick
@given(sides())
def test_histograms_are_counts(pair):
    query, database = pair
    most = max(1, query.labels.sum(1).max()) if query.labels.ndim == 2 else 1
    naive = np.zeros((len(query), most + 1, query.bits + 1), int)
    for i, j in product(range(len(query)), range(len(database))):
        d = sum(
            bin(a ^ b).count('1')
            for a, b in zip(query.packed[i].tolist(), database.packed[j].tolist(), strict=True)
        )
        a, b = query.labels[i], database.labels[j]
        naive[i, int((a & b).sum() if a.ndim else a == b), d] += 1
    graded, plain = histograms(query, database, graded=True), histograms(query, database)
    assert (graded == naive).all()
    assert (plain[:, 0] == naive[:, 0]).all() and (plain[:, 1] == naive[:, 1:].sum(1)).all()


@quick
@given(sides(most=1024), st.booleans(), st.tuples(st.integers(1, 9), st.integers(1, 40)))
def test_both_paths_count_the_same(pair, graded, tile):
    counts = histograms(*pair, graded)
    for room in (2**28, 3 * counts[0].size):  # in one part, and in parts of three queries
        found = _count_by_torch(*pair, np.zeros_like(counts), 'cpu', tile, room)
        assert (found == counts).all()


def test_the_kernel_counts_the_same():
    "In Triton's interpreter, which a process of its own has from the start."
    pytest.importorskip('triton')
    environment = os.environ | {'TRITON_INTERPRET': '1'}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name('kernel.py')],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == 'the same\n', done.stderr


@pytest.mark.parametrize('words, several, bins', [(2, False, 256), (32, True, 8192), (1, True, 0)])
def test_the_kernel_compiles_for_a_gpu(words, several, bins):
    "Without one: what the interpreter takes, the compiler may refuse."
    triton = pytest.importorskip('triton')
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tensors = ('query', 'database', 'query_labels', 'database_labels', 'counts')
    fixed = {
        'W': words,
        'L': 1,
        'several': several,
        'bins': bins,
        'images': IMAGES,
        'queries': QUERIES,
    }
    form = dict.fromkeys(tensors, '*i32') | dict.fromkeys(('Q', 'N', 'n', 'bits', 'most'), 'i32')
    source = ASTSource(_kernel(), form | dict.fromkeys(fixed, 'constexpr'), fixed)
    made = triton.compile(source, GPUTarget('cuda', 90, 32), {'num_warps': WARPS})
    assert 'popc' in made.asm['ptx']  # one instruction for the ones of a word
    assert made.metadata.shared == 4 * bins


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from((2, 5, 10**6)), cuts)
def test_outputs_are_ranked_as_a_stable_sort_does(seed, n, values, top_k):
    rng = np.random.default_rng(seed)
    apart = np.sqrt(rng.integers(0, values, (5, n)) / 3)
    relevant = rng.random((5, n)) < rng.random()
    k = min(top_k or n, n)
    ranked = np.take_along_axis(relevant, apart.argsort(axis=1, kind='stable'), 1)[:, :k]
    precisions, found, gaps = _ranked(apart, relevant, k)
    assert np.array_equal(precisions, ranked.cumsum(1) / np.arange(1, k + 1) * ranked)
    assert (found == ranked.sum(1)).all()
    total, hits, least = _ranked_by_torch(*map(torch.from_numpy, (apart, relevant)), k)
    assert np.array_equal(total, torch.from_numpy(precisions).sum(1).numpy())
    assert (hits == found).all()
    assert np.allclose(least, gaps, rtol=1e-9, atol=1e-9)


def all_ap_by_differences(query, database, y, z):
    "AP of each query, all distances from differences of outputs."
    apart = torch.cdist(query, database, compute_mode='donot_use_mm_for_euclid_dist')
    relevant = (y[:, None] == z).gather(1, apart.argsort(dim=1, stable=True))
    return [precision_sum(ranked, None, 'all') for ranked in relevant.int().tolist()]


@quick
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.sampled_from((0.0, 1e-12, 1e-9, 1e-6, 1.0)),
    st.sampled_from((0.0, 1.0, 1e4, 1e8)),
    st.sampled_from((1, 2, 7)),
    st.sampled_from((-900, -565, 0, 460)),
)
def test_outputs_are_ranked_as_differences_rank_them(seed, bits, spread, offset, every, power):
    "Also where some rows lie so close together that a product of matrices confuses them."
    generator = torch.Generator().manual_seed(seed)
    query, database = (
        torch.randn(n, bits, generator=generator, dtype=torch.float64) for n in (4, 60)
    )
    database[::every] = query[0] + spread * database[::every]
    database += offset
    query += offset
    y, z = torch.arange(4) % 3, torch.randint(0, 3, (60,), generator=generator)
    found = ap_of_outputs(query * 2.0**power, database * 2.0**power, y, z)
    assert found == pytest.approx(all_ap_by_differences(query, database, y, z), abs=1e-12)


@quick
@given(groups, cuts, st.sampled_from(normalisers))
def test_ap_is_that_of_the_listed_orders(groups, top_k, normaliser):
    items, relevant = np.array(groups).T[:, None]
    first = sum(((1,) * r + (0,) * (n - r) for n, r in groups), ())
    last = sum(((0,) * (n - r) + (1,) * r for n, r in groups), ())
    listed = {
        'expected': np.mean(
            [precision_sum(ranked, top_k, normaliser) for ranked in orders(groups)]
        ),
        'optimistic': precision_sum(first, top_k, normaliser),
        'pessimistic': precision_sum(last, top_k, normaliser),
    }
    assert {
        ties: average_precision(items, relevant, top_k, normaliser, ties)[0] for ties in listed
    } == pytest.approx(listed, abs=1e-12)


@quick
@given(rows(), st.one_of(st.none(), st.integers(1, 25_000)), st.sampled_from(normalisers))
def test_ap_lies_between_its_bounds(histogram, top_k, normaliser):
    low, mid, high = (
        average_precision(*histogram, top_k, normaliser, ties)
        for ties in ('pessimistic', 'expected', 'optimistic')
    )
    for ap in (low, mid, high):
        assert (ap > -1e-9).all() and (ap < 1 + 1e-9).all()
    if top_k is None or normaliser != 'found':
        assert (low <= mid + 1e-9).all() and (mid <= high + 1e-9).all()


def test_found_in_top_k_has_no_bounds():
    """Relevant first scores below relevant last: 1, then two misses, then a tie of one and one,
    cut in its middle."""
    items, relevant = np.array([[1, 2, 2]]), np.array([[1, 0, 1]])
    first, last = (
        average_precision(items, relevant, 4, 'found', ties)[0]
        for ties in ('optimistic', 'pessimistic')
    )
    assert (first, last) == pytest.approx((0.75, 1)) and first < last


@quick
@given(rows())
def test_expected_ap_is_the_sum_over_places(histogram):
    """On groups too large to list. At place j of m tied items, r of them relevant, stands a
    relevant one with probability r / m, and before it (j - 1)(r - 1) / (m - 1) of its group."""
    items, relevant = (x[0].astype(float) for x in histogram)
    above, hits = items.cumsum() - items, relevant.cumsum() - relevant
    total = 0.0
    for m, r, n, h in zip(items, relevant, above, hits, strict=True):
        j = np.arange(m)
        total += ((h + 1 + j * (r - 1) / max(m - 1, 1)) / (n + 1 + j)).sum() * r / max(m, 1)
    expected = total / max(relevant.sum(), 1)
    found = average_precision(*(x[:1] for x in histogram))[0]
    assert found == pytest.approx(expected, abs=1e-10)


@quick
@given(rows())
def test_a_cut_at_the_end_is_no_cut(histogram):
    N = int(histogram[0][0].sum())
    for ties, normaliser in product(('pessimistic', 'expected', 'optimistic'), normalisers):
        assert average_precision(*histogram, N, normaliser, ties) == pytest.approx(
            average_precision(*histogram, ties=ties), abs=1e-9
        )
    assert found_at(*histogram, [N])[:, 0] == pytest.approx(histogram[1].sum(1))


shares = st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=3).filter(any)


@quick
@given(shares, cuts, st.sampled_from(normalisers))
def test_graded_measures_are_means_over_all_orders(groups, top_k, normaliser):
    "`groups` are the numbers of labels that images share with the query, by distance."
    counts = np.array([[[group.count(s) for group in groups] for s in range(4)]])
    listed = [sum(parts, ()) for parts in product(*(list(permutations(group)) for group in groups))]

    def gain(ranked):
        return sum((2**s - 1) / np.log2(i + 2) for i, s in enumerate(ranked[:top_k]))

    best = gain(sorted(listed[0], reverse=True)) or 1
    assert ndcg(counts, top_k)[0] == pytest.approx(
        np.mean([gain(ranked) for ranked in listed]) / best, abs=1e-12
    )
    weighted = average_precision(
        counts.sum(1), counts[:, 1:].sum(1), top_k, normaliser, gains=np.arange(4) @ counts
    )[0]
    assert weighted == pytest.approx(
        np.mean([precision_sum(ranked, top_k, normaliser) for ranked in listed]), abs=1e-12
    )
    k = min(top_k or len(listed[0]), len(listed[0]))
    assert found_at(counts.sum(1), np.arange(4) @ counts, k)[0, 0] == pytest.approx(
        np.mean([sum(ranked[:k]) for ranked in listed]), abs=1e-12
    )


@quick
@given(groups)
def test_found_at_is_that_of_the_listed_orders(groups):
    items, relevant = np.array(groups).T[:, None]
    listed = [np.cumsum(ranked) for ranked in orders(groups)]
    for ties, over in (('expected', np.mean), ('optimistic', np.max), ('pessimistic', np.min)):
        assert found_at(items, relevant, range(1, items.sum() + 1), ties)[0] == pytest.approx(
            over(listed, 0), abs=1e-12
        )


@quick
@given(sides(most=40), cuts, st.randoms(use_true_random=False))
def test_the_order_of_the_database_changes_nothing(pair, top_k, random):
    query, database = pair
    order = random.sample(range(len(database)), len(database))
    assert (
        evaluate(query, database[order], top_k, graded=True).to_dict()
        == evaluate(query, database, top_k, graded=True).to_dict()
    )


@quick
@given(sides(most=12), cuts, st.sampled_from(normalisers))
def test_ap_in_order_follows_a_stable_sort(pair, top_k, normaliser):
    query, database = pair
    for i, ap in enumerate(ap_in_order(query, database, top_k, normaliser)):
        d = [
            sum(bin(a ^ b).count('1') for a, b in zip(query.packed[i].tolist(), row, strict=True))
            for row in database.packed.tolist()
        ]
        same = (
            (query.labels[i] & database.labels).any(1)
            if query.labels.ndim == 2
            else query.labels[i] == database.labels
        )
        ranked = [int(same[j]) for j in sorted(range(len(d)), key=d.__getitem__)]
        assert ap == pytest.approx(precision_sum(ranked, top_k, normaliser), abs=1e-12)


def test_torch_counts_where_the_kernel_does_not_run(monkeypatch):
    def broken(*_):
        raise RuntimeError('Failed to find C compiler\nmore')

    monkeypatch.setattr(counting, '_count_by_triton', broken)
    monkeypatch.setattr(counting, '_count_by_torch', lambda *_: 'torch')
    monkeypatch.setattr(counting, 'find_spec', lambda _: True)
    with pytest.warns(UserWarning, match='takes longer: Failed to find C compiler$'):
        assert counting._count_on_device(None, None, None, torch.device('cuda')) == 'torch'
    monkeypatch.setattr(counting, 'find_spec', lambda _: None)  # no Triton, no warning
    assert counting._count_on_device(None, None, None, torch.device('cuda')) == 'torch'


@st.composite
def few_codes(draw):
    "Queries and images of short codes, each of one of five classes, and the superclasses of these."
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sides = [
        Codes.from_bits(rng.random((n, 2)) < 0.5, rng.integers(0, 5, n))
        for n in (draw(st.integers(1, 4)), draw(st.integers(1, 7)))
    ]
    return *sides, rng.permutation(['a', 'b', *rng.choice(['a', 'b', 'c'], 3)]).tolist()


def listed(distances, values):
    "The values of items in every order of tied ones, nearest first."
    groups = [[v for d, v in zip(distances, values, strict=True) if d == at] for at in range(3)]
    return [sum(parts, ()) for parts in product(*(list(permutations(group)) for group in groups))]


@quick
@given(few_codes(), cuts)
def test_kinship_is_that_of_the_listed_orders(drawn, top_k):
    query, database, superclasses = drawn
    found = kinship(query, database, superclasses, top_k)

    def gain(ranked):
        return sum(s / np.log2(i + 2) for i, s in enumerate(ranked[:top_k]))

    aps, gains = [], []
    for code, label in zip(query.packed, query.labels, strict=True):
        away = np.bitwise_count(code ^ database.packed).sum(1)
        kin = [superclasses[y] == superclasses[label] for y in database.labels]
        other = database.labels != label
        ranked = listed(away[other], np.array(kin)[other])
        aps.append(np.mean([precision_sum(r, top_k, 'found') for r in ranked]))
        ranked = listed(away, np.where(other, kin, 2))
        best = gain(sorted(ranked[0], reverse=True)) or 1
        gains.append(np.mean([gain(r) for r in ranked]) / best)
    assert found['map_kin'] == pytest.approx(np.mean(aps), abs=1e-12)
    assert found['ndcg_kin'] == pytest.approx(np.mean(gains), abs=1e-12)


@quick
@given(few_codes(), st.integers(0, 2**32 - 1))
def test_kinship_of_classes_is_that_of_the_listed_orders(drawn, seed):
    superclasses = np.array(drawn[2])
    distances = np.random.default_rng(seed).integers(0, 3, (5, 5))
    aps = []
    for c, row in enumerate(distances):
        other = np.arange(5) != c
        ranked = listed(row[other], (superclasses == superclasses[c])[other])
        aps.append(np.mean([precision_sum(r, None, 'all') for r in ranked]))
    found = kinship_of_classes(distances, superclasses)
    assert found == pytest.approx(np.mean(aps), abs=1e-12)


@quick
@given(few_codes(), st.integers(0, 2**32 - 1))
def test_kinship_of_a_part_is_that_of_its_queries(drawn, seed):
    "Also where classes are missing on one side, and in another order of the database."
    query, database, superclasses = drawn
    order = np.random.default_rng(seed).permutation(len(database))
    each = [kinship(query[[q]], database[order], superclasses) for q in range(len(query))]
    for name, value in kinship(query, database, superclasses).items():
        assert value == pytest.approx(np.mean([found[name] for found in each]), abs=1e-12)


FORKED = """
import multiprocessing
from threading import Event, Thread
from dcwh import counting
from dcwh.codes import Codes
from dcwh.evaluation import evaluate

codes = Codes.from_bits([[0, 1], [1, 1]], [0, 1])

def score(_):
    return evaluate(codes, codes).map

def counts_meanwhile():
    with counting._TURN.lock:
        begun.set()
        ended.wait()

print(score(0))
begun, ended = Event(), Event()
Thread(target=counts_meanwhile).start()
begun.wait()
with multiprocessing.get_context('fork').Pool(1) as pool:
    try:
        print(*pool.map(score, [0]))
    except RuntimeError as e:
        print(e)
ended.set()
"""


THREADS = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from dcwh.codes import Codes
from dcwh.evaluation import evaluate

drawn = np.random.default_rng(0)
codes = Codes.from_bits(drawn.integers(0, 2, (2000, 64)), drawn.integers(0, 10, 2000))
with ThreadPoolExecutor(4) as pool:
    print(len(set(pool.map(lambda _: evaluate(codes, codes).map, range(8)))))
"""


@pytest.mark.parametrize('layer', ('workqueue', 'default'))
def test_threads_count_the_same(layer):
    known = os.environ | {'NUMBA_THREADING_LAYER': layer, 'NUMBA_NUM_THREADS': '2'}
    done = subprocess.run([sys.executable, '-c', THREADS], capture_output=True, env=known)
    assert done.stdout.split() == [b'1'], done.stderr


@pytest.mark.parametrize('layer', ('workqueue', 'default'))
def test_in_a_fork_of_a_process_that_counted_it_counts_or_says_why_not(layer):
    known = os.environ | {'NUMBA_THREADING_LAYER': layer}
    words = [sys.executable, '-c', FORKED]
    done = subprocess.run(words, capture_output=True, text=True, env=known, timeout=300)
    whole, forked = done.stdout.splitlines()
    refused = layer == 'default' and 'is a fork of one that had counted' in forked
    assert forked == whole or refused, done.stderr
