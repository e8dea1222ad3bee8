"""How tests wait for something: they ask until it is so, and fail after a time that only a fault takes."""

import time

PATIENCE = 60  # seconds, for anything that should happen at once


def wait_until(condition, what):
    """Asks until the answer is true, and gives it."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"after {PATIENCE} seconds still not: {what}")
        time.sleep(0.01)
    return found
