"""What the two wings say to each other: requests, results, masks, noise, model data and the interface of a pool.

Plain picklable data. Imports ``errors`` and ``plugins`` only: no torch, no Ray, no strategy.
"""
