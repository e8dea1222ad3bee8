# The tests of mod_handoff: a real Apache with its event and its prefork MPM, the backend and the
# clients of the nginx modules' tests.

APACHE_TEST  ?= requests owners limits hostile members readme
APACHE_LIMIT ?= 300
APACHE_RUN    = LD_LIBRARY_PATH=$(LIB) NGINX_TESTS_BUILD=$(NGINX_TESTS) NGINX_LOAD= \
    NGINX_TESTS_LIMIT=$(APACHE_LIMIT) APACHE_TESTS_MODULE=$(APACHE_MODULE) \
    APACHE_TESTS_MODULES=$$($(APXS) -q LIBEXECDIR) \
    PYTHONPATH=../../nginx/tests PYTHONDONTWRITEBYTECODE=1

## check-apache the Apache module with a real Apache; APACHE_TEST=limits: that part
.PHONY: check-apache
check-apache: apache $(NGINX_TESTS)/backend | need-python need-apache \
    need-curl need-openssl need-systemd
	@cd integrations/apache/tests && $(APACHE_RUN) \
	    $(PYTHON) -m unittest $(addprefix test_,$(APACHE_TEST))
