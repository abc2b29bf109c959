import pytest

from lotts_search.core.costs import Costs
from lotts_search.core.stages import Stages
from lotts_search.core.strategy import Budget
from lotts_search.errors import BadInput
from lotts_search.testing import AnalyticPool
from lotts_search.work.requests import Sampling


@pytest.fixture
def costs() -> Costs:
    with AnalyticPool() as pool:
        return Costs.of(pool.info, Sampling.of(pool.info, "any"))


def test_a_budget_of_images_counts_the_candidates_that_become_images(costs: Costs) -> None:
    # Of 6 candidates half become images, which are 3; of 7 they are 4.
    assert Stages("sample", 0, [4, 8], [1, 0.5]).paid(Budget(images=3), costs) == 6


def test_a_budget_of_images_does_not_limit_candidates_that_hardly_ever_become_images(costs: Costs) -> None:
    stages = Stages("sample", 0, [4, 8], [1, 1e-5])
    with pytest.raises(BadInput, match="a share of 1e-05 become images: keep more of them, or give a budget in NFE"):
        stages.paid(Budget(images=3), costs)
    assert stages.paid(Budget(images=3), costs, most=7) == 7
    with pytest.raises(BadInput, match="a budget of 3 images pays for 3000 candidates or more"):
        stages.paid(Budget(images=3), costs, most=50_000)
    assert stages.paid(Budget(images=0), costs) == 0
    # 4 steps each and one for the x0 prediction that is scored; one candidate goes on for 4 steps instead.
    assert stages.paid(Budget(nfe=84), costs) == (84 - 8) // 5 + 1


def test_a_budget_of_images_alone_pays_for_a_thousand_candidates_per_image(costs: Costs) -> None:
    # 3.5 candidates would be 4 images; 50,008 NFE pay for 10,001 candidates of 5, one of which goes on for 3 more.
    for share, count in ((0.002, 1749), (0.0011, 3181), (0.0001, 10_001)):
        stages = Stages("sample", 0, [4, 8], [1, share])
        assert stages.paid(Budget(images=3, nfe=50_008), costs) == count
        if count <= 3000:
            assert stages.paid(Budget(images=3), costs) == count
            continue
        with pytest.raises(BadInput, match="a budget of 3 images pays for 3000 candidates or more"):
            stages.paid(Budget(images=3), costs)
