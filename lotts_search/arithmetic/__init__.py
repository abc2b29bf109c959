"""The arithmetic of strategies: particle resampling, tree search, bandits, and when local search pays.

Pure functions and small classes over numbers and candidates. Imports numpy, scipy, ``core`` and ``errors``: no pool,
no torch.
"""
