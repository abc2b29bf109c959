"""Metrics of whole sets of images: how far the images that a study returned are from a reference, and from each other."""
