from hypothesis import given
from hypothesis import strategies as st

from lohan_core.store.ranges import Range, RangeMap

SIZE = 24
intervals = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).filter(lambda pair: pair[0] < pair[1])


@given(st.lists(intervals), intervals)
def test_range_map_agrees_with_a_list_of_cells(puts, query):
    ranges = RangeMap()
    cells = [None] * SIZE
    for number, (start, stop) in enumerate(puts):
        ranges.put(Range(start, stop, str(number)))
        displaced = set(cells[start:stop])
        cells = [None if cell in displaced else cell for cell in cells]
        cells[start:stop] = [str(number)] * (stop - start)

    held = [None] * SIZE
    for item in ranges:
        assert held[item.start : item.stop] == [None] * (item.stop - item.start)
        held[item.start : item.stop] = [item.digest] * (item.stop - item.start)
    assert held == cells

    start, stop = query
    missing = [i for i in range(start, stop) if cells[i] is None]
    assert ranges.overlaps(start, stop) == (len(missing) < stop - start)
    gap = ranges.first_gap(start, stop)
    if not missing:
        assert gap is None
    else:
        assert gap is not None
        assert gap[0] == missing[0]
        assert all(cells[i] is None for i in range(*gap))
        assert gap[1] == stop or cells[gap[1]] is not None
