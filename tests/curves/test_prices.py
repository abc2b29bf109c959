"""FLOPs of a trial table at other prices than those of its models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lotts_search import search
from lotts_search.core.trial_table import to_table, write_parquet
from lotts_search.curves import from_table, load
from lotts_search.testing.analytic import PRICES, AnalyticPool
from lotts_search.testing.studies import Simulated, simulate
from lotts_search.work.prices import Prices


@pytest.mark.parametrize("strategy", ["lotts", "svdd", "mosaic"])
def test_the_counts_of_a_search_have_all_that_its_flops_follow_from(strategy: str) -> None:
    with AnalyticPool() as pool:
        result = search("red star", pool=pool, strategy=strategy, nfe=60)
    table = to_table(result.trials)
    own, priced = from_table(table), from_table(table, price=PRICES.flops)
    assert own.cost("flops").tolist() == priced.cost("flops").tolist()
    assert own.cost("flops")[-1] == result.ledger.flops
    # Prices that read one kind of work each.
    for name, count in (("rows", "row"), ("encodes", "encode"), ("scores", "score")):
        only = from_table(table, price=Prices(**{count: 1.0}).flops)
        assert only.cost("flops")[-1] == getattr(result.ledger, name)
    previews = from_table(table, price=Prices(preview=1.0).flops).cost("flops")[-1]
    decodes = from_table(table, price=Prices(decode=1.0).flops).cost("flops")[-1]
    assert (previews, decodes + previews) == (result.ledger.previews, result.ledger.decodes)
    assert previews > 0 or strategy == "lotts"


def test_tables_are_loaded_at_other_prices(tmp_path: Path) -> None:
    """A simulated image takes 20 rows; a table of an earlier version has no other counts, which are then 0."""
    table = simulate({"best-of-n": Simulated(images=4)}, 3, rng=np.random.default_rng(0))
    path = write_parquet(table, tmp_path / "trials.parquet")
    own, priced = load(path), load(path, price=Prices(row=5.0, decode=1.0, score=1.0).flops)
    setup = own.setups[0]
    assert own.spent(setup, "flops") == 4 * 10 * 1e9 and priced.spent(setup, "flops") == 4 * 20 * 5
    assert own.spent(setup, "nfe") == priced.spent(setup, "nfe")
