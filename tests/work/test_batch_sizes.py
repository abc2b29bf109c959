import pytest

from lotts_search.errors import BadInput
from lotts_search.work.batch_sizes import Batch, BatchSizes


@pytest.mark.parametrize(("batch", "sizes"), [(5, (5,)), ([8, 2, 4, 2], (2, 4, 8)), ((1, 2), (1, 2))])
def test_a_batch_is_a_number_or_several(batch: Batch, sizes: tuple[int, ...]) -> None:
    found = BatchSizes.of(batch)
    assert found.sizes == sizes
    assert BatchSizes.of(found.batch).sizes == sizes
    assert BatchSizes.parse(str(found)) == found


def test_a_call_has_the_smallest_size_that_holds_its_rows() -> None:
    several, one = BatchSizes((2, 4, 8)), BatchSizes((8,))
    assert [several.holding(rows) for rows in range(1, 9)] == [2, 2, 4, 4, 8, 8, 8, 8]
    assert [one.holding(rows) for rows in (1, 8)] == [8, 8]


def test_operations_that_take_fewer_rows_have_the_sizes_below() -> None:
    assert BatchSizes((1, 2, 8)).up_to(4).sizes == (1, 2, 4)
    assert BatchSizes((1, 2)).up_to(4).sizes == (1, 4)
    # A single size stays single, larger or smaller: results must not depend on what else waits.
    assert [BatchSizes((8,)).up_to(most).sizes for most in (4, 32)] == [(4,), (32,)]


@pytest.mark.parametrize("sizes", [(), (0,), (4, -1), (2.5,), (True,)])
def test_a_wrong_size_is_named(sizes: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="1 row or more"):
        BatchSizes(sizes)


@pytest.mark.parametrize("text", ["", "two", "2;4", "2,", "1.5"])
def test_a_text_that_is_no_batch_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="give rows as 8, or several sizes as 2,4,8,16"):
        BatchSizes.parse(text)
