"Properties of dcwh.evaluation that hold for any codes: counts against plain loops, AP against all orders of the ties."
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from dcwh.codes import Codes
from dcwh.evaluation import ap_expected, ap_in_order, ap_optimistic, ap_pessimistic, evaluate, found_at, histograms

quick = settings(max_examples=60, deadline=None)   # the first example compiles the kernels
normalisers = ('found', 'min', 'all')


@st.composite
def sides(draw, least=1, most=130):
    "Query and database of any length, with one label an image or several; few distinct codes, so that distance 0 occurs."
    bits, several, seed = draw(st.integers(least, most)), draw(st.booleans()), draw(st.integers(0, 2**32 - 1))
    sizes, classes = (draw(st.integers(1, 4)), draw(st.integers(1, 40))), draw(st.integers(1, 70))
    rng = np.random.default_rng(seed)
    pool = rng.normal(size=(draw(st.integers(1, 50)), bits))
    labels = [rng.random((n, classes)) < .1 if several else rng.integers(-2, 3, n) for n in sizes]
    return tuple(Codes.from_outputs(pool[rng.integers(0, len(pool), n)], y) for n, y in zip(sizes, labels))


groups = st.lists(st.integers(0, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=4).filter(lambda g: 0 < sum(n for n, _ in g))
cuts = st.one_of(st.none(), st.integers(1, 20))


@st.composite
def rows(draw):
    "Histograms of a few queries over one database size, with groups of thousands."
    rng, queries, bins = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.integers(1, 5)), draw(st.integers(1, 20))
    items = rng.multinomial(draw(st.integers(1, 20_000)), rng.dirichlet(np.full(bins, draw(st.sampled_from([.1, 1, 10])))), size=queries)
    return items, rng.binomial(items, rng.random((queries, bins)) ** draw(st.sampled_from([1, 8])))


def average_precision(ranked, top_k, normaliser):
    seen, R = ranked[:top_k], sum(ranked)
    precisions = [sum(seen[:i + 1]) / (i + 1) for i, hit in enumerate(seen) if hit]
    return sum(precisions) / max(1, {'found': sum(seen), 'min': min(R, len(seen)), 'all': R}[normaliser])


def orders(groups):
    "Every distinct ranking: all permutations inside each group, each as often as any other."
    ties = [sorted(set(permutations([1] * r + [0] * (n - r)))) for n, r in groups]
    return [sum(parts, ()) for parts in product(*ties)]


@quick
@given(sides())
def test_histograms_are_counts(pair):
    query, database = pair
    items, relevant = np.zeros((2, len(query), query.bits + 1), int)
    for i, j in product(range(len(query)), range(len(database))):
        d = sum(bin(a ^ b).count('1') for a, b in zip(query.packed[i].tolist(), database.packed[j].tolist()))
        items[i, d] += 1
        a, b = query.labels[i], database.labels[j]
        relevant[i, d] += (a & b).any() if a.ndim else a == b
    counted = histograms(query, database)
    assert (counted[0] == items).all() and (counted[1] == relevant).all()


@quick
@given(groups, cuts, st.sampled_from(normalisers))
def test_expected_ap_is_the_mean_over_all_orders(groups, top_k, normaliser):
    items, relevant = np.array(groups).T[:, None]
    listed = [average_precision(ranked, top_k, normaliser) for ranked in orders(groups)]
    assert ap_expected(items, relevant, top_k, normaliser)[0] == pytest.approx(np.mean(listed), abs=1e-12)


@quick
@given(groups, cuts, st.sampled_from(normalisers))
def test_relevant_first_and_last_are_two_of_the_orders(groups, top_k, normaliser):
    items, relevant = np.array(groups).T[:, None]
    first = sum(((1,) * r + (0,) * (n - r) for n, r in groups), ())
    last = sum(((0,) * (n - r) + (1,) * r for n, r in groups), ())
    assert ap_optimistic(items, relevant, top_k, normaliser)[0] == pytest.approx(average_precision(first, top_k, normaliser), abs=1e-12)
    assert ap_pessimistic(items, relevant, top_k, normaliser)[0] == pytest.approx(average_precision(last, top_k, normaliser), abs=1e-12)


@quick
@given(rows(), st.one_of(st.none(), st.integers(1, 25_000)), st.sampled_from(normalisers))
def test_ap_lies_between_its_bounds(histogram, top_k, normaliser):
    low, mid, high = (ap(*histogram, top_k, normaliser) for ap in (ap_pessimistic, ap_expected, ap_optimistic))
    for ap in (low, mid, high): assert (ap > -1e-9).all() and (ap < 1 + 1e-9).all()
    if top_k is None or normaliser != 'found': assert (low <= mid + 1e-9).all() and (mid <= high + 1e-9).all()


@quick
@given(rows())
def test_a_cut_at_the_end_is_no_cut(histogram):
    N = int(histogram[0][0].sum())
    for ap, normaliser in product((ap_pessimistic, ap_expected, ap_optimistic), normalisers):
        assert ap(*histogram, N, normaliser) == pytest.approx(ap(*histogram), abs=1e-9)
    assert found_at(*histogram, [N])[:, 0] == pytest.approx(histogram[1].sum(1))


@quick
@given(groups)
def test_found_at_is_the_mean_over_all_orders(groups):
    items, relevant = np.array(groups).T[:, None]
    listed = np.mean([np.cumsum(ranked) for ranked in orders(groups)], 0)
    assert found_at(items, relevant, range(1, items.sum() + 1))[0] == pytest.approx(listed, abs=1e-12)


@quick
@given(sides(most=40), cuts, st.randoms(use_true_random=False))
def test_the_order_of_the_database_changes_nothing(pair, top_k, random):
    query, database = pair
    order = random.sample(range(len(database)), len(database))
    shuffled = Codes(database.packed[order], database.bits, database.labels[order], database.ids[order])
    assert evaluate(query, shuffled, top_k).to_dict() == evaluate(query, database, top_k).to_dict()


@quick
@given(sides(most=12), cuts, st.sampled_from(normalisers))
def test_ap_in_order_follows_a_stable_sort(pair, top_k, normaliser):
    query, database = pair
    for i, ap in enumerate(ap_in_order(query, database, top_k, normaliser)):
        d = [sum(bin(a ^ b).count('1') for a, b in zip(query.packed[i].tolist(), row)) for row in database.packed.tolist()]
        same = (query.labels[i] & database.labels).any(1) if query.labels.ndim == 2 else query.labels[i] == database.labels
        ranked = [int(same[j]) for j in sorted(range(len(d)), key=d.__getitem__)]
        assert ap == pytest.approx(average_precision(ranked, top_k, normaliser), abs=1e-12)
