"""A search that is called like a pipeline of diffusers."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers.utils import BaseOutput

from lotts_search import registry
from lotts_search.api import asearch, blocking
from lotts_search.backbones.load_options import LoadOptions
from lotts_search.core.events import Event
from lotts_search.core.result import Interrupted, SearchFailed, SearchResult
from lotts_search.core.strategy import Strategy
from lotts_search.engine import local_pool
from lotts_search.errors import BadInput, notice, unknown
from lotts_search.integrations.arguments import converted, each, seeds, whole
from lotts_search.integrations.callbacks import Callback, Steps
from lotts_search.shapes.world.vocabulary import report_unknown_words
from lotts_search.work.batch_sizes import ROWS, Batch
from lotts_search.work.pool import Pool

ARGUMENTS = (
    "prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "height", "width", "num_images_per_prompt",
    "generator", "seed", "nfe", "images", "seconds", "target", "output_type", "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
)  # fmt: skip
"""The arguments of a call."""


@dataclass
class SearchPipelineOutput(BaseOutput):  # type: ignore[misc]
    """What a call returns.

    Attributes:
        images: the best image of each search, of the type that the call asked for.
        results: the searches, in the same order; their ``seed``, ``score``, ``ledger`` and ``trials`` tell more.
    """

    images: Any
    results: list[SearchResult]


class SearchPipeline:
    """Call searches like a pipeline of diffusers: each image is the best that a search finds within its budget.

    Use it as a context manager, or call :meth:`close`, or delete it, to free the model.

    Args:
        pool: where the work runs; it stays open when the pipeline is closed.
        strategy: a registered name, ``package.module:Class``, or a strategy object; None = as for
            :func:`lotts_search.api.asearch`.
        settings: of a strategy given by its name.
        verifier, rewriter: as for :func:`lotts_search.api.asearch`.
    """

    def __init__(
        self,
        pool: Pool,
        strategy: str | Strategy | None = None,
        settings: Mapping[str, object] | None = None,
        verifier: str | None = None,
        rewriter: str | None = None,
    ):
        self.pool = pool
        self._search: dict[str, Any] = {
            "strategy": strategy,
            "settings": settings,
            "verifier": verifier,
            "rewriter": rewriter,
        }
        self._close: Callable[[], object] = lambda: None
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        verifier: str | None = None,
        strategy: str | Strategy | None = None,
        settings: Mapping[str, object] | None = None,
        rewriter: str | None = None,
        torch_dtype: object = None,
        batch: Batch = ROWS,
        threads: int | None = None,
        **options: Any,
    ) -> Self:
        """Load a model and its verifier into this process.

        Args:
            model: a registered name, a folder in diffusers format or a Hub id.
            verifier: guides the searches, as for :func:`~lotts_search.registry.load_verifier`; None = the one that the model
                names.
            strategy, settings: see the class.
            rewriter: for strategies that revise prompts; None = the one that the model names.
            torch_dtype: precision of the weights, as a dtype of torch or its name; another name of ``dtype``.
            batch, threads: see :class:`~lotts_search.engine.local_pool.LocalPool`.
            options: see :class:`~lotts_search.backbones.load_options.LoadOptions`: ``device``, ``variant``, ``revision``,
                ``size=(height, width)``, ``lora``, ``offload`` and others.

        Raises:
            BadInput: an argument is wrong; nothing was loaded.
            Failure: files are missing or broken.
        """
        if torch_dtype is not None:
            if options.get("dtype") is not None:
                raise BadInput("torch_dtype and dtype are the same: give one of them")
            options["dtype"] = torch_dtype
        LoadOptions.of(options)
        verifier = verifier or registry.default_verifier(model, options.get("revision"))
        registry.check_verifier(verifier)
        strategy = strategy or registry.default_strategy(verifier)
        chosen = strategy if isinstance(strategy, Strategy) else registry.make_strategy(strategy, settings or {})
        rewriters = {}
        if chosen.rewrites:
            rewriter = rewriter or registry.default_rewriter(model, options.get("revision"))
            rewriters = {rewriter: registry.load_rewriter(rewriter)}
        verifiers = {verifier: registry.load_verifier(verifier)}
        backbone = registry.load_backbone(model, **options)
        pool = local_pool.LocalPool(backbone, verifiers, batch, threads, rewriters=rewriters)
        pipeline = cls(pool, strategy, settings, verifier, rewriter)
        pipeline._close = weakref.finalize(pipeline, pool.close)
        return pipeline

    def close(self) -> None:
        """Free the model that :meth:`from_pretrained` loaded."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def to(self, *_: object, **__: object) -> Self:
        """Refuse to move: a model stays where it was loaded.

        Raises:
            BadInput: always.
        """
        raise BadInput(
            "a search pipeline stays where it was loaded: give from_pretrained the device, dtype and offload"
        )

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | None = None,
        nfe: float | None = None,
        images: int | None = None,
        seconds: float | None = None,
        target: float | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        **others: Any,
    ) -> SearchPipelineOutput:
        """Search for the images of a prompt or of several.

        Args:
            prompt: a text, or one for each of several batches of images.
            negative_prompt: a text for all prompts, or one for each.
            num_inference_steps: denoising steps of an image; None = the model's own.
            guidance_scale: 1 = unguided; None = the model's own.
            height, width: in pixels; only those that the model was loaded with, see ``size`` of :meth:`from_pretrained`.
            num_images_per_prompt: searches for each prompt, all with the same budget.
            generator: the seed is drawn from it, so that its state moves on as with diffusers; one for all images or one for
                each.
            seed: decides all noise; image i has the seed ``seed + i``, in the order of the images. None = random, and the
                results name it.
            nfe, images, seconds, target: the budget of each search, in any combination, see
                :class:`~lotts_search.core.budget.Budget`; 9 images by default.
            output_type: ``pil``, or ``np``: float32 [n, h, w, 3] within 0..1.
            callback_on_step_end: called as ``callback(pipeline, step, timestep, callback_kwargs)``. A search has trials
                instead of denoising steps, so it is called after each finished trial of any search: ``step`` counts them from
                0, and ``timestep`` is the number of denoising steps that this search has spent (NFE, a float). A callback
                returns its dictionary or None and cannot change a search. ``pipeline._interrupt = True`` ends all
                searches; those without an image raise SearchFailed, the others return their best so far.
            callback_on_step_end_tensor_inputs: what ``callback_kwargs`` has, None = everything in
                :data:`~lotts_search.integrations.callbacks.NAMES`.

        Returns:
            The best images and their searches, prompt by prompt.

        Raises:
            BadInput: an argument is wrong or unknown; nothing was run.
            SearchFailed: a search ended without an image.
        """
        for name in others:
            raise unknown("argument of a search pipeline", name, ARGUMENTS)
        self._check_size(height, width)
        convert = converted(output_type)
        count = whole(num_images_per_prompt, "num_images_per_prompt")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise BadInput("the list of prompts is empty")
        negatives = each(negative_prompt or "", len(prompts), "negative_prompt")
        drawn = seeds(seed, generator, len(prompts) * count)
        steps = Steps(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        report_unknown_words(self.pool.info.name, prompts)
        common = {
            **self._search, "pool": self.pool, "nfe": nfe, "images": images, "seconds": seconds, "target": target,
            "steps": num_inference_steps, "guidance": guidance_scale,
        }  # fmt: skip
        pairs = [pair for pair in zip(prompts, negatives, strict=True) for _ in range(count)]
        wanted = [
            common | {"prompt": text, "negative": negative, "seed": one}
            for (text, negative), one in zip(pairs, drawn, strict=True)
        ]
        self._interrupt = False
        results = blocking(lambda: self._run(wanted, steps))
        for result in results:
            if result.failures.count:
                notice(str(result.failures))
        return SearchPipelineOutput(convert([result.image for result in results if result.image is not None]), results)

    def _check_size(self, height: int | None, width: int | None) -> None:
        have = self.pool.info.image
        if (height or have[0], width or have[1]) != have:
            raise BadInput(
                f"height and width must be {have[0]} and {have[1]}, not {height} and {width}: another size is an option of "
                "from_pretrained, size=(height, width)"
            )

    async def _run(self, wanted: Sequence[Mapping[str, Any]], steps: Steps) -> list[SearchResult]:
        """Run searches at once. The first that fails, or an interruption, ends all."""
        loop = asyncio.get_running_loop()
        searches: list[asyncio.Future[SearchResult]] = []

        def listener(number: int) -> Callable[[Event], None]:
            def told(event: Event) -> None:
                steps.told(number, event)
                if self._interrupt:
                    for search in searches:
                        loop.call_soon(search.cancel)  # not at once: this search is in the middle of a step

            return told

        searches += [asyncio.ensure_future(_found(one, listener(number))) for number, one in enumerate(wanted)]
        try:
            return await asyncio.gather(*searches)
        finally:
            for search in searches:
                search.cancel()
            await asyncio.wait(searches)


async def _found(options: Mapping[str, Any], on_event: Callable[[Event], None]) -> SearchResult:
    """Return the result of a search, also of one that was interrupted.

    Raises:
        SearchFailed: it was interrupted before its first image.
    """
    try:
        return await asearch(**options, on_event=on_event)
    except Interrupted as interrupted:
        if interrupted.result.image is None:
            raise SearchFailed("the search was interrupted before its first image", interrupted.result) from None
        return interrupted.result
