/*
 * handoff/peer.h: who may be at the other end. The rules that hold for every call are in handoff.h.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */

#ifndef HANDOFF_PEER_H
#define HANDOFF_PEER_H

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Who may be at the other end: the brokers of a backend, or the backend of a broker.
 *
 * A policy without users and groups is the default, as is NULL: it allows this process's effective
 * user, root and, for a broker, the owner of the socket's file. Any other policy allows only its
 * users and the members of its groups, so it must name root, too, if root is to be allowed. The
 * lists are read during the call only: the calls that take options copy them.
 *
 * In a user namespace, the overflow number allows nobody. It stands for everybody who has no
 * number there, and is 65534 as a rule: see user_namespaces(7).
 */
typedef struct handoff_peer_policy {
    /** Set by HANDOFF_PEER_POLICY_INIT. */
    size_t size;
    /** The users, by number. */
    const uint32_t *users;
    /** The length of the array. */
    size_t users_len;
    /** The groups, by number. A peer's effective and supplementary groups count. */
    const uint32_t *groups;
    /** The length of the array. */
    size_t groups_len;
} handoff_peer_policy;
#define HANDOFF_PEER_POLICY_INIT \
    { sizeof(handoff_peer_policy), NULL, 0, NULL, 0 }

/**
 * Initialises a policy as HANDOFF_PEER_POLICY_INIT does, for languages without macros.
 *
 * @param[out] policy  the policy
 * @param size         sizeof(handoff_peer_policy)
 * @return HANDOFF_OK; HANDOFF_ERR_INVALID_ARGUMENT if `policy` is NULL or `size` cannot be right.
 */
handoff_status handoff_peer_policy_init(handoff_peer_policy *policy, size_t size) HANDOFF_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* HANDOFF_PEER_H */
