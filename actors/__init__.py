"""Run models in Ray actors, behind a pool. No other part of the package imports Ray."""

import os

# Ray reads this variable when it is imported. Ray prints the death of a worker to standard output, where the program's
# own output goes; the pool logs one line instead.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed")
