/* What both sides of the comparison do, each in its own way, once for each handoff. */
#ifndef BENCH_H
#define BENCH_H

enum { TOKEN_LEN = 16 };

struct side {
    void (*issue)(unsigned char token[TOKEN_LEN]);
    void (*send)(int socket, int fd, const unsigned char token[TOKEN_LEN]);
    /* Waits for a message, verifies its token and gives its descriptor. */
    int (*receive)(int socket, unsigned char token[TOKEN_LEN]);
    void (*accept)(int socket, const unsigned char token[TOKEN_LEN]);
    /* Waits for the acceptance, until a deadline. */
    void (*wait)(int socket, const unsigned char token[TOKEN_LEN]);
};

extern const struct side handoff, raw;

/* Ends the program if a step failed: there is nothing to measure then. */
void need(int ok, const char *step);

#endif
