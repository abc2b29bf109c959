"""The tasks of GenEval (Ghosh et al. 2023, arXiv 2310.11513): prompts whose images a detector can judge. Code, templates and
tasks are this project's own."""
