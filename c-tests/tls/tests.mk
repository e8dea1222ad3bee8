# The tests of connections whose TLS the kernel does. Each c-tests/tls/test_*.c is a program like
# those of c-tests, linked with OpenSSL too. It runs in the machine of tools/vm, because many
# kernels lack the module `tls`.

TLS_TESTS   := $(patsubst c-tests/tls/%.c,%,$(wildcard c-tests/tls/test_*.c))
TLS_COMMON  := support tls/tls tls/records
TLS_HEADERS := $(C_HEADERS) $(wildcard c-tests/tls/*.h)
# Seconds that a machine may take for all of them.
TLS_LIMIT   ?= 600
VM          := $(PYTHON) tools/vm/vm.py

.SECONDARY: $(TLS_COMMON:%=$(C_BUILD)/%.o)

$(C_BUILD)/tls/%.o: c-tests/tls/%.c $(TLS_HEADERS) | need-cmocka need-openssl all
	@mkdir -p $(@D)
	$(CC) -c $< -o $@ $(C_FLAGS)

$(C_BUILD)/tls/%: c-tests/tls/%.c $(TLS_COMMON:%=$(C_BUILD)/%.o) $(TLS_HEADERS) \
    | need-cmocka need-openssl all
	@mkdir -p $(@D)
	$(CC) $< $(TLS_COMMON:%=$(C_BUILD)/%.o) -o $@ $(C_FLAGS) $(C_LIBS) -lssl -lcrypto

# Where they run: this machine's files, then Debian 13's, whose OpenSSL does more in the kernel; with a
# kernel that can be given the next key of a connection, too: "+backports", in check-all.
TLS_ROOTS ?= this-machine debian-13

# Besides, processes are killed and stopped while they hand TLS connections over.
$(C_BUILD)/tls/one_owner: c-tests/tls/one_owner.sh $(C_BUILD)/one_owner library-without-claim
	@mkdir -p $(@D)
	@cp $< $@

## check-tls   TLS connections that the kernel does, in an emulated machine; TLS_TEST=test_kernel
.PHONY: check-tls
check-tls: TLS_TEST ?= $(TLS_TESTS) one_owner
check-tls: $(addprefix $(C_BUILD)/tls/,$(TLS_TESTS) one_owner) $(BUILD)/examples/tls_backend \
    | need-python need-vm
	@set -e; for root in $(TLS_ROOTS); do echo "check-tls: with $$root"; \
	    kernel=apt; case $$root in *+*) kernel=$${root#*+} ;; esac; \
	    $(VM) --limit $(TLS_LIMIT) --root $${root%+*} --kernel $$kernel -- env $(TEST) \
	        BUILD=$(BUILD) ONE_OWNER_CONNECTIONS=$${ONE_OWNER_CONNECTIONS:-20000} \
	        c-tests/run_all.sh $@ $(TLS_TEST:%=$(C_BUILD)/tls/%); done
