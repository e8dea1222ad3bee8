package handoff_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"libhandoff/handoff"
)

type end struct {
	verdict handoff.Verdict
	err     error
}

// waitEnd is for an Offer that a fault may keep for ever.
func waitEnd(t *testing.T, what string, ends <-chan end) end {
	t.Helper()
	select {
	case end := <-ends:
		return end
	case <-time.After(patience):
		t.Fatalf("%s hangs", what)
	}
	panic("unreachable")
}

// After a bug in the library, testdata/bug.c, the broker is closed, and it is known whose each connection is.
func TestBugInTheLibraryEndsTheBrokerAndEachOffer(t *testing.T) {
	if !strings.Contains(os.Getenv("LD_PRELOAD"), "bug.so") {
		t.Skip("make check-go runs it with testdata/bug.c")
	}
	for where, isRight := range map[string]func(end) bool{
		"offer": func(got end) bool {
			return errors.Is(got.err, handoff.ErrInternal) && !got.verdict.Adopted &&
				got.verdict.Reason == handoff.ReasonBrokerClosed
		},
		"offer, adopted": func(got end) bool { return got.err == nil && got.verdict.Adopted },
		"dispatch": func(got end) bool {
			return got.err == nil && got.verdict.Reason == handoff.ReasonBrokerClosed
		},
		"take_back": func(got end) bool {
			return got.err == nil && got.verdict.Reason == handoff.ReasonBrokerClosed &&
				got.verdict.MayHaveReachedBackend
		},
	} {
		t.Run(where, func(t *testing.T) {
			before := descriptors(t)
			path := socketPath(t)
			listener := listen(t, path)
			broker, err := handoff.NewBroker(path, nil) // not closed at the end: that could hang
			must(t, err)
			offer := func(ctx context.Context, conn net.Conn, service string) <-chan end {
				ends := make(chan end, 1)
				go func() {
					verdict, err := broker.Offer(ctx, conn, handoff.Offer{Service: service})
					ends <- end{verdict, err}
				}()
				return ends
			}
			conns := accept(t, listener)
			client, accepted := pair(t)
			got := waitEnd(t, "the first offer", offer(context.Background(), accepted, ""))
			must(t, got.err)
			client.Close()
			(<-conns).Close()

			otherClient, other := pair(t)
			others := make(<-chan end)
			if where == "offer, adopted" {
				conns = accept(t, listener)
			} else {
				others = offer(context.Background(), other, "")
				waitUntil(t, "the other one is offered", func() bool {
					statistics, err := broker.Statistics()
					must(t, err)
					return statistics.Offered == 2
				})
			}
			client, accepted = pair(t)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			if where == "take_back" {
				time.AfterFunc(50*time.Millisecond, cancel)
			}
			got = waitEnd(t, "the offer that meets the bug", offer(ctx, accepted, "bug in "+where))
			if !isRight(got) {
				t.Errorf("%+v", got)
			}
			if got.verdict.Adopted {
				(<-conns).Close()
				if got := readAll(t, client); got != "" {
					t.Errorf("%q", got)
				}
			} else {
				stillServes(t, client, accepted)
				got = waitEnd(t, "the other offer", others)
				if got.err != nil || got.verdict.Reason != handoff.ReasonBrokerClosed {
					t.Errorf("%+v", got)
				}
				stillServes(t, otherClient, other)
			}

			got = waitEnd(t, "a later offer", offer(context.Background(), other, ""))
			if !errors.Is(got.err, net.ErrClosed) {
				t.Errorf("%+v", got)
			}
			if err := broker.Close(); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
			must(t, listener.Close())
			for _, conn := range []net.Conn{client, accepted, otherClient, other} {
				conn.Close()
			}
			waitUntil(t, "no descriptor is left", func() bool { return descriptors(t) <= before })
		})
	}
}
