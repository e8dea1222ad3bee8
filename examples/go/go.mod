module http_backend

go 1.19

require libhandoff/handoff v0.0.0

replace libhandoff/handoff => ../../bindings/go
