# The recipes of docs/guide.md, run.

## check-guide  every recipe of docs/guide.md, as root, on machines of their own
.PHONY: check-guide
check-guide: all nginx | need-python need-systemd need-curl need-nginx-dev
	@cd tools/guide && $(PYTHON) -B -m unittest -q test_check
	@$(PYTHON) -B tools/guide/check.py
