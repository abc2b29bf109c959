"""The wing that computes: continuous batching of denoising, encoding, decoding, localization and scoring.

Imports torch, ``work``, ``backbones``, ``localization``, ``verifiers`` and ``rewriters``; it knows neither ``core`` nor
any strategy.
"""
