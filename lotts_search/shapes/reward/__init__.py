"""``shapes-reward``, the learned verifier: its network, its training images with known truth, and its training.

Imports torch, ``world`` and ``denoisers`` (autoencoder and training loop), never the oracle. The verifier that searches
use is :mod:`lotts_search.shapes.verifier`.
"""
