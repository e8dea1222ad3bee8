# The package for Python, and the examples that use it.

# With the packages of Debian that the tests need: PYTHON may be another one, without them.
DEBIAN_PYTHON ?= /usr/bin/python3
# The newest uvicorn, as pip installs it: in check-all.
PYTHON_VENV   := $(BUILD)/python-venv

PYTHON_TESTS = -B -W error -m unittest discover -q -s
ASGI_WORKERS = $(DEBIAN_PYTHON) -m handoff.asgi asgi_backend:app --app-dir $(HERE)/examples/python \
    --no-access-log --workers 2
TOKENS       = HANDOFF_NGINX_MODULES=$(NGINX_BUILD) $(RUN)

## check-python  the package for Python, with asyncio and ASGI; its types, its wheel; the examples
.PHONY: check-python
check-python: $(addprefix $(BUILD)/examples/,broker backend) $(BINDING_TESTS) \
    | need-python need-asgi need-mypy need-wheel need-nginx all
	@cd bindings/python && $(DEBIAN_PYTHON) -m mypy
	@LD_LIBRARY_PATH=$(LIB) bindings/python/check-wheel $(DEBIAN_PYTHON) $(BUILD)/python-wheel
	@CC="$(CC)" $(RUN) $(DEBIAN_PYTHON) $(PYTHON_TESTS) bindings/python/tests
	@HANDOFF_BROKER=$< $(RUN) $(PYTHON) $(PYTHON_TESTS) examples/python
	@$(call check_binding,python,$(PYTHON) $(HERE)/examples/python/http_backend.py)

## check-asgi  FastAPI as a backend, with workers, and behind an application that decides, with a real nginx
.PHONY: check-asgi
check-asgi: $(BINDING_TESTS) | need-python need-asgi need-nginx all
	@$(TOKENS) $(DEBIAN_PYTHON) -B examples/python/tokens/test_tokens.py
	@$(call check_binding,asgi,$(DEBIAN_PYTHON) $(HERE)/examples/python/asgi_backend.py)
	@$(call check_workers,asgi,$(ASGI_WORKERS))

## check-python-new  the same of ASGI with the newest uvicorn and FastAPI of PyPI
.PHONY: check-python-new
check-python-new: nginx | need-python need-wheel need-nginx all
	@$(DEBIAN_PYTHON) -m venv $(PYTHON_VENV)
	@$(PYTHON_VENV)/bin/pip install --quiet --upgrade uvicorn httptools websockets wsproto fastapi
	@$(RUN) $(PYTHON_VENV)/bin/python -B bindings/python/tests/test_asgi.py
	@$(TOKENS) $(PYTHON_VENV)/bin/python -B examples/python/tokens/test_tokens.py

## check-python-tls  FastAPI behind nginx with https and wss, in an emulated machine
.PHONY: check-python-tls
check-python-tls: nginx | need-python need-asgi need-vm need-nginx need-openssl
	@$(VM) --limit $(TLS_LIMIT) -- env HANDOFF_TLS=1 PYTHONDONTWRITEBYTECODE=1 \
	    LD_LIBRARY_PATH=$(LIB) PYTHONPATH=$(HERE)/bindings/python HANDOFF_NGINX_MODULES=$(NGINX_BUILD) \
	    $(DEBIAN_PYTHON) examples/python/tokens/test_tokens.py
