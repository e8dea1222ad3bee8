# handoff(1): a program of libhandoff, built as a user would build one.

COMMAND         := $(BUILD)/bin/handoff
COMMAND_SOURCES := $(wildcard tools/handoff/*.c)

all: $(COMMAND)

$(COMMAND): $(COMMAND_SOURCES) $(wildcard tools/handoff/*.h) $(HEADERS) | $(LIB)/$(SHARED)
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) -Iinclude $(COMMAND_SOURCES) -o $@ $(LDFLAGS) -L$(LIB) -lhandoff

# The tests need a copy of the command and the library that every user can reach.
## check-command   handoff(1): ten broken set-ups, and clients through `broker' and `exec'
.PHONY: check-command
check-command: $(COMMAND) | need-python need-valgrind all
	@HANDOFF_COMMAND=$(COMMAND) $(RUN) $(PYTHON) -B -W error -m unittest -q \
	    tools/handoff/test_command.py
