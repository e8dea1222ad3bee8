/*
 * handoff/peer.h: who may be at the other end. The rules that hold for every call are in handoff.h.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
