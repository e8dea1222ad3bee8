# The examples, built as a user would build them, and the demo that runs them.

EXAMPLES := $(patsubst examples/%.c,$(BUILD)/examples/%,$(wildcard examples/*.c))

.PHONY: need-pkg-config
need-pkg-config:
	@$(NEED) pkg-config pkg-config --version

$(BUILD)/examples/%: examples/%.c include/handoff.h | all need-pkg-config
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) $< -o $@ $$($(PC) --cflags --libs handoff)

## demo        thousands of clients through a broker to a backend that is killed on the way
.PHONY: demo
demo: $(EXAMPLES)
	@LD_LIBRARY_PATH=$(LIB) $(PYTHON) examples/demo.py $(BUILD)/examples

## check-python  the backend in Python, with a broker in Python and one in C
.PHONY: check-python
check-python: $(BUILD)/examples/broker | all need-python
	@HANDOFF_BROKER=$< CC="$(CC)" $(RUN) \
	    $(PYTHON) -B -W error -m unittest discover -q -s examples/python
