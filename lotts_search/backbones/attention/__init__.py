"""How the attention of each family is captured while its network runs.

Imports torch, diffusers and ``errors``; the backbones import it. What the maps are used for is in ``localization``.
"""
