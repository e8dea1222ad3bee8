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

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } subcommands[] = {{"check", check_main}, {"broker", broker_main}, {"exec", exec_main}};

    keep_standard_descriptors();
    /* `help check' is what many type for `check --help'. */
    static char help[] = "--help";
    if (argc > 1 && strcmp(argv[1], "help") == 0) {
        int of_one = argc > 2 && strcmp(argv[2], "help") != 0;
        argv[1] = of_one ? argv[2] : help;
        if (of_one)
            argv[2] = help;
    }
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
        return print_help();
    } else if (strcmp(name, "--version") == 0) {
        printf("handoff %s", HANDOFF_VERSION);
        if (strcmp(HANDOFF_VERSION, handoff_version()) != 0)
            printf(" (with libhandoff %s)", handoff_version());
        putchar('\n');
    } else {
        if (argc > 1)
            complain("there is no %s %s", *name == '-' ? "option" : "subcommand", name);
        return usage("handoff check|broker|exec ...");
    }
    return finish_output() ? DONE : FAILED;
}
