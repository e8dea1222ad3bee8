# The benchmark of the nginx modules. It starts nginx and the backend of their tests.

## bench-nginx  handoff_pass beside proxy_pass and beside the backend itself
.PHONY: bench-nginx
bench-nginx: nginx $(NGINX_TESTS)/backend | need-python need-wrk
	@mkdir -p $(BENCH)/results
	@$(NGINX_RUN) $(PYTHON) bench/nginx/bench.py > $(BENCH)/results/nginx.txt
	@cat $(BENCH)/results/nginx.txt
