# The package for Python, and the examples that use it.

# With the packages of Debian that the tests need. PYTHON need not have them.
DEBIAN_PYTHON ?= /usr/bin/python3

PYTHON_TESTS = -B -W error -m unittest discover -q -s

## check-python  the package for Python: both ends, asyncio, ASGI, its types; the examples; the wheel
.PHONY: check-python
check-python: $(BUILD)/examples/broker nginx | need-python need-asgi need-nginx all
	@HANDOFF_BROKER=$< CC="$(CC)" $(RUN) $(PYTHON) $(PYTHON_TESTS) examples/python
	@CC="$(CC)" $(RUN) $(PYTHON) $(PYTHON_TESTS) bindings/python/tests
