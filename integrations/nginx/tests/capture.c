/*
 * capture: looks for a text in all that TCP carries over the loopback interface.
 *
 *   capture FIRST_PORT LAST_PORT TEXT...
 *
 * Of connections to or from one of these ports. It says "ready", and for each line that it reads:
 * how many packets with how many bytes it has seen until then, in how many of them one of the texts
 * was, and how many packets it has missed. What it finds it also shows on the standard error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Between looks a fast connection takes some MB; to wake up for each packet would slow it. */
enum { ROOM = 64 << 20, LOOK_MS = 20, LARGEST = 1 << 17, SHOWN = 5 };

static int first_port, last_port, text_count;
static char **texts;
static unsigned long long packets, bytes, found, missed;

static void check(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "capture: %s: %s\n", what, strerror(errno));
    exit(1);
}

static bool is_ours(int port)
{
    return port >= first_port && port <= last_port;
}

static void look_at(const unsigned char *packet, size_t len)
{
    const struct iphdr *ip = (const void *)packet;
    size_t ip_len = ip->ihl * 4u;
    if (len < sizeof *ip || ip->protocol != IPPROTO_TCP || len < ip_len + sizeof(struct tcphdr))
        return;
    const struct tcphdr *tcp = (const void *)(packet + ip_len);
    int from = ntohs(tcp->source), to = ntohs(tcp->dest);
    const unsigned char *data = packet + ip_len + tcp->doff * 4u, *end = packet + len;
    if ((!is_ours(from) && !is_ours(to)) || data >= end)
        return;
    packets++;
    bytes += (size_t)(end - data);
    for (int i = 0; i < text_count; i++)
        if (memmem(data, (size_t)(end - data), texts[i], strlen(texts[i])) != NULL) {
            if (found++ < SHOWN)
                fprintf(stderr, "capture: from %d to %d: %.*s\n", from, to,
                        end - data < 300 ? (int)(end - data) : 300, (const char *)data);
            return;
        }
}

/* All that has come. */
static void look(int fd)
{
    static unsigned char packet[LARGEST];
    struct sockaddr_ll from;
    socklen_t len = sizeof from;
    ssize_t n;
    while ((n = recvfrom(fd, packet, sizeof packet, MSG_DONTWAIT | MSG_TRUNC,
                         (struct sockaddr *)&from, &len)) != -1) {
        check(n <= LARGEST, "a packet is too large");
        /* The interface shows each twice: when it is sent, and when it comes. */
        if (from.sll_pkttype != PACKET_OUTGOING)
            look_at(packet, (size_t)n);
        len = sizeof from;
    }
    check(errno == EAGAIN, "recvfrom");
}

static void answer(int fd)
{
    struct tpacket_stats since; /* the last time it was asked */
    socklen_t len = sizeof since;
    check(getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &since, &len) == 0, "PACKET_STATISTICS");
    missed += since.tp_drops;
    printf("%llu %llu %llu %llu\n", packets, bytes, found, missed);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct sockaddr_ll where = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP),
                                .sll_ifindex = (int)if_nametoindex("lo")};
    int room = ROOM, fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    check(argc > 3, "usage: capture FIRST_PORT LAST_PORT TEXT...");
    first_port = atoi(argv[1]);
    last_port = atoi(argv[2]);
    texts = argv + 3;
    text_count = argc - 3;
    check(fd != -1, "AF_PACKET");
    check(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) == 0, "SO_RCVBUFFORCE");
    check(bind(fd, (struct sockaddr *)&where, sizeof where) == 0, "bind");
    printf("ready\n");
    fflush(stdout);
    struct pollfd asked = {.fd = 0, .events = POLLIN};
    for (;;) {
        char line[64];
        int count = poll(&asked, 1, LOOK_MS);
        check(count != -1 || errno == EINTR, "poll");
        look(fd);
        if (count < 1)
            continue;
        if (read(0, line, sizeof line) <= 0)
            return 0;
        answer(fd);
    }
}
