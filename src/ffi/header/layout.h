/*
 * handoff/layout.h: what is in these headers, at run time, for languages that cannot include them.
 * A binding checks with it, when it loads the library, that its own structs and constants are the
 * library's. docs/abi.md says how a binding is written. The rules that hold for every call are in
 * handoff.h.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
