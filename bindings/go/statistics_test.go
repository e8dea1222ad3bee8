package handoff_test

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"

	"libhandoff/handoff"
)

func TestStatisticsCountWhatBecameOfOffers(t *testing.T) {
	path := socketPath(t)
	admit := func(arrival *handoff.Arrival) error {
		if arrival.Service == "no" {
			return handoff.ReasonRejected
		}
		return nil
	}
	listener, err := handoff.Listen(path, &handoff.ListenOptions{Admit: admit})
	must(t, err)
	defer listener.Close()
	broker := newBroker(t, path, nil)
	conns := accept(t, listener)
	for _, service := range []string{"no", "yes"} {
		_, accepted := pair(t)
		verdict, err := broker.Offer(context.Background(), accepted, handoff.Offer{Service: service})
		must(t, err)
		if verdict.Adopted != (service == "yes") {
			t.Error(service, verdict)
		}
	}
	(<-conns).Close()

	ours, err := broker.Statistics()
	must(t, err)
	if ours.Offered != 2 || ours.Adopted != 1 || ours.Connects != 1 || ours.InFlight != 0 ||
		len(ours.Fallbacks) != 1 || ours.Fallbacks[handoff.ReasonRejected] != 1 {
		t.Errorf("%+v", ours)
	}
	states, err := broker.States()
	must(t, err)
	if len(states) != 1 {
		t.Fatal(states)
	}
	counted := uint64(0)
	for _, count := range states[0].Histogram {
		counted += count
	}
	if state := states[0]; state.Path != path || state.State.String() != "ready" || state.Err != nil ||
		state.Offered != 2 || state.Adopted != 1 || state.Fallbacks[handoff.ReasonRejected] != 1 ||
		counted != 2 || state.Next != -1 || state.Room == 0 {
		t.Errorf("%+v", state)
	}
	theirs, err := listener.Statistics()
	must(t, err)
	if theirs.Arrived != 2 || theirs.Adopted != 1 || theirs.Rejected != 1 || theirs.Channels != 1 {
		t.Errorf("%+v", theirs)
	}
	must(t, broker.Close())
	must(t, listener.Close())
	if _, err := broker.Statistics(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := broker.States(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := listener.Statistics(); err != net.ErrClosed {
		t.Error(err)
	}
}

func TestStateSaysWhyABackendIsDown(t *testing.T) {
	broker := newBroker(t, socketPath(t), &handoff.BrokerOptions{Wait: -1})
	_, accepted := pair(t)
	_, err := broker.Offer(context.Background(), accepted, handoff.Offer{})
	if !errors.Is(err, handoff.ErrBackendUnavailable) {
		t.Fatal(err)
	}
	states, err := broker.States()
	must(t, err)
	state := states[0]
	if state.State != handoff.StateDown || state.FailedConnects == 0 || state.Next < 0 ||
		!errors.Is(state.Err, handoff.ErrBackendUnavailable) || !errors.Is(state.Err, os.ErrNotExist) {
		t.Errorf("%+v", state)
	}
	ours, err := broker.Statistics()
	must(t, err)
	if ours.Refused != 1 || ours.Refusals[handoff.ErrBackendUnavailable] != 1 {
		t.Errorf("%+v", ours)
	}
}
