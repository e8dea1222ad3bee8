/*
 * handoff: looks at handoff sockets, and tries out both ends, from the command line. handoff(1) is
 * its manual page.
 *
 *   cc *.c $(pkg-config --cflags --libs handoff) -o handoff
 */
#include "command.h"

#include <stdio.h>
#include <string.h>

#include <handoff.h>

static const char help[] =
    "Looks at handoff sockets, and tries out both ends.\n"
    "\n"
    "  handoff check [--json] [--timeout MS] SOCKET\n"
    "      Walks the way to a backend as a broker does, and says what is wrong and what to do,\n"
    "      or how long the backend takes to answer. Hands no client over. Run it as the broker's\n"
    "      user.\n"
    "        --json        print one JSON object\n"
    "        --timeout MS  how long the backend may take; default 2000\n"
    "\n"
    "  handoff broker [-v] [--wait MS] [--preread BYTES] [--service NAME] [--metadata TEXT]\n"
    "                 ADDRESS SOCKET...\n"
    "      Accepts clients at ADDRESS (HOST:PORT, [HOST]:PORT, unix:PATH, or fd:NUMBER for a\n"
    "      socket that listens already) and hands them over.\n"
    "      Closes those that no backend adopts in time. SIGTERM ends it, with a summary.\n"
    "        -v, --verbose    print each verdict\n"
    "        --wait MS        how long a client waits to be adopted; default 5000\n"
    "        --preread BYTES  first read what the client sends, at most so many bytes\n"
    "        --service NAME, --metadata TEXT    tell the backend\n"
    "\n"
    "  handoff exec [-v] [--max N] [--mode MODE] [--group GROUP] [--allow USER]... SOCKET\n"
    "               -- COMMAND [ARGUMENT...]\n"
    "      Listens at SOCKET, and runs COMMAND for each client that is handed over, with the\n"
    "      client as standard input and output. SIGTERM ends it when the commands have ended.\n"
    "        -v, --verbose  print how each command ended\n"
    "        --max N        the most commands at once; default 100\n"
    "        --mode MODE    permissions of the socket's file; default 0600, or 0660 with --group\n"
    "        --group GROUP  the group of the socket's file\n"
    "        --allow USER   who may connect, in place of this user and root; may be repeated\n"
    "\n"
    "SOCKET is a path, or \"@NAME\" for an abstract name. For `check' and `broker' it may be a\n"
    "directory: then it is every socket in it.\n"
    "\n"
    "  handoff --help, handoff --version\n";

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } subcommands[] = {{"check", check_main}, {"broker", broker_main}, {"exec", exec_main}};

    keep_standard_descriptors();
    const char *name = argc > 1 ? argv[1] : "";
    for (size_t i = 0; i < sizeof subcommands / sizeof *subcommands; i++) {
        if (strcmp(name, subcommands[i].name) != 0)
            continue;
        subcommand = subcommands[i].name;
        static char title[32]; /* for the messages of getopt_long(3) */
        snprintf(title, sizeof title, "handoff %s", subcommand);
        argv[1] = title;
        return subcommands[i].run(argc - 1, argv + 1);
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        fputs(help, stdout);
    } else if (strcmp(name, "--version") == 0) {
        printf("handoff %s", HANDOFF_VERSION);
        if (strcmp(HANDOFF_VERSION, handoff_version()) != 0)
            printf(" (with libhandoff %s)", handoff_version());
        putchar('\n');
    } else {
        return usage("handoff check|broker|exec ...");
    }
    return finish_output() ? DONE : FAILED;
}
