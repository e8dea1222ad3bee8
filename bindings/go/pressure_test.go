package handoff_test

import (
	"context"
	"io"
	"net"
	"syscall"
	"testing"

	"libhandoff/handoff"
)

// limitDescriptors allows few more of them than there are. What it gives takes all that are left.
func limitDescriptors(t *testing.T) (takeAll func() []int) {
	t.Helper()
	var limit syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	few := limit
	few.Cur = uint64(descriptors(t) + 8)
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few))
	t.Cleanup(func() { must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)) })
	return func() (taken []int) {
		for {
			fd, err := syscall.Open("/dev/null", syscall.O_CLOEXEC, 0)
			if err == syscall.EMFILE {
				return
			}
			must(t, err)
			taken = append(taken, fd)
		}
	}
}

func TestWithoutASecondDescriptorTheClientStaysTheBrokers(t *testing.T) {
	for name, admit := range map[string]func(*handoff.Arrival) error{
		"nobody is asked": nil, "Admit is asked": func(*handoff.Arrival) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			listener, err := handoff.Listen(path, &handoff.ListenOptions{Admit: admit})
			must(t, err)
			defer listener.Close()
			broker := newBroker(t, path, nil)
			var clients, accepted [4]*net.TCPConn
			for i := range clients {
				clients[i], accepted[i] = pair(t)
			}
			offer := func(i int) handoff.Verdict {
				verdict, err := broker.Offer(context.Background(), accepted[i], handoff.Offer{})
				must(t, err)
				return verdict
			}
			conns := accept(t, listener)
			offer(0)
			(<-conns).Close()

			takeAll := limitDescriptors(t)
			taken := takeAll()
			syscall.Close(taken[0])
			conns = accept(t, listener)
			if verdict := offer(1); !verdict.Adopted {
				t.Fatalf("with one and the spare one: %s", verdict.Reason)
			}
			conn := <-conns
			io.WriteString(conn, "served")
			conn.Close()
			if got := readAll(t, clients[1]); got != "served" {
				t.Errorf("%q", got)
			}

			listener.UseSpare() // the broker may have closed its copy, and so made room, before
			taken = append(taken[1:], takeAll()...)
			syscall.Close(taken[0])
			conns = accept(t, listener)
			if verdict := offer(2); verdict.Reason != handoff.ReasonDescriptorPressure {
				t.Fatalf("with one that must be the spare one: %+v", verdict)
			}
			for _, fd := range taken[1:] {
				syscall.Close(fd)
			}
			if verdict := offer(3); !verdict.Adopted {
				t.Fatalf("with enough again: %s", verdict.Reason)
			}
			(<-conns).Close()
		})
	}
}
