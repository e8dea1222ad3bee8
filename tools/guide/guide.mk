# The recipes of docs/guide.md, run.

## check-guide  every recipe of docs/guide.md, as root, on machines of their own
.PHONY: check-guide
check-guide: all | need-python need-systemd need-curl
	@$(PYTHON) -B tools/guide/check.py
