# The C tests: each test_*.c is a program, built and linked as a user's would be.

C_TESTS  := $(patsubst c-tests/%.c,%,$(wildcard c-tests/test_*.c))
C_BUILD  := $(BUILD)/c-tests
RUN      := LD_LIBRARY_PATH=$(LIB)

.PHONY: need-cmocka
need-cmocka:
	@$(NEED) pkg-config pkg-config --version
	@$(NEED) libcmocka-dev pkg-config --exists cmocka

$(C_BUILD)/%: c-tests/%.c c-tests/support.c c-tests/support.h include/handoff.h | all need-cmocka
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) $< c-tests/support.c -o $@ \
	    $$($(PC) --cflags --libs handoff cmocka)

## check-c     the C tests
.PHONY: check-c
check-c: $(addprefix $(C_BUILD)/,$(C_TESTS))
	@set -e; for test in $^; do $(RUN) $$test; done

## check-coverage  every public call is made by a C test
.PHONY: check-coverage
check-coverage:
	@c-tests/check_coverage.sh
