"""Nodes for ComfyUI that make images by searches on a server of lotts-search. They need nothing beyond ComfyUI itself."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
