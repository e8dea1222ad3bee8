/*
 * handoff/backend.h: the backend's end of its channels. The rules that hold for every call are in
 * handoff.h.
 *
 * Programs without an event loop listen, then call accept in a loop, as with accept(2). Others
 * watch the backend's descriptor. When it is readable, they call dispatch, then next until it
 * returns HANDOFF_NOTHING, and adopt or reject each arrival.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
