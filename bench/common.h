/* What the programs of the benchmark have in common. */
#ifndef COMMON_H
#define COMMON_H

/* Ends the program if a step failed: there is nothing to measure then. */
void need(int ok, const char *step);

/* A number from the environment, 1 at least. */
int number(const char *name, int otherwise);

/* Nanoseconds since some moment. */
double now(void);

/* Sorts the values, and gives the one that so large a part of them is below. */
double quantile(double *values, int count, double part);
double median(double *values, int count);

/* Both ends of a TCP connection over the loopback interface. */
void connect_tcp(int pair[2]);

/* Connects to a port of the loopback interface, without delay for small messages. Clients of a high
 * number have another address, because one address has 28,000 ports. */
int dial(int port, int number);

/* Makes a child, which ends when its parent does. Returns as fork(2). */
int make_child(void);

/* Waits until a descriptor is readable. */
void wait_readable(int fd);

#endif
