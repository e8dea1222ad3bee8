# handoff(1): a program of libhandoff, built as a user would build one.

COMMAND         := $(BUILD)/bin/handoff
COMMAND_SOURCES := $(wildcard tools/handoff/*.c)

all: $(COMMAND)

$(COMMAND): $(COMMAND_SOURCES) $(wildcard tools/handoff/*.h) $(HEADERS) | $(LIB)/$(SHARED)
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) -ffile-prefix-map=$(HERE)=. -Iinclude $(COMMAND_SOURCES) -o $@ $(LDFLAGS) -L$(LIB) -lhandoff

# COMMAND_TEST=check: that part. Some are run again with handoff(1) under valgrind.
COMMAND_TEST           ?= check serving broker
COMMAND_VALGRIND       := $(subst c-tests/,$(HERE)/c-tests/,$(VALGRIND))
COMMAND_UNDER_VALGRIND := $(addprefix test_check., \
    WhatIsBroken.test_each_broken_setup_has_its_code_its_sentence_and_its_advice \
    WhatWorks.test_every_socket_in_a_directory) $(addprefix test_serving., \
    BrokerAndExec.test_every_client_is_answered_by_one_of_the_backends_in_a_directory \
    BrokerAndExec.test_first_bytes_go_along Exec.test_preread_of_every_size_arrives_whole \
    Exec.test_sigterm_drains_and_waits_for_the_commands)

## check-command  handoff(1): broken set-ups that it tells apart, clients through broker and exec
.PHONY: check-command
check-command: $(COMMAND) | need-python need-valgrind all
	@cd tools/handoff/tests && HANDOFF_COMMAND=$(COMMAND) $(RUN) \
	    $(PYTHON) -B -W error -m unittest -q $(addprefix test_,$(COMMAND_TEST))
	@cd tools/handoff/tests && HANDOFF_COMMAND=$(COMMAND) COMMAND_UNDER='$(COMMAND_VALGRIND)' \
	    COMMAND_CLIENTS=50 $(RUN) $(PYTHON) -B -W error -m unittest -q $(COMMAND_UNDER_VALGRIND)
