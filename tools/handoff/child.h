/* The process of a run, until it is the command. */
#ifndef HANDOFF_CHILD_H
#define HANDOFF_CHILD_H

#include <handoff.h>

/* Waits at the gate for the client, then becomes the command. `input` is its standard input, or -1:
 * that is the client as well. */
_Noreturn void child_wait_and_become(char **command, const handoff_arrival *arrival, int gate,
                                     int input);

#endif
