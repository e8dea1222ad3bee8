/*
 * handoff/status.h: statuses, errors, reasons, the version. The rules that hold for every call are
 * in handoff.h.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
