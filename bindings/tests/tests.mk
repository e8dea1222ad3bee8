# What every binding must do. `make check-LANGUAGE` needs $(BINDING_TESTS) and, order-only,
# $(BINDING_NEEDS), and asks it of its example, with TLS in an emulated machine:
#
#   $(call check_binding,LANGUAGE,COMMAND)
#   $(call check_binding_tls,LANGUAGE,COMMAND)
#   $(call check_workers,LANGUAGE,COMMAND)      of one with several processes in a directory

BINDING_TESTS = $(NGINX_TESTS)/backend nginx
BINDING_NEEDS = need-python need-vm need-openssl all

check_binding = $(call binding_test,$(1),$(2)) test_binding
check_workers = $(call binding_test,$(1),$(2)) test_workers

binding_test = cd bindings/tests && $(NGINX_RUN) HANDOFF_COMMAND=$(COMMAND) \
    PYTHONPATH=$(HERE)/integrations/nginx/tests:$(HERE)/tools/handoff/tests:$(HERE)/bindings/python \
    BINDING_LANGUAGE=$(1) BINDING_BACKEND="$(2)" $(PYTHON) -B -W error -m unittest -q

# The machine has what is at the same places of this one.
check_binding_tls = $(VM) -- env $(TEST) PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$(HERE)/c-tests/tls:$(HERE)/bindings/python \
    HANDOFF_NGINX_MODULES=$(NGINX_BUILD) BINDING_LANGUAGE=$(1) BINDING_BACKEND="$(2)" \
    $(HERE)/bindings/tests/test_binding_tls.py
