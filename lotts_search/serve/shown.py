"""Events of a search as the JSON objects of a stream: OpenAI's partial images, and the whole tree for who asks for it."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

from lotts_search.core.events import Event, MaskFound, NewBest, Preview, SearchStarted, TrialFinished, TrialStarted
from lotts_search.report.images import colour_map, data_uri
from lotts_search.serve.pictures import encoded, thumbnail
from lotts_search.work.image_files import mask_png
from lotts_search.work.requests import Bytes


class Partials:
    """Chooses the images that a stream shows before the last one: the first that there is, be it unfinished, and then the best
    so far, once for each further ``1/wanted`` of the budget; until one is finished, the newest x0 prediction.

    Args:
        wanted: how many, 0..3.
    """

    def __init__(self, wanted: int):
        self._wanted = wanted
        self._finished = False
        self.sent = 0

    def choose(self, event: Event) -> Bytes | None:
        """Return the image to show after this event."""
        if self.sent == self._wanted:
            return None
        match event:
            case Preview(image):
                spent = 0.0
            case NewBest(_, _, image, spent):
                self._finished = True
            case TrialFinished(_, made, spent) if made is not None and not self._finished:
                image = made
            case _:
                return None
        if spent < self.sent / self._wanted:
            return None
        self.sent += 1
        return image


def partial(kind: str, image: Bytes, index: int, common: dict[str, Any], compression: int | None) -> dict[str, Any]:
    """Return OpenAI's event of a partial image.

    Args:
        kind: ``image_generation`` or ``image_edit``.
        common: size, quality, background and output_format.
    """
    picture = encoded(image, common["output_format"], compression)
    return {
        "type": f"{kind}.partial_image",
        "b64_json": picture,
        "partial_image_index": index,
        "created_at": int(time.time()),
        **common,
    }


def tree(event: Event) -> Iterator[dict[str, Any]]:
    """Yield what an event tells of the tree of a search (docs/serve.md, The events of a search)."""
    match event:
        case SearchStarted(search_id, budget, sampling):
            limits = {name: getattr(budget, name) for name in ("nfe", "images", "flops", "seconds", "target")}
            yield {
                "type": "search.started",
                "search_id": search_id,
                "budget": limits,
                "steps": sampling.steps,
                "guidance": sampling.guidance,
            }
        case TrialStarted(trial_id, parent_id, kind, nfe):
            yield {"type": "search.trial_started", "trial": trial_id, "parent": parent_id, "kind": kind, "nfe": nfe}
        case TrialFinished(row, image, spent):
            yield {
                "type": "search.trial_finished",
                "trial": row.trial_id,
                "parent": row.parent_id,
                "kind": row.kind,
                "status": row.status,
                "message": row.error,
                "score": row.score,
                "start": row.start,
                "stop": row.stop,
                "mask_ratio": row.mask_ratio,
                "prompts": list(row.prompts),
                "nfe": row.nfe,
                "flops": row.flops,
                "nfe_cum": row.nfe_cum,
                "best_so_far": row.best_so_far,
                "spent": spent,
                "image": None if image is None else thumbnail(image),
            }
        case MaskFound(trial_id, parent_id, located):
            yield {
                "type": "search.mask_found",
                "trial": trial_id,
                "parent": parent_id,
                "ratio": float(located.mask.mean()),
                "confidence": located.confidence,
                "mask": f"data:image/png;base64,{base64.b64encode(mask_png(located.mask)).decode()}",
                "heat": data_uri(colour_map(located.heat)),
            }
        case NewBest(trial_id, score, _, spent):
            yield {"type": "search.new_best", "trial": trial_id, "score": score, "spent": spent}
        case Preview(image, step, steps):
            yield {"type": "search.preview", "step": step, "steps": steps, "image": thumbnail(image)}
