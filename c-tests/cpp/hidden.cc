// A shared library that hides what it defines, as plugins do.
#include <handoff.hpp>

extern "C" [[gnu::visibility("default")]] const std::error_category *hidden_category()
{
    return &handoff::error_category();
}
