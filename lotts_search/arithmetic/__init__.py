"""The arithmetic of strategies: particle resampling, tree search, bandits, and when local search pays.

Pure functions and small classes: numbers in, numbers out. Imports numpy, scipy and ``errors`` only.
"""
