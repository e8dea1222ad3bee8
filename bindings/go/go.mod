module libhandoff/handoff

go 1.19
