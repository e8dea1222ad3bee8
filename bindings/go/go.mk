# The binding for Go, its example, and their tests.

GO ?= go
# The compiler finds the library that is built here. Nothing is fetched: there is only Go's own library.
GO_RUN  = PKG_CONFIG_PATH=$(LIB)/pkgconfig LD_LIBRARY_PATH=$(LIB) GOFLAGS=-mod=mod GOPROXY=off \
    GOCACHE=$(BUILD)/go/cache $(GO)
GO_EXAMPLE := $(BUILD)/go/http_backend

$(GO_EXAMPLE): $(wildcard bindings/go/*.go bindings/go/*.h bindings/go/go.mod examples/go/*) $(HEADERS) \
    | need-go need-pkg-config all
	@mkdir -p $(@D)
	cd examples/go && $(GO_RUN) build -o $@ .

# Its tests meet a library with a bug.
GO_BUG := $(BUILD)/go/bug.so

$(GO_BUG): bindings/go/testdata/bug.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(WARN) -Iinclude -shared -fPIC -o $@ $<

## check-go    the binding for Go: go vet, gofmt, its own tests, and what every binding must do
.PHONY: check-go
check-go: $(GO_EXAMPLE) $(GO_BUG) $(BINDING_TESTS) | $(BINDING_NEEDS) need-go
	@badly=$$(gofmt -l bindings/go examples/go); [ -z "$$badly" ] || \
	    { echo "error: check-go: gofmt would change $$badly" >&2; exit 1; }
	@cd examples/go && $(GO_RUN) vet .
	@mkdir -p $(BUILD)/go/readme
	@sed 's|\.\./\.\.|$(HERE)|' examples/go/go.mod > $(BUILD)/go/readme/go.mod
	@for document in README.md bindings/go/README.md; do \
	    $(PYTHON) tools/readme_code.py $$document go 1 > $(BUILD)/go/readme/main.go && \
	    ( cd $(BUILD)/go/readme && $(GO_RUN) vet . ) || exit 1; \
	done
	@cd bindings/go && $(GO_RUN) vet . && $(GO_RUN) test -race -exec 'env LD_PRELOAD=$(GO_BUG)' .
	@$(call check_binding,go,$(GO_EXAMPLE))
	@$(call check_binding_tls,go,$(GO_EXAMPLE))
