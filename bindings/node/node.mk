# The binding for Node.js, and its tests.

NODE ?= node
NPM  ?= npm

NODE_PACKAGE := bindings/node

## check-node  the backend in Node.js: its own tests, and what every binding must do
.PHONY: check-node
check-node: $(BINDING_TESTS) | need-node-packages need-openssl need-python all
	@cd $(NODE_PACKAGE) && $(NODE) node_modules/typescript/bin/tsc --noEmit --strict --types node \
	    tests/types.ts
	@$(RUN) $(NODE) --expose-gc --test $(wildcard $(NODE_PACKAGE)/tests/*.test.js) \
	    > $(BUILD)/check-node.log || { cat $(BUILD)/check-node.log; exit 1; }
	@sed -n 's/^[^ ]* \(pass .*\)/check-node: \1/p' $(BUILD)/check-node.log
	@$(call check_binding,node,$(NODE) $(HERE)/examples/node/http_backend.js)
