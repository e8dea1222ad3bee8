module http_backend

go 1.19

require libhandoff/handoff v0.0.0

// Where the example stands elsewhere: the path of bindings/go, see its README.md.
replace libhandoff/handoff => ../../bindings/go
