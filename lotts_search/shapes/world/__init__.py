"""The shapes world: scenes and captions, their rendering, the four kinds of damage, and the oracle that judges images.

Imports numpy, scipy, ``work`` and ``errors``. Neither networks nor training data are here, and nothing that guides a
search or trains a model may import the oracle.
"""
