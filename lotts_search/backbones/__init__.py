"""Diffusion models behind one interface, one file per family, and how they are loaded.

Imports torch, diffusers and ``work``; a backbone knows nothing of searches, engines or Ray.
"""
