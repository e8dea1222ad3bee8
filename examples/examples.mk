# The examples, built as a user would build them, and the demo that runs them.

# Without tls_broker, which needs OpenSSL: check-tls builds and runs it.
EXAMPLES := $(patsubst examples/%.c,$(BUILD)/examples/%, \
    $(filter-out examples/tls_broker.c,$(wildcard examples/*.c)))

$(BUILD)/examples/%: examples/%.c $(HEADERS) | need-pkg-config all
	@mkdir -p $(@D)
	@echo CC $@
	@$(CC) -std=c11 $(CFLAGS) $(WARN) $< -o $@ $$($(PC) --cflags --libs handoff) \
	    $(EXAMPLE_LIBS)

$(BUILD)/examples/threaded_broker $(BUILD)/examples/threaded_backend: EXAMPLE_LIBS := -lpthread
$(BUILD)/examples/tls_broker: EXAMPLE_LIBS := -lssl -lcrypto -lpthread
$(BUILD)/examples/tls_broker: | need-openssl

$(BUILD)/examples/%_cc: examples/%.cc $(HEADERS) include/handoff.hpp | need-pkg-config need-cxx all
	@mkdir -p $(@D)
	@echo CXX $@
	@$(CXX) -std=c++17 $(CFLAGS) $(WARN) $< -o $@ $$($(PC) --cflags --libs handoff)

## check-libc  the C tests and the examples need no later glibc than the library
.PHONY: check-libc
check-libc: $(addprefix $(C_BUILD)/,$(C_TESTS) soak one_owner spread faults limits) $(EXAMPLES) \
    | need-python
	@CC='$(CC)' packaging/check-libc $(LIB)/$(SHARED) $(COMMAND) $^

## check-examples  brokers among the examples go on after a shortage of descriptors
.PHONY: check-examples
check-examples: $(addprefix $(BUILD)/examples/,broker broker_cc blocking_broker threaded_broker \
    raw_broker proxy) | need-python
	@BUILD=$(BUILD)/examples LD_LIBRARY_PATH=$(LIB) $(PYTHON) examples/test_descriptors.py

## demo        thousands of clients through a broker to a backend that is killed on the way, and a proxy
.PHONY: demo
demo: $(EXAMPLES) | need-python
	@LD_LIBRARY_PATH=$(LIB) $(PYTHON) examples/demo.py $(BUILD)/examples
