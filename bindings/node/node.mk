# The binding for Node.js, and its tests.

NODE ?= node
NPM  ?= npm

NODE_PACKAGE := bindings/node
NODE_EXAMPLE := $(HERE)/examples/node/http_backend.js

## check-node  the backend in Node.js: its own tests, and what every binding must do
.PHONY: check-node
check-node: $(BINDING_TESTS) | $(BINDING_NEEDS) need-node-packages
	@cd $(NODE_PACKAGE) && $(NODE) node_modules/typescript/bin/tsc --noEmit --strict --types node \
	    tests/types.ts
	@$(RUN) $(NODE) --expose-gc --test $(wildcard $(NODE_PACKAGE)/tests/*.test.js) \
	    > $(BUILD)/check-node.log || { cat $(BUILD)/check-node.log; exit 1; }
	@sed -n 's/^[^ ]* \(pass .*\)/check-node: \1/p' $(BUILD)/check-node.log
	@$(call check_binding,node,$(NODE) $(NODE_EXAMPLE))
	@$(call check_binding_tls,node,$(NODE) $(NODE_EXAMPLE))
