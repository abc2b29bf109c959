"""Where models run: Ray actors and the pool of them. Ray is imported in here only."""

import os

# Ray reads this at its import. It prints the death of a worker to standard output, where a program's own output
# goes; the pool logs a line of its own instead.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed")
