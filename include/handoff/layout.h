/*
 * handoff/layout.h: what is in these headers, at run time, for languages that cannot include them.
 * When a binding loads the library, it uses these calls to check that its own structs and constants
 * are the library's. docs/abi.md says how to write a binding. The rules that hold for every call
 * are in handoff.h.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */

#ifndef HANDOFF_LAYOUT_H
#define HANDOFF_LAYOUT_H

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Gets the value of a constant of the headers.
 *
 * HANDOFF_NO_TIMEOUT and HANDOFF_NO_LIMIT are -1: every bit of the field is set. The version and
 * its parts are the library's. handoff_version() returns the version as text.
 *
 * @param name        its name, such as "HANDOFF_ERR_FULL"
 * @param[out] value  its value
 * @return HANDOFF_OK; HANDOFF_NOTHING if this library has no such constant, or it is not an
 *         integer; HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or misaligned.
 *
 * Safe in any thread and after fork().
 */
HANDOFF_MUST_USE
handoff_status handoff_constant(const char *name, int64_t *value) HANDOFF_NOEXCEPT;

/**
 * Gets the size of a struct of the headers, as the library knows it.
 *
 * A binding that was written for an older library knows a smaller size. That is not an error: the
 * binding sets the size that it knows. Compare the struct's fields with handoff_field().
 *
 * @param name       its name, such as "handoff_offer"
 * @param[out] size  sizeof the struct, in bytes
 * @return HANDOFF_OK; HANDOFF_NOTHING if this library has no such struct;
 *         HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or misaligned.
 *
 * Safe in any thread and after fork().
 */
HANDOFF_MUST_USE
handoff_status handoff_struct_size(const char *name, size_t *size) HANDOFF_NOEXCEPT;

/**
 * Gets the place of a field in a struct of the headers.
 *
 * @param name         the names of the struct and the field, such as "handoff_offer.preread_len"
 * @param[out] offset  where the field begins, in bytes from the start of the struct
 * @param[out] size    its size in bytes; for an array, the size of all of it
 * @return HANDOFF_OK; HANDOFF_NOTHING if this library has no such struct or field;
 *         HANDOFF_ERR_INVALID_ARGUMENT if a pointer is NULL or misaligned.
 *
 * Safe in any thread and after fork().
 */
HANDOFF_MUST_USE
handoff_status handoff_field(const char *name, size_t *offset, size_t *size) HANDOFF_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* HANDOFF_LAYOUT_H */
