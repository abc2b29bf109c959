"""The embedded test world: ``shapes-*`` models small enough for a laptop, with a known truth to measure against.

Here are the world itself (``world``), the training of its denoisers (``denoisers``) and of its verifier (``reward``),
the measurements of what the models can do (``measure``), and the shipped weights (``models``). How any model is loaded,
sampled and searched is not here: the rest of the package reaches these models through the registry, as any others.
"""
