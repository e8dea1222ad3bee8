# The tests of connections whose TLS the kernel does. Each c-tests/tls/test_*.c is a program like
# those of c-tests, linked with OpenSSL too; each test_*.py is one, too. They run in the machine of
# tools/vm, because many kernels lack the module `tls`.

TLS_TESTS   := $(patsubst c-tests/tls/%.c,%,$(wildcard c-tests/tls/test_*.c))
TLS_PYTHON  := $(notdir $(wildcard c-tests/tls/test_*.py))
TLS_COMMON  := support tls/tls tls/records
TLS_HEADERS := $(C_HEADERS) $(wildcard c-tests/tls/*.h)
# Seconds that a machine may take for all of them.
TLS_LIMIT   ?= 1200
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
# kernel that can be given the next key of a connection, too: "+RELEASE", in check-all.
TLS_ROOTS ?= this-machine debian-13
# Of ROOT+RELEASE, in the rule for it.
root_of   = $(firstword $(subst +, ,$*))
kernel_of = $(word 2,$(subst +, ,$*))

# What `make install` and `make install-nginx` put on a machine: for each root with the modules for its
# nginx.
TLS_INSTALLED := $(sort $(foreach root,$(TLS_ROOTS),$(firstword $(subst +, ,$(root)))))

.PHONY: $(TLS_INSTALLED:%=installed-%)
installed-this-machine: nginx
installed-debian-13: nginx-debian-13
$(TLS_INSTALLED:%=installed-%): installed-%: | all
	@mkdir -p $(BUILD)/tls && rm -rf $(BUILD)/tls/$*
	@$(SUBMAKE) --no-print-directory install install-nginx DESTDIR=$(BUILD)/tls/$* \
	    NGINX_BUILD=$(NGINX_TLS_MODULES_$*) > $(BUILD)/tls/$*.log

# Besides, processes are killed and stopped while they hand TLS connections over.
$(C_BUILD)/tls/one_owner: c-tests/tls/one_owner.sh $(C_BUILD)/one_owner library-without-claim
	@mkdir -p $(@D)
	@cp $< $@

# Where a test is, by its name.
tls_test = $(if $(filter %.py,$(1)),c-tests/tls/$(1),$(C_BUILD)/tls/$(1))

# 1: each test with each root, as if they were named. Otherwise those that take long run with one of
# them, because an emulated machine is slow, and the tests in C, which see what OpenSSL does, with each.
TLS_FULL ?= 0
TLS_TEST ?= $(TLS_TESTS) $(TLS_PYTHON) one_owner
TLS_ONLY_this-machine := test_aio.py test_exec.py test_node.py
TLS_ONLY_debian-13    := test_python.py test_readme.py test_web.py one_owner
# In the rule for a root: those of TLS_TEST that run there.
tls_tests = $(if $(filter 1,$(TLS_FULL))$(filter-out file,$(origin TLS_TEST)),$(TLS_TEST),$(filter-out \
    $(foreach root,$(filter-out $*,$(TLS_ROOTS)),$(TLS_ONLY_$(root))),$(TLS_TEST)))

## check-tls   TLS connections that the kernel does, in an emulated machine; TLS_TEST=test_exec.py
.PHONY: check-tls $(TLS_ROOTS:%=check-tls-with-%)
check-tls: $(TLS_ROOTS:%=check-tls-with-%)

$(TLS_ROOTS:%=check-tls-with-%): check-tls-with-%: \
    $(addprefix $(C_BUILD)/tls/,$(TLS_TESTS) one_owner) \
    $(addprefix $(BUILD)/examples/,tls_broker tls_backend) \
    $(TLS_INSTALLED:%=installed-%) | need-python need-vm need-node-packages
	@echo 'check-tls: with $*'
	@$(VM) --limit $(TLS_LIMIT) --root $(root_of) --kernel "$(kernel_of)" -- env $(TEST) \
	    PYTHONDONTWRITEBYTECODE=1 HANDOFF_COMMAND=$(COMMAND) \
	    HANDOFF_NGINX_MODULES=$(BUILD)/tls/$(root_of)$(NGINX_MODULESDIR) \
	    HANDOFF_INSTALLED=$(BUILD)/tls/$(root_of) BUILD=$(BUILD) \
	    ONE_OWNER_CONNECTIONS=$${ONE_OWNER_CONNECTIONS:-20000} c-tests/run_all.sh check-tls \
	    $(foreach test,$(tls_tests),$(call tls_test,$(test)))
