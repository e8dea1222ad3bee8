#define _GNU_SOURCE
#include "trace.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define NEEDS "faults: this needs ptrace(2), as root or of own children, and Linux 5.3: %s: %s\n"

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, NEEDS, what, strerror(errno));
    exit(1);
}

pid_t trace_fork(void)
{
    int status;
    pid_t child = fork();
    if (child == -1)
        fail("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
            fprintf(stderr, NEEDS, "PTRACE_TRACEME", strerror(errno));
            _exit(1);
        }
        raise(SIGSTOP);
        return 0;
    }
    if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
        exit(1);
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SETOPTIONS, child, NULL, options) != 0)
        fail("PTRACE_SETOPTIONS");
    trace_go_on(child, 0);
    return child;
}

void trace_go_on(pid_t child, int signal)
{
    /* ESRCH: it has been killed, and waitpid(2) will say so. */
    if (ptrace(PTRACE_SYSCALL, child, NULL, (long)signal) != 0 && errno != ESRCH)
        fail("PTRACE_SYSCALL");
}

bool trace_is_call(int status)
{
    return WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80);
}

bool trace_read(pid_t child, struct stop *stop)
{
    struct __ptrace_syscall_info info = {0};
    if (ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info) < 0) {
        if (errno != ESRCH)
            fail("PTRACE_GET_SYSCALL_INFO");
        return false;
    }
    stop->entry = info.op == PTRACE_SYSCALL_INFO_ENTRY;
    if (stop->entry) {
        stop->number = (long)info.entry.nr;
        for (int i = 0; i < 6; i++)
            stop->arguments[i] = info.entry.args[i];
    }
    return true;
}

/* What no header has a name for in every architecture. */
#if defined __x86_64__
#define RESULT rax
#define FIRST rdi
#elif defined __aarch64__
#define RESULT regs[0]
#define FIRST regs[0]
#else
#error "name the registers of this architecture here: the result of a system call, its arguments"
#endif

static void registers(pid_t child, enum __ptrace_request request, struct user_regs_struct *values)
{
    struct iovec all = {.iov_base = values, .iov_len = sizeof *values};
    if (ptrace(request, child, (void *)NT_PRSTATUS, &all) != 0 && errno != ESRCH)
        fail("PTRACE_SETREGSET");
}

void trace_skip(pid_t child)
{
#if defined __x86_64__
    struct user_regs_struct values;
    registers(child, PTRACE_GETREGSET, &values);
    values.orig_rax = (unsigned long long)-1;
    registers(child, PTRACE_SETREGSET, &values);
#else
    int none = -1;
    struct iovec number = {.iov_base = &none, .iov_len = sizeof none};
    if (ptrace(PTRACE_SETREGSET, child, (void *)NT_ARM_SYSTEM_CALL, &number) != 0)
        fail("NT_ARM_SYSTEM_CALL");
#endif
}

void trace_set_result(pid_t child, long result)
{
    struct user_regs_struct values;
    registers(child, PTRACE_GETREGSET, &values);
    values.RESULT = (unsigned long)result;
    registers(child, PTRACE_SETREGSET, &values);
}

void trace_set_first_argument(pid_t child, uint64_t value)
{
    struct user_regs_struct values;
    registers(child, PTRACE_GETREGSET, &values);
    values.FIRST = value;
    registers(child, PTRACE_SETREGSET, &values);
}

void trace_restore_first_argument(pid_t child, uint64_t value)
{
    /* Where the result is in the same register, nobody expects the argument there. */
#if defined __x86_64__
    trace_set_first_argument(child, value);
#else
    (void)child;
    (void)value;
#endif
}

void trace_leave(pid_t child)
{
    if (ptrace(PTRACE_DETACH, child, NULL, NULL) != 0 && errno != ESRCH)
        fail("PTRACE_DETACH");
}
