/*
 * handoff/peer.h: who may connect. The rules that hold for every call are in handoff.h.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
