/*
 * tls_broker: accepts clients with TLS on 127.0.0.1 with a thread for each, reads the start of their
 * requests and offers them to the backend that listens on a handoff socket. OpenSSL does the
 * handshake, and from then on the kernel does the TLS. A client whose TLS the kernel does not do, or
 * that the backend does not adopt, is served here.
 *
 *   cc tls_broker.c $(pkg-config --cflags --libs handoff openssl) -lpthread -o tls_broker
 *   ./tls_broker PORT SOCKET CERTIFICATE       (a PEM file with the certificates and the key)
 *   ./tls_backend SOCKET                       (the backend)
 *
 * After SIGTERM or SIGINT the clients that wait for the backend are served here, and it ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <handoff.h>

enum {
    THREADS = 25,
    OFFER_MS = 2000,
    CLIENT_SECONDS = 10,
    RECORD_LEN = 16384, /* the most data in a record, RFC 8446, section 5.1 */
};

static handoff_broker *broker;
static SSL_CTX *context;
static int listener;

/* Ends the program if something failed that cannot fail in normal operation. Without a `why` that is
 * errno: a caller cannot pass its text, because it may be evaluated before the call that sets it. */
static void check(int ok, const char *call, const char *why)
{
    if (ok)
        return;
    fprintf(stderr, "tls_broker: %s: %s\n", call, why ? why : strerror(errno));
    exit(1);
}

static void use_certificate(const char *file)
{
    context = SSL_CTX_new(TLS_server_method());
    check(context != NULL && SSL_CTX_use_certificate_chain_file(context, file) == 1 &&
          SSL_CTX_use_PrivateKey_file(context, file, SSL_FILETYPE_PEM) == 1, file,
          "no certificate and key in PEM");
    SSL_CTX_set_options(context, SSL_OP_ENABLE_KTLS);
}

static void listen_tcp(const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)strtoul(port, NULL, 10)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int yes = 1;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(listener != -1 &&
          setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
          bind(listener, (struct sockaddr *)&address, len) == 0 && listen(listener, 1024) == 0 &&
          getsockname(listener, (struct sockaddr *)&address, &len) == 0, "listen", NULL);
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
}

/* Offers a client. Not 0: the backend has adopted it. Any number of threads may be here at once. */
static int hand_over(int client, const char *preread, int len)
{
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = client;
    offer.flags = HANDOFF_OFFER_TLS;
    offer.preread = preread; /* decrypted */
    offer.preread_len = (size_t)len;
    offer.timeout_ms = OFFER_MS;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_status status = handoff_broker_offer_and_wait(broker, &offer, &verdict);
    if (status == HANDOFF_OK && verdict.outcome == HANDOFF_ADOPTED)
        return 1;
    /* The client is still ours. What a fallback must not hide is a bug in this program. */
    check(status == HANDOFF_OK || status == HANDOFF_ERR_CLOSED ||
          handoff_status_is_fallback_safe(status),
          "handoff_broker_offer_and_wait", handoff_last_error());
    fprintf(stderr, "tls_broker: a client is served here: %s\n",
            status == HANDOFF_OK ? handoff_reason_name(verdict.reason) : handoff_last_error());
    return 0;
}

/* Serves a client without the backend, and tells it that the answer is whole. */
static void serve(SSL *tls)
{
    static const char answer[] = "HTTP/1.0 200 OK\r\nContent-Length: 21\r\n\r\n"
                                 "served by the broker\n";
    if (SSL_write(tls, answer, sizeof answer - 1) == sizeof answer - 1)
        SSL_shutdown(tls);
    /* The backend may still hold a copy. While it does, close(2) does not end the connection. */
    shutdown(SSL_get_fd(tls), SHUT_WR);
}

/* How long OpenSSL may wait for a client; 0 is for ever. The backend gets the socket as it is. */
static void set_patience(int client, time_t seconds)
{
    struct timeval time = {.tv_sec = seconds};
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
}

static void hand_over_or_serve(int client)
{
    char preread[RECORD_LEN]; /* with room for a record, so OpenSSL keeps nothing of it */
    SSL *tls = SSL_new(context);
    if (tls == NULL || SSL_set_fd(tls, client) != 1) {
        SSL_free(tls);
        return;
    }
    set_patience(client, CLIENT_SECONDS);
    int len = SSL_accept(tls) == 1 ? SSL_read(tls, preread, sizeof preread) : -1;
    if (len > 0) {
        set_patience(client, 0);
        if (SSL_has_pending(tls) || !hand_over(client, preread, len)) {
            set_patience(client, CLIENT_SECONDS);
            serve(tls);
        }
    }
    ERR_clear_error(); /* of this thread's queue: a client that fails is no news */
    SSL_free(tls); /* which says nothing to the client, and leaves the socket open */
}

/* accept(2) failed. Perhaps there is no descriptor for the client now: it still waits, so not again
 * at once. */
static void not_accepted(void)
{
    if (errno == ECONNABORTED)
        return;
    perror("tls_broker: accept4");
    usleep(10000);
}

static void *accept_clients(void *unused)
{
    (void)unused;
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client == -1 && errno == EINVAL)
            return NULL; /* the socket is shut down */
        if (client == -1) {
            not_accepted();
            continue;
        }
        hand_over_or_serve(client);
        close(client); /* after an adoption without shutdown(2), which would end the connection */
    }
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    sigset_t stop_signals;
    int number;
    if (argc != 4) {
        fprintf(stderr, "usage: tls_broker PORT SOCKET CERTIFICATE\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    use_certificate(argv[3]);
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.flags = HANDOFF_BROKER_SHARED;
    check(handoff_broker_new(argv[2], &options, &broker) == HANDOFF_OK, argv[2],
          handoff_last_error());
    /* This connects early. Nobody watches the descriptor. */
    check(handoff_broker_fd(broker) != -1, argv[2], handoff_last_error());
    /* Only this thread takes the signals: the others inherit that they are blocked. */
    sigemptyset(&stop_signals);
    sigaddset(&stop_signals, SIGTERM);
    sigaddset(&stop_signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stop_signals, NULL);
    listen_tcp(argv[1]);
    for (int i = 0; i < THREADS; i++)
        check(pthread_create(&threads[i], NULL, accept_clients, NULL) == 0, "pthread_create",
              "no more threads");
    sigwait(&stop_signals, &number);
    shutdown(listener, SHUT_RD);
    handoff_broker_close(broker); /* each thread that waits has its verdict now */
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    handoff_broker_free(broker);
    SSL_CTX_free(context);
    return 0;
}
