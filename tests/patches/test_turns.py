"""Turns of sites: how often, in which batches, and which of its patches."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.patches.turns import SiteTurns

SITES, BATCH_SIZES, SEEDS = st.integers(1, 7), st.integers(1, 6), st.integers(0, 2**32 - 1)


def locate(kind, sites, batch_size, seed, batches):
    """(site, place) of every patch, batch by batch."""
    turns = SiteTurns(kind, sites, batch_size, seed)
    return [
        [turns.locate(batch * batch_size + item) for item in range(batch_size)] for batch in range(batches)
    ]


@given(SITES, BATCH_SIZES, SEEDS)
def test_a_balanced_batch_holds_as_many_sites_as_it_can_each_alike(sites, batch_size, seed):
    for batch in locate("balanced", sites, batch_size, seed, 3 * sites):
        counts = Counter(site for site, _ in batch)
        assert len(counts) == min(sites, batch_size)
        assert max(counts.values()) - min(counts.values()) <= 1


@given(SITES, BATCH_SIZES, SEEDS)
def test_a_pure_batch_holds_one_site_and_as_many_batches_as_sites_hold_all(sites, batch_size, seed):
    batches = locate("pure", sites, batch_size, seed, 4 * sites)
    assert all(len({site for site, _ in batch}) == 1 for batch in batches)
    for turn in range(4):
        assert {batch[0][0] for batch in batches[turn * sites : (turn + 1) * sites]} == set(range(sites))


@given(st.sampled_from(["balanced", "pure"]), SITES, BATCH_SIZES, SEEDS)
def test_every_site_has_as_many_patches_and_counts_them_without_gap(kind, sites, batch_size, seed):
    places = {site: [] for site in range(sites)}
    for batch in locate(kind, sites, batch_size, seed, 2 * sites):  # whole rounds of both kinds
        for site, place in batch:
            places[site].append(place)
    assert all(sorted(own) == list(range(2 * batch_size)) for own in places.values())


def test_companions_and_order_change():
    pairs = {frozenset(site for site, _ in batch) for batch in locate("balanced", 4, 2, 0, 40)}
    assert len(pairs) == 6, "each two of four sites meet"
    firsts = {batch[0][0] for batch in locate("pure", 4, 2, 0, 80)[::4]}
    assert firsts == {0, 1, 2, 3}
    assert locate("pure", 4, 2, 0, 8) != locate("pure", 4, 2, 1, 8)


def test_two_processes_with_one_patch_each_both_meet_both_sites():
    """Of a fixed order, each process would have one site for ever."""
    turns = SiteTurns("balanced", 2, 1, 0)
    assert {turns.locate(2 * number)[0] for number in range(20)} == {0, 1}
