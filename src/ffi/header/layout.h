/*
 * handoff/layout.h: what is in these headers, at run time, for languages that cannot include them.
 * When a binding loads the library, it uses these calls to check that its own structs and constants
 * are the library's. docs/abi.md says how to write a binding. The rules that hold for every call
 * are in handoff.h.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
