"""The embedded denoisers, one file a family: their networks, what they learn, and how their folder is written."""
