"""Run many searches at once on one pool of Ray actors; the batches of an actor mix the work of all searches.

python examples/many_prompts.py
"""

from __future__ import annotations

import asyncio

from lotts_search import asearch
from lotts_search.actors.ray_pool import RayPool
from lotts_search.shapes.world.scene import scenes


async def main() -> None:
    pool = RayPool("shapes-sd", ["shapes-reward"], generators=1)
    try:
        prompts = [scene.caption for scene in scenes("tune", 6)]
        searches = (asearch(prompt, pool=pool, images=6, seed=i) for i, prompt in enumerate(prompts))
        for result in await asyncio.gather(*searches):
            print(f"{result.score:.3f}  {result.ledger.nfe:5g} NFE  {result.prompt}")
    finally:
        pool.close()


asyncio.run(main())
