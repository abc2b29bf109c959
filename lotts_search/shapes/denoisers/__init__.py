"""The embedded denoisers, one file per family: networks, training images, training and the diffusers folder.

Imports torch, diffusers, transformers and ``world``, never the oracle. A trained folder is loaded through
``backbones``, as any other model is.
"""
