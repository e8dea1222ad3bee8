/* What --help prints. */
#include "command.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *text;
} parts[] = {
    {"check",
     "  handoff check [--json] [--timeout MS] SOCKET\n"
     "      Walks the way to a backend as a broker does, and says what is wrong and what to do,\n"
     "      or how long the backend takes to answer. Hands no client over. Run it as the broker's\n"
     "      user.\n"
     "        --json        print one JSON object\n"
     "        --timeout MS  how long the backend may take; default 2000\n"},
    {"broker",
     "  handoff broker [-v] [--wait MS] [--preread BYTES] [--service NAME] [--metadata TEXT]\n"
     "                 ADDRESS SOCKET...\n"
     "      Accepts clients at ADDRESS (HOST:PORT, [HOST]:PORT, unix:PATH, or fd:NUMBER for a\n"
     "      socket that listens already) and hands them over.\n"
     "      Closes those that no backend adopts in time. Does no TLS; nginx with its modules does.\n"
     "      SIGTERM ends it, with a summary.\n"
     "        -v, --verbose    print each verdict\n"
     "        --wait MS        how long a client waits to be adopted; default 5000\n"
     "        --preread BYTES  first read what the client sends, at most so many bytes\n"
     "        --service NAME, --metadata TEXT    tell the backend; NAME has at most 255 bytes\n"},
    {"exec",
     "  handoff exec [-v] [--max N] [--mode MODE] [--group GROUP] [--allow USER]... SOCKET\n"
     "               -- COMMAND [ARGUMENT...]\n"
     "      Listens at SOCKET, and runs COMMAND for each client that is handed over, with the\n"
     "      client as standard input and output. SIGTERM ends it when the commands have ended.\n"
     "      Clients with TLS that read nothing can delay that by 32 seconds.\n"
     "        -v, --verbose  print how each command ended\n"
     "        --max N        the most commands at once; default 100\n"
     "        --mode MODE    permissions of the socket's file; default 0600, or 0660 with --group\n"
     "        --group GROUP  the group of the socket's file\n"
     "        --allow USER   who may connect, in place of this user and root; may be repeated\n"},
};

static const char about_socket[] =
    "SOCKET is a path, or \"@NAME\" for an abstract name. For `check' and `broker' it may be a\n"
    "directory: then it is every socket in it.\n";

int print_help(void)
{
    if (*subcommand == '\0')
        puts("Looks at handoff sockets, and tries out both ends.\n");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (*subcommand == '\0' || strcmp(parts[i].name, subcommand) == 0)
            puts(parts[i].text); /* and an empty line */
    fputs(about_socket, stdout);
    if (*subcommand == '\0')
        puts("\n  handoff --help, handoff SUBCOMMAND --help, handoff --version");
    return finish_output() ? DONE : FAILED;
}
