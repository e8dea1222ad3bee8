/** Defaults for the structs that are passed in:
 *  handoff_listener_options options = HANDOFF_LISTENER_OPTIONS_INIT; */
#define HANDOFF_TOKEN_STORE_OPTIONS_INIT                                       \
    { sizeof(handoff_token_store_options), HANDOFF_TOKEN_STORE_CAPACITY,       \
      HANDOFF_TOKEN_STORE_LIFETIME_MS, HANDOFF_TOKEN_STORE_COLLISION_ATTEMPTS }
#define HANDOFF_PENDING_OPTIONS_INIT                                           \
    { sizeof(handoff_pending_options), HANDOFF_PENDING_CAPACITY,               \
      HANDOFF_PENDING_TIMEOUT_MS }
#define HANDOFF_INPUTS_INIT                                                    \
    { sizeof(handoff_inputs), 1, 1, 0, 0 }
#define HANDOFF_FALLBACK_OPTIONS_INIT                                          \
    { sizeof(handoff_fallback_options), HANDOFF_FALLBACK_MAX_FAILURES,         \
      HANDOFF_FALLBACK_WINDOW_MS, HANDOFF_FALLBACK_MAX_BACKENDS }
#define HANDOFF_PEER_POLICY_INIT                                               \
    { sizeof(handoff_peer_policy), NULL, 0, NULL, 0 }
#define HANDOFF_LISTENER_OPTIONS_INIT                                          \
    { sizeof(handoff_listener_options), HANDOFF_LISTENER_MODE,                 \
      HANDOFF_LISTENER_BACKLOG, HANDOFF_STREAM }
