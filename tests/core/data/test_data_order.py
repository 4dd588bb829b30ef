import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lohan_core.data.order import permutation, rows_of_step

SEEDS = st.integers(0, 2**63)


@given(st.integers(1, 200), SEEDS, st.integers(0, 1000))
def test_a_permutation_visits_every_row_once(rows, seed, epoch):
    assert sorted(permutation(rows, seed, epoch)) == list(range(rows))


def test_permutations_are_the_same_in_every_version():
    assert permutation(10, 7, 0).tolist() == [8, 4, 3, 6, 2, 1, 0, 5, 9, 7]
    assert permutation(10, 7, 1).tolist() == [7, 9, 6, 1, 4, 8, 3, 2, 5, 0]
    assert permutation(10, 8, 0).tolist() == [8, 5, 1, 6, 7, 9, 0, 4, 3, 2]


@given(st.integers(1, 40), st.integers(1, 15), SEEDS, st.booleans(), st.integers(0, 3))
def test_steps_go_through_every_epoch(rows, batch_size, seed, shuffle, epochs):
    steps = -(-rows * (epochs + 1) // batch_size)
    options = {"rows": rows, "batch_size": batch_size, "seed": seed, "shuffle": shuffle}
    visited = np.concatenate([rows_of_step(step, **options) for step in range(steps)])
    assert len(visited) == steps * batch_size
    for epoch in range(epochs + 1):
        order = visited[epoch * rows : (epoch + 1) * rows].tolist()
        assert order == (permutation(rows, seed, epoch).tolist() if shuffle else list(range(rows)))
