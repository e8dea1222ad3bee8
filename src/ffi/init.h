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
#define HANDOFF_BROKER_OPTIONS_INIT                                            \
    { sizeof(handoff_broker_options), HANDOFF_BROKER_WINDOW,                   \
      HANDOFF_BROKER_TIMEOUT_MS, HANDOFF_BROKER_QUEUE_BYTES,                   \
      HANDOFF_FALLBACK_MAX_FAILURES, HANDOFF_FALLBACK_WINDOW_MS,               \
      HANDOFF_BROKER_RECONNECT_MIN_MS, HANDOFF_BROKER_RECONNECT_MAX_MS }
#define HANDOFF_OFFER_INIT                                                     \
    { sizeof(handoff_offer), -1, 0, NULL, 0, NULL, 0, NULL, NULL, NULL, 0 }
#define HANDOFF_BROKER_STATISTICS_INIT                                         \
    { sizeof(handoff_broker_statistics), 0, 0, 0, 0, 0, 0, 0, { 0 } }
#define HANDOFF_BACKEND_OPTIONS_INIT                                           \
    { sizeof(handoff_backend_options), HANDOFF_LISTENER_MODE,                  \
      HANDOFF_LISTENER_BACKLOG, NULL, HANDOFF_BACKEND_MAX_CHANNELS,            \
      HANDOFF_BACKEND_CREDIT, HANDOFF_BACKEND_MAX_OFFER_BYTES,                 \
      HANDOFF_BACKEND_MAX_HELD_BYTES, HANDOFF_KIND_STREAM }
#define HANDOFF_BACKEND_STATISTICS_INIT                                        \
    { sizeof(handoff_backend_statistics), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
