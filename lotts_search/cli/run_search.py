"""Run one search from the command line: the common part of ``generate`` and ``refine``."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Any, get_args

from rich.text import Text

from lotts_search import registry
from lotts_search.api import DEFAULT_IMAGES, search
from lotts_search.cli.console import Console
from lotts_search.cli.outputs import UNSCORED, folder_name, prepare, save
from lotts_search.cli.pools import Compute
from lotts_search.cli.progress import Live, SearchProgress
from lotts_search.cli.used import used
from lotts_search.core.budget import Budget
from lotts_search.core.localized import Localized
from lotts_search.core.recipe import Recipe
from lotts_search.core.result import SearchFailed, SearchResult
from lotts_search.core.run import check_arguments, check_budget, check_start
from lotts_search.errors import BadInput, unknown
from lotts_search.report.page import large
from lotts_search.shapes.world.vocabulary import report_unknown_words
from lotts_search.study.model_files import check_settings, costs_of
from lotts_search.study.spec import ModelEntry
from lotts_search.work.image_files import image_size, mask_png, read_image, read_mask
from lotts_search.work.masks import GivenMask
from lotts_search.work.pool import Pool
from lotts_search.work.prices import published
from lotts_search.work.requests import Bytes, Sampling, Solver, check_steps


class Request(Recipe):
    """The options of the command line."""

    def check(self) -> Budget:
        """Check the options before anything is started, and return the budget.

        Raises:
            BadInput: an option is wrong.
        """
        check_arguments(self.prompt, self.negative, self.seed, workers=1)
        if self.verifier is None:
            self.verifier = registry.default_verifier(self.model, self.load.get("revision"))
        if self.strategy is None:
            self.strategy = registry.default_strategy(self.verifier)
        strategy = registry.make_strategy(self.strategy, self.settings)
        if (self.rewriter is not None or self.writing) and not strategy.rewrites:
            raise BadInput(f"strategy {self.strategy!r} does not use a rewriter: leave it out")
        if strategy.rewrites:
            if self.rewriter is None:
                self.rewriter = registry.default_rewriter(self.model, self.load.get("revision"))
            registry.load_rewriter(self.rewriter, self.writing)
        if self.steps is not None:
            check_steps(self.steps)
        if self.solver is not None and self.solver not in get_args(Solver):
            raise unknown("solver", self.solver, get_args(Solver))
        if self.as_ is not None:
            published(self.as_)
        if self.nfe is None and self.images is None and self.flops is None and self.seconds is None:
            self.images = DEFAULT_IMAGES
        budget = Budget(self.nfe, self.images, self.seconds, self.target, self.flops)
        check_start(strategy, self.strategy, self.image is not None)
        given = ModelEntry(self.model, self.model, self.load, self.sampling(), self.as_)
        if (costs := costs_of(given, self.image is not None)) is not None:
            check_settings(strategy, self.strategy, given, self.image is not None)
            confined = isinstance(strategy, Localized) and strategy.confined(costs).confined is not None
            # What a confined refinement of a given image takes is known without the model only where its prices are.
            if self.image is None or costs.prices.row or not confined:
                check_budget(strategy, budget, costs, self.image is not None)
        size = registry.model_image_size(self.model, self.load)
        if size is not None:
            self.pixels(size)
        return budget

    def sampling(self) -> dict[str, Any]:
        """Return the sampling settings that may differ from the model's."""
        return {name: getattr(self, name) for name in ("steps", "guidance", "negative", "eta", "solver")}

    def pixels(self, size: tuple[int, int]) -> tuple[Bytes | None, dict[str, object]]:
        """Return the initial image at the model's size (height, width), and the settings with the given mask.

        Raises:
            BadInput: a file is missing or not an image, or the mask is empty or of another aspect ratio.
        """
        if self.image is None:
            return None, {}
        image = read_image(self.image, size)
        if self.mask is None:
            return image, {}
        return image, {"mask": GivenMask(mask_png(read_mask(self.mask, size, like=image_size(self.image))))}

    def run(
        self, pool: Pool, budget: Budget, live: Live, image: Bytes | None, given: dict[str, object]
    ) -> SearchResult:
        """Run the search.

        Args:
            image: initial image at the model's size, if any.
            given: settings of the strategy that are not text (the given mask).
        """
        return search(
            self.prompt,
            strategy=self.strategy,
            verifier=self.verifier,
            rewriter=self.rewriter,
            nfe=self.nfe,
            images=self.images,
            flops=self.flops,
            as_=self.as_,
            seconds=self.seconds,
            target=self.target,
            seed=self.seed,
            settings=self.settings | given,
            pool=pool,
            **self.sampling(),
            image=image,
            on_event=SearchProgress(live, budget),
        )


def run(request: Request, compute: Compute, out: Path | None, json: bool) -> None:
    """Run a search, write its results and print a summary.

    After Ctrl-C the partial results are written and the process exits with 130.

    Raises:
        SearchFailed: no image was finished; the trials are written nevertheless.
    """
    budget = request.check()
    verifier, strategy = str(request.verifier), str(request.strategy)  # the recipe names them, too
    compute.check_verifiers([verifier])
    registry.check_judging(verifier, [request.prompt], [(request.model, compute.load)])
    report_unknown_words(request.model, [request.prompt])
    folder = out or Path("out") / folder_name(request.prompt, strategy, request.line())
    prepare(folder, request.line(), [file for file in (request.image, request.mask) if file is not None])
    rewriters = {request.rewriter: request.writing} if request.rewriter else {}
    with (
        Live(f"starting {compute}", quiet=json) as live,
        compute.pool(request.model, verifier, rewriters=rewriters) as pool,
    ):
        image, given = request.pixels(pool.info.image)
        settings = Sampling.of(pool.info, request.prompt, **request.sampling())
        live.console.print(used(pool.info, settings, verifier, str(budget), request.as_), soft_wrap=True)
        live.update(0.0, "", what=f"{strategy} on {request.model}")
        try:
            result = request.run(pool, budget, live, image, given)
        except SearchFailed as failed:
            if not failed.result.trials:
                raise
            save(failed.result, folder, request.line(), request.recipe())
            kept = folder / UNSCORED if failed.result.images else folder
            raise SearchFailed(f"{failed}; what was generated is in {kept}", failed.result) from failed
    saved = save(result, folder, request.line(), request.recipe())
    if json:
        print(json_module.dumps(saved, ensure_ascii=False))
    else:
        _say(result, folder)
    if result.status == "interrupted":
        sys.exit(130)


def _say(result: SearchResult, folder: Path) -> None:
    console = Console()
    if result.status == "interrupted":
        console.print("stopped; results so far:")
    if result.score is not None:
        ledger = result.ledger
        priced = f" as {result.priced_as}" if result.priced_as else ""
        spent = f"{ledger.nfe:g} NFE  {ledger.images} images  {large(ledger.flops)}FLOP{priced}"
        console.print(Text.assemble((f"score {result.score:.4f}", "bold"), f"  {spent}"))
        if ledger.stopped:
            console.print(f"saved {ledger.left}: {ledger.stopped}")
        if ledger.fallbacks:
            console.print(
                f"the original prompt replaced {ledger.fallbacks} revised ones (reasons: column `error`)",
                style="yellow",
            )
        console.print(f"image    {folder / 'best.png'}", soft_wrap=True)
    console.print(f"report   {folder / 'search.html'}", soft_wrap=True)
    console.print(f"trials   {folder / 'trials.parquet'}", soft_wrap=True)
