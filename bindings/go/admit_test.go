package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"

	"libhandoff/handoff"
)

// listenWith has its connections accepted.
func listenWith(t *testing.T, path string, admit func(*handoff.Arrival) error) *handoff.Listener {
	t.Helper()
	listener, err := handoff.Listen(path, &handoff.ListenOptions{Admit: admit})
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				return
			}
			conn.Close()
		}
	}()
	return listener
}

func offer(t *testing.T, broker *handoff.Broker, what handoff.Offer) (
	verdict handoff.Verdict, client, accepted *net.TCPConn) {
	t.Helper()
	client, accepted = pair(t)
	verdict, err := broker.Offer(context.Background(), accepted, what)
	must(t, err)
	return verdict, client, accepted
}

func TestAdmitSeesWhatHasArrivedAndGivesAReason(t *testing.T) {
	before := descriptors(t)
	path := socketPath(t)
	answers := map[string]error{
		"good":    nil,
		"other":   errors.New("not on a Monday"),
		"reason":  handoff.ReasonClientUnsupported,
		"wrapped": fmt.Errorf("too many streams: %w", handoff.ReasonPolicyDisabled),
		"none":    handoff.ReasonNone,
		"unknown": handoff.Reason(4000000000),
	}
	listener := listenWith(t, path, func(arrival *handoff.Arrival) error {
		metadata, err := arrival.StandardMetadata()
		if err != nil || metadata.Client.Address != "203.0.113.7" || string(arrival.Preread()) != "read" {
			t.Errorf("%+v", arrival)
		}
		return answers[arrival.Service]
	})
	broker := newBroker(t, path, nil)
	for i := 0; i < 20; i++ {
		for service, reason := range map[string]handoff.Reason{
			"good": handoff.ReasonNone, "other": handoff.ReasonRejected,
			"reason": handoff.ReasonClientUnsupported, "wrapped": handoff.ReasonPolicyDisabled,
			"none": handoff.ReasonRejected, "unknown": handoff.ReasonRejected,
		} {
			verdict, client, accepted := offer(t, broker, handoff.Offer{Service: service,
				Preread: []byte("read"), Metadata: []byte(`{"client":{"address":"203.0.113.7"}}`)})
			if verdict.Adopted != (service == "good") || verdict.Reason != reason {
				t.Fatalf("%s: %+v", service, verdict)
			}
			if !verdict.Adopted {
				stillServes(t, client, accepted)
			}
			client.Close()
			accepted.Close()
		}
	}
	must(t, broker.Close())
	must(t, listener.Close())
	waitUntil(t, "no descriptor is left", func() bool { return descriptors(t) <= before })
}

func TestArrivalIsRejectedIfAdmitPanics(t *testing.T) {
	path := socketPath(t)
	listener, err := handoff.Listen(path, &handoff.ListenOptions{
		Admit: func(*handoff.Arrival) error { panic("a bug in Admit") }, MaxInFlight: 2})
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	accept := func() (err error) {
		defer func() { recover() }()
		_, err = listener.Accept()
		return err
	}
	go func() {
		for accept() == nil {
		}
	}()
	broker := newBroker(t, path, nil)
	for i := 0; i < 5; i++ {
		verdict, client, accepted := offer(t, broker, handoff.Offer{})
		if verdict.Adopted || verdict.Reason != handoff.ReasonRejected {
			t.Fatalf("%+v", verdict)
		}
		stillServes(t, client, accepted)
	}
}

func TestBusyBackendsArrivalsGoToAnother(t *testing.T) {
	directory := t.TempDir()
	busy, other := filepath.Join(directory, "busy.sock"), filepath.Join(directory, "other.sock")
	var asked int64
	listenWith(t, busy, func(*handoff.Arrival) error {
		atomic.AddInt64(&asked, 1)
		return handoff.ReasonBackendBusy
	})
	listenWith(t, other, nil)
	broker := newBroker(t, directory+"/", nil)
	attempts := 0
	for i := 0; i < 20; i++ {
		verdict, _, _ := offer(t, broker, handoff.Offer{})
		if !verdict.Adopted || verdict.Backend != other {
			t.Fatalf("%+v", verdict)
		}
		attempts += verdict.Attempts
	}
	if refused := int(atomic.LoadInt64(&asked)); refused == 0 || attempts != 20+refused {
		t.Errorf("%d attempts, %d at the busy one", attempts, refused)
	}
}

func TestArrivalThatIsTakenBackWhileAdmitDecidesIsNotOurs(t *testing.T) {
	path := socketPath(t)
	deciding, decide := make(chan bool), make(chan error)
	listener := listenWith(t, path, func(*handoff.Arrival) error { deciding <- true; return <-decide })
	broker := newBroker(t, path, nil)
	for _, decision := range []error{nil, handoff.ReasonRejected} {
		client, accepted := pair(t)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { <-deciding; cancel() }()
		if _, err := broker.Offer(ctx, accepted, handoff.Offer{}); err != context.Canceled {
			t.Fatal(err)
		}
		stillServes(t, client, accepted)
		decide <- decision
	}
	go func() { <-deciding; decide <- nil }()
	if verdict, _, _ := offer(t, broker, handoff.Offer{}); !verdict.Adopted {
		t.Errorf("%+v", verdict)
	}

	go func() { <-deciding; listener.Close(); decide <- nil }() // Close does not wait for it
	verdict, client, accepted := offer(t, broker, handoff.Offer{})
	if verdict.Adopted {
		t.Errorf("%+v", verdict)
	}
	stillServes(t, client, accepted)
}

// The place at the backend is free again when the broker has the verdict: nobody need call Accept once more
// for that.
func TestAdoptionIsToldThoughNoAcceptFollows(t *testing.T) {
	for name, others := range map[string]int{"nothing else waits": 0, "others wait": 2} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			listener, err := handoff.Listen(path, &handoff.ListenOptions{MaxInFlight: 1 + others,
				Admit: func(*handoff.Arrival) error { return nil }})
			must(t, err)
			defer listener.Close()
			broker := newBroker(t, path, &handoff.BrokerOptions{Timeout: 4 * patience})
			state := func() handoff.BackendState {
				states, err := broker.States()
				must(t, err)
				return states[0]
			}
			offered := make(chan error, 1+others)
			offer := func() {
				_, accepted := pair(t)
				go func() {
					_, err := broker.Offer(context.Background(), accepted, handoff.Offer{})
					offered <- err
				}()
			}

			offer()
			(<-accept(t, listener)).Close()
			must(t, <-offered)
			waitUntil(t, "its place is free", func() bool { return state().Room == uint64(1+others) })

			for i := 0; i < others; i++ {
				offer()
			}
			waitUntil(t, "they are offered", func() bool { return state().InFlight == uint64(others) })
			for i := 0; i < others; i++ {
				(<-accept(t, listener)).Close()
				waitUntil(t, "one more place is free", func() bool { return state().Room == uint64(2+i) })
				must(t, <-offered)
			}
		})
	}
}
