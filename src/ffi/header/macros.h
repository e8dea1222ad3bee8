/** A version as one number, for #if HANDOFF_VERSION_NUMBER >= HANDOFF_VERSION_CHECK(0, 3, 0). */
#define HANDOFF_VERSION_CHECK(major, minor, patch) \
    (((major) << 16) | ((minor) << 8) | (patch))
/** The version of this header as one number. */
#define HANDOFF_VERSION_NUMBER                                           \
    HANDOFF_VERSION_CHECK(HANDOFF_VERSION_MAJOR, HANDOFF_VERSION_MINOR, \
                          HANDOFF_VERSION_PATCH)

/** 1 where this library works, 0 elsewhere. handoff_supported() asks the running system. */
#ifdef __linux__
#define HANDOFF_SUPPORTED 1
#else
#define HANDOFF_SUPPORTED 0
#endif

/** No limit, for a time: a field or argument whose description names this. */
#define HANDOFF_NO_TIMEOUT UINT64_MAX
/** No limit, for a size_t field whose description names this. */
#define HANDOFF_NO_LIMIT SIZE_MAX

#if defined(__GNUC__) || defined(__clang__)
#define HANDOFF_MUST_USE __attribute__((warn_unused_result))
#define HANDOFF_DEPRECATED(instead) __attribute__((deprecated(instead)))
#else
#define HANDOFF_MUST_USE
#define HANDOFF_DEPRECATED(instead)
#endif

#ifdef __cplusplus
#define HANDOFF_NOEXCEPT noexcept
#else
#define HANDOFF_NOEXCEPT
#endif
