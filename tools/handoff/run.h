/* One command that serves one client. */
#ifndef HANDOFF_RUN_H
#define HANDOFF_RUN_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include <handoff.h>

struct run;

/* Set before the first one. */
extern char **run_command;           /* with its arguments */
extern int run_epoll;                /* tells of runs that have something to pump */
extern sigset_t run_mask;            /* the signal mask and */
extern struct sigaction run_sigpipe; /* the disposition of SIGPIPE that a command gets */
extern bool run_verbose;

/* How many commands there are, with those that have ended and whose client's TLS has not. */
extern uint64_t run_count;

/* Looks for the command, so that a typing error is found before the first client. Returns DONE, or
 * after a message NOT_FOUND or NOT_EXECUTABLE. */
int run_find(const char *command);

/* Makes all that a run needs, its process included, which waits for the client. Returns NULL,
 * perhaps after a message, with errno. */
struct run *run_prepare(const handoff_arrival *arrival);
/* Gives it the client. */
void run_start(struct run *run, int client);
/* There is no client after all. */
void run_give_up(struct run *run);

/* Passes on what the client has sent, or goes on with the end of its TLS. */
void run_pump(struct run *run);
/* Ends the runs whose commands have ended. */
void run_reap(void);
/* Sends a signal to the commands, and waits for no client any more. */
void run_signal_all(int number);
/* To be called after so many milliseconds, or -1: goes on with the ends, and gives up late ones. */
void run_tick(void);
int run_wait_ms(void);

#endif
