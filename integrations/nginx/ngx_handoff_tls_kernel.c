/*
 * Whether the kernel can do TLS at all. Its module "tls" must be loaded by then: OpenSSL asks in a
 * worker, for which the kernel loads none, and does the TLS itself without a word.
 */
#include "ngx_handoff.h"

#pragma GCC visibility push(hidden)

#if (NGX_HANDOFF_TLS)

/* What the kernel has for setsockopt(TCP_ULP): names, with spaces between. */
#define NGX_HANDOFF_ULP  "/proc/sys/net/ipv4/tcp_available_ulp"


/* Also if that cannot be told. */
ngx_uint_t
ngx_handoff_kernel_has_tls(void)
{
    int                fd;
    char              *word, *rest, buf[256];
    ssize_t            n;
    static ngx_uint_t  loaded;  /* asked for each request until it is */

    if (loaded) {
        return 1;
    }

    fd = open(NGX_HANDOFF_ULP, O_RDONLY|O_CLOEXEC);
    if (fd == -1) {
        return 1;
    }

    n = read(fd, buf, sizeof(buf) - 1);
    (void) close(fd);

    if (n < 0) {
        return 1;
    }

    buf[n] = '\0';

    for (word = strtok_r(buf, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
        if (ngx_strcmp(word, "tls") == 0) {
            loaded = 1;
            return 1;
        }
    }

    return 0;
}


/* `ctx` is that of a server with handoff_pass, or NULL. There is one line for all of them. */
void
ngx_handoff_warn_without_tls(ngx_conf_t *cf, ngx_handoff_main_conf_t *main, SSL_CTX *ctx)
{
    if (main->warned || ctx == NULL || !(SSL_CTX_get_options(ctx) & SSL_OP_ENABLE_KTLS)
        || ngx_handoff_kernel_has_tls())
    {
        return;
    }

    main->warned = 1;

    ngx_log_error(NGX_LOG_WARN, cf->log, 0, "the kernel's module \"tls\" is not loaded: without it "
                  "\"Options KTLS\" does nothing, and no client of %s with TLS is handed over; "
                  "\"modprobe tls\" loads it, and a line \"tls\" in /etc/modules-load.d does at boot",
                  main->module);
}

#endif

#pragma GCC visibility pop
