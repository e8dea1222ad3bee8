# handoff(1): a program of libhandoff, built as a user would build one.

COMMAND         := $(BUILD)/bin/handoff
COMMAND_SOURCES := $(wildcard tools/handoff/*.c)

all: $(COMMAND)

$(COMMAND): $(COMMAND_SOURCES) $(wildcard tools/handoff/*.h) $(HEADERS) | $(LIB)/$(SHARED)
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) -Iinclude $(COMMAND_SOURCES) -o $@ $(LDFLAGS) -L$(LIB) -lhandoff

# COMMAND_TEST=check: that part. COMMAND_UNDER: what handoff(1) runs under.
COMMAND_TEST ?= check serving

## check-command  handoff(1): broken set-ups that it tells apart, clients through broker and exec
.PHONY: check-command
check-command: $(COMMAND) | need-python all
	@cd tools/handoff/tests && HANDOFF_COMMAND=$(COMMAND) $(RUN) \
	    $(PYTHON) -B -W error -m unittest -q $(addprefix test_,$(COMMAND_TEST))
