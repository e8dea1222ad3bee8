#include <handoff.h>

/* The pointers of a struct must not come from Go, so it is made here. */
static inline handoff_peer_policy policy_of(const uint32_t *users, size_t users_len,
    const uint32_t *groups, size_t groups_len)
{
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    policy.users = users;
    policy.users_len = users_len;
    policy.groups = groups;
    policy.groups_len = groups_len;
    return policy;
}
