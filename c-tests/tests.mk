# The C tests: each test_*.c is a program, built and linked as a user's would be.

C_TESTS  := $(patsubst c-tests/%.c,%,$(wildcard c-tests/test_*.c))
C_COMMON := support wire frames
C_BUILD  := $(BUILD)/c-tests
C_ASAN   := $(BUILD)/c-tests-asan
# Seconds after which a test that hangs is ended; and how to run a program of another kind.
LIMIT    ?= 300
TEST     := LD_LIBRARY_PATH=$(LIB) PYTHONPATH=$(HERE)/bindings/python PYTHON=$(PYTHON) \
    HANDOFF_TEST_LIMIT=$(LIMIT)
RUN      := LD_LIBRARY_PATH=$(LIB) PYTHONPATH=$(HERE)/bindings/python PYTHON=$(PYTHON) timeout $(LIMIT)
# So many test programs run at a time. They mostly wait; under valgrind they compute.
AT_ONCE  ?= $(shell echo $$((2 * $$(nproc))))
AT_ONCE_UNDER_VALGRIND ?= $(shell nproc)
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
VALGRIND := valgrind --quiet --leak-check=full --show-leak-kinds=definite,possible \
    --errors-for-leak-kinds=definite,possible --suppressions=c-tests/valgrind.supp \
    --error-exitcode=1

C_HEADERS := $(wildcard c-tests/*.h) $(HEADERS)
C_FLAGS    = -std=c11 $(CFLAGS) $(WARN) $$($(PC) --cflags handoff cmocka)
C_LIBS     = $$($(PC) --libs handoff cmocka)

.SECONDARY: $(C_COMMON:%=$(C_BUILD)/%.o) $(C_COMMON:%=$(C_ASAN)/%.o)

$(C_BUILD)/%.o: c-tests/%.c $(C_HEADERS) | need-cmocka all
	@mkdir -p $(@D)
	$(CC) -c $< -o $@ $(C_FLAGS)

$(C_BUILD)/%: c-tests/%.c $(C_COMMON:%=$(C_BUILD)/%.o) $(C_HEADERS) | need-cmocka all
	$(CC) $< $(C_COMMON:%=$(C_BUILD)/%.o) -o $@ $(C_FLAGS) $(C_LIBS)

$(C_ASAN)/%.o: c-tests/%.c $(C_HEADERS) | need-cmocka need-sanitizers all
	@mkdir -p $(@D)
	$(CLANG) $(SANITIZE) -c $< -o $@ $(C_FLAGS)

$(C_ASAN)/%: c-tests/%.c $(C_COMMON:%=$(C_ASAN)/%.o) $(C_HEADERS) | need-cmocka need-sanitizers all
	$(CLANG) $(SANITIZE) $< $(C_COMMON:%=$(C_ASAN)/%.o) -o $@ $(C_FLAGS) $(C_LIBS)

## check-c     the C tests
.PHONY: check-c
check-c: $(addprefix $(C_BUILD)/,$(C_TESTS)) | need-python
	@$(TEST) AT_ONCE=$(AT_ONCE) c-tests/run_all.sh $@ $^

## check-valgrind    the C tests under valgrind
.PHONY: check-valgrind
check-valgrind: $(addprefix $(C_BUILD)/,$(C_TESTS)) | need-valgrind need-python
	@$(TEST) AT_ONCE=$(AT_ONCE_UNDER_VALGRIND) HANDOFF_UNDER_VALGRIND=1 RUNNER='$(VALGRIND)' c-tests/run_all.sh $@ $^

## check-sanitizers  the C tests under AddressSanitizer and UndefinedBehaviorSanitizer
.PHONY: check-sanitizers
check-sanitizers: $(addprefix $(C_ASAN)/,$(C_TESTS)) | need-sanitizers need-python
	@$(TEST) AT_ONCE=$(AT_ONCE) c-tests/run_all.sh $@ $^

## check-interop     the C tests with a peer in Python
.PHONY: check-interop
check-interop: $(C_BUILD)/test_interop | need-python
	@$(TEST) $<

## check-soak        many handoffs, HANDOFF_SOAK_COUNT of them, without growth
.PHONY: check-soak
check-soak: $(C_BUILD)/soak
	@$(TEST) $<

# Those whose processes are killed and stopped: a driver, and what it starts.
$(C_BUILD)/one_owner: c-tests/one_owner_clients.c c-tests/one_owner_tls.c | need-openssl
$(C_BUILD)/one_owner: LIBS := -lssl -lcrypto
$(C_BUILD)/one_owner $(C_BUILD)/spread: $(C_BUILD)/%: c-tests/%.c c-tests/%_ends.c c-tests/%.h \
    $(HEADERS) | need-pkg-config all
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) $(filter %.c,$^) -o $@ $$($(PC) --cflags --libs handoff) $(LIBS)

# The library with the claim left out, to show that check-one-owner would find two owners.
WITHOUT_CLAIM := $(BUILD)/without-claim

.PHONY: library-without-claim
library-without-claim:
	@CARGO_TARGET_DIR=$(TARGET)/without-claim RUSTFLAGS="$$RUSTFLAGS --cfg handoff_without_claim" \
	    $(MAKE) --no-print-directory BUILD=$(WITHOUT_CLAIM) $(WITHOUT_CLAIM)/lib/$(SHARED)

## check-one-owner   processes are killed, stopped and restarted: each connection has one owner
.PHONY: check-one-owner
check-one-owner: $(C_BUILD)/one_owner library-without-claim
	@LD_LIBRARY_PATH=$(LIB) $<
	@LD_LIBRARY_PATH=$(WITHOUT_CLAIM)/lib ONE_OWNER_CONNECTIONS=2000 $< without-claim \
	    fleet-without-claim

## check-spread      brokers spread their clients over workers that stop, end and come
.PHONY: check-spread
check-spread: $(C_BUILD)/spread
	@LD_LIBRARY_PATH=$(LIB) $<

# A broker and a backend with one fault each: c-tests/faults/faults.c says what is injected.
FAULTS_SOURCES := $(addprefix c-tests/faults/,faults.c channel.c errnos.c raw.c scene.c trace.c \
    waiting.c)

$(C_BUILD)/faults: $(FAULTS_SOURCES) $(wildcard c-tests/faults/*.h) $(HEADERS) | need-pkg-config all
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) $(FAULTS_SOURCES) -o $@ \
	    $$($(PC) --cflags --libs handoff) -lpthread

$(C_BUILD)/limits: c-tests/faults/limits.c $(HEADERS) | need-pkg-config all
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) $< -o $@ $$($(PC) --cflags --libs handoff)

## check-faults      either side is killed, stopped, or refused something, at its system calls
.PHONY: check-faults
check-faults: export HANDOFF_FAULTS_STEP ?= 2
check-faults: $(C_BUILD)/faults library-without-claim
	@LD_LIBRARY_PATH=$(LIB) $<
	@! LD_LIBRARY_PATH=$(WITHOUT_CLAIM)/lib $< kill channel broker > $<.log 2>&1 && \
	    grep -q 'a client with two owners' $<.log || \
	    { echo 'error: check-faults does not find two owners without the claim' >&2; exit 1; }

## check-limits      every limit at its largest value, with the time that it takes
.PHONY: check-limits
check-limits: $(C_BUILD)/limits
	@LD_LIBRARY_PATH=$(LIB) $<

## check-coverage  every public call is made by a C test
.PHONY: check-coverage
check-coverage:
	@c-tests/check_coverage.sh

# ---- the C++ tests -------------------------------------------------------------------------------

CPP_BUILD   := $(BUILD)/c-tests-cpp
CPP_SOURCES := $(filter-out c-tests/cpp/hidden.cc,$(wildcard c-tests/cpp/*.cc))
CLANGXX     := $(shell clang='$(CLANG)'; echo "$${clang%clang*}clang++$${clang##*clang}")
# One program, built in each of these ways: COMPILER-STANDARD, and what is special. CPP_FULL=1: each
# compiler with everything, which takes twice as long.
CPP_FULL    ?= 0
CPP_WAYS    := $(if $(filter 1,$(CPP_FULL)),$(foreach compiler,gcc clang,$(foreach way, \
    17 20 2b 17-no-exceptions,$(compiler)-$(way))),gcc-17 gcc-2b clang-20 clang-17-no-exceptions) \
    clang-20-sanitizers

CPP_COMPILE = $(if $(filter gcc-%,$*),$(CXX),$(CLANGXX)) -std=c++$(word 2,$(subst -, ,$*)) $(WARN) \
    $(if $(filter gcc-17,$*),$(CFLAGS),-g) \
    $(if $(filter %-no-exceptions,$*),-fno-exceptions -fno-rtti) \
    $(if $(filter %-sanitizers,$*),$(SANITIZE)) $$($(PC) --cflags handoff)

$(CPP_BUILD)/%/test: $(CPP_SOURCES) c-tests/cpp/hidden.cc c-tests/cpp/support.hpp $(HEADERS) \
    include/handoff.hpp | need-doctest need-pkg-config need-sanitizers all
	@mkdir -p $(@D)
	@echo CXX $@
	@$(CPP_COMPILE) -shared -fPIC -fvisibility=hidden c-tests/cpp/hidden.cc -o $(@D)/libhidden.so
	@$(CPP_COMPILE) $(CPP_SOURCES) -o $@ -L$(@D) -lhidden -Wl,-rpath,$(@D) \
	    $$($(PC) --libs handoff) -lpthread

## check-cpp   the tests of handoff.hpp, with gcc and clang, and the examples in C++
.PHONY: check-cpp
check-cpp: $(CPP_WAYS:%=$(CPP_BUILD)/%/test) \
    $(addprefix $(BUILD)/examples/,broker broker_cc backend backend_cc) | need-python
	@set -e; for way in $(CPP_WAYS); do echo "check-cpp: $$way"; \
	    $(RUN) $(CPP_BUILD)/$$way/test --minimal; done
	@$(RUN) $(PYTHON) c-tests/cpp/check_examples.py $(BUILD)/examples
