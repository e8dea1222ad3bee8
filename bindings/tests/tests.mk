# What every binding must do. `make check-LANGUAGE` needs $(BINDING_TESTS), and asks it of its example:
#
#   $(call check_binding,LANGUAGE,COMMAND)

BINDING_TESTS = $(NGINX_TESTS)/backend nginx

check_binding = cd bindings/tests && $(NGINX_RUN) HANDOFF_COMMAND=$(COMMAND) \
    PYTHONPATH=$(HERE)/integrations/nginx/tests:$(HERE)/tools/handoff/tests:$(HERE)/bindings/python \
    BINDING_LANGUAGE=$(1) BINDING_BACKEND="$(2)" $(PYTHON) -B -W error -m unittest -q test_binding
