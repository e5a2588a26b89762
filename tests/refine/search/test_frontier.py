import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tdquant.refine.search.frontier import find_frontier


@st.composite
def problems(draw):
    options = draw(st.integers(1, 4))
    row = st.lists(st.integers(1, 30), min_size=options, max_size=options)
    items = draw(st.integers(1, 5))
    sizes = draw(st.lists(row, min_size=items, max_size=items))
    errors = draw(st.lists(row, min_size=items, max_size=items))
    return sizes, errors


@given(problems(), st.integers(0, 160))
@settings(max_examples=150, deadline=None)
def test_nothing_within_the_budget_is_better(problem, budget):
    sizes, errors = problem
    totals = [
        (
            sum(s[o] for s, o in zip(sizes, c, strict=True)),
            sum(e[o] for e, o in zip(errors, c, strict=True)),
        )
        for c in itertools.product(*(range(len(s)) for s in sizes))
    ]
    frontier = find_frontier(sizes, errors)
    index = frontier.within_size(budget)
    least = min((e for s, e in totals if s <= budget), default=None)
    assert (None if index is None else frontier.errors[index]) == least
    index = frontier.within_error(budget)
    least = min((s for s, e in totals if e <= budget), default=None)
    assert (None if index is None else frontier.sizes[index]) == least


@given(problems())
@settings(max_examples=50, deadline=None)
def test_options_add_up_to_their_total(problem):
    sizes, errors = problem
    frontier = find_frontier(sizes, errors)
    assert (np.diff(frontier.sizes) > 0).all()
    assert (np.diff(frontier.errors) < 0).all()
    for index in range(len(frontier.sizes)):
        options = frontier.options(index)
        assert sum(s[o] for s, o in zip(sizes, options, strict=True)) == frontier.sizes[index]
        assert sum(e[o] for e, o in zip(errors, options, strict=True)) == frontier.errors[index]


def test_a_thinned_frontier_stays_close_and_keeps_both_ends():
    rng = np.random.default_rng(0)
    counts = rng.integers(100, 100_000, 40)
    sizes = [[int(n) * b for b in (2, 3, 4, 6, 8)] for n in counts]
    errors = [[float(a * 4.0**-b) for b in (2, 3, 4, 6, 8)] for a in rng.uniform(0.1, 10, 40)]
    exact, thin = find_frontier(sizes, errors, 100_000), find_frontier(sizes, errors, 500)
    assert len(thin.sizes) <= 500
    for end in (0, -1):
        assert thin.sizes[end] == exact.sizes[end]
        assert np.isclose(thin.errors[end], exact.errors[end])
    budget = 4 * counts.sum()
    found, best = (f.errors[f.within_size(budget)] for f in (thin, exact))
    assert best <= found < 1.02 * best
