"""A block for Modular Diffusers whose images come from searches."""

from __future__ import annotations

from typing import Any

from diffusers.modular_pipelines import ComponentSpec, InputParam, ModularPipelineBlocks, OutputParam, PipelineState

from lotts_search.errors import BadInput
from lotts_search.integrations.pipeline import SearchPipeline

PASSED = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "num_images_per_prompt", "generator",
          "seed", "nfe", "seconds", "target", "output_type")  # fmt: skip
"""Inputs with the meaning of the arguments of :class:`SearchPipeline`."""


class SearchBlock(ModularPipelineBlocks):  # type: ignore[misc]
    """Make images by searches. Its one component, ``search``, is a :class:`SearchPipeline`, given by ``update_components``.

    Inputs are those of a call of the pipeline; the budget in images is called ``budget``, because ``images`` are the outputs.
    """

    model_name = "lotts-search"

    @property
    def description(self) -> str:
        """Return what the block does."""
        return "Searches for the best images of a prompt within a budget"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Return the pipeline that it needs."""
        return [ComponentSpec("search", SearchPipeline, description="a SearchPipeline, by update_components(search=…)")]

    @property
    def inputs(self) -> list[InputParam]:
        """Return what it takes."""
        return [
            InputParam("prompt", required=True, description="a text or a list of texts"),
            InputParam("negative_prompt", description="a text, or one for each prompt"),
            InputParam("num_inference_steps", int, description="steps of an image; the model's own by default"),
            InputParam("guidance_scale", float, description="1 = unguided; the model's own by default"),
            InputParam("num_images_per_prompt", int, default=1, description="searches for each prompt"),
            InputParam(
                "generator", description="a torch.Generator from which the seed is drawn, or one for each image"
            ),
            InputParam("seed", int, description="decides all noise; random by default"),
            InputParam("nfe", float, description="the budget in denoising steps"),
            InputParam("budget", int, description="the budget in images; 9 where no budget is given"),
            InputParam("seconds", float, description="the budget in seconds"),
            InputParam("target", float, description="the score at which a search ends"),
            InputParam("output_type", str, default="pil", description="pil or np"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Return what it makes."""
        return [
            OutputParam("images", description="the best image of each search"),
            OutputParam("results", list, description="the searches, of class SearchResult"),
        ]

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run the searches.

        Raises:
            BadInput: an input is wrong, or the component is missing.
            SearchFailed: a search ended without an image.
        """
        if components.search is None:
            raise BadInput('the block has no search: update_components(search=SearchPipeline.from_pretrained("MODEL"))')
        block = self.get_block_state(state)
        found = components.search(images=block.budget, **{name: getattr(block, name) for name in PASSED})
        block.images, block.results = found.images, found.results
        self.set_block_state(state, block)
        return components, state
