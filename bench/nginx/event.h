/* What the backend and the clients of the streams both know. */
#ifndef EVENT_H
#define EVENT_H

/* An event says when it was sent: now() of common.h. */
#define EVENT "data: %020.0f\n\n"
enum { EVENT_LEN = 28 };

/* How much of the "\r\n\r\n" at the end of a head has come with this byte. 4: all of it. */
static inline int match_end(int matched, char byte)
{
    if (byte == "\r\n\r\n"[matched])
        return matched + 1;
    return byte == '\r';
}

#endif
