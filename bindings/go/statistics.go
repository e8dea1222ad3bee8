package handoff

/*
#include <handoff.h>

static handoff_broker_statistics no_broker_statistics(void)
{
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    return statistics;
}

static handoff_broker_backend_state no_state(void)
{
    handoff_broker_backend_state state = HANDOFF_BROKER_BACKEND_STATE_INIT;
    return state;
}

static handoff_backend_statistics no_backend_statistics(void)
{
    handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
    return statistics;
}
*/
import "C"

import (
	"net"
	"syscall"
	"time"
)

// BrokerStatistics is what a Broker has done so far: see handoff_broker_statistics in handoff/broker.h.
type BrokerStatistics struct {
	Offered, Refused, Adopted, TakenBack uint64
	Connects, Failovers                  uint64
	InFlight, QueuedBytes                uint64            // now
	Fallbacks                            map[Reason]uint64 // those that are not 0
	Refusals                             map[Status]uint64 // those that are not 0
}

// Statistics is what the broker has done so far. After Close its error is net.ErrClosed.
func (b *Broker) Statistics() (BrokerStatistics, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return BrokerStatistics{}, net.ErrClosed
	}
	counts := C.no_broker_statistics()
	if _, err := call(func() (status C.handoff_status, err error) {
		status, err = C.handoff_broker_get_statistics(b.handle, &counts)
		return
	}); err != nil {
		return BrokerStatistics{}, err
	}
	return BrokerStatistics{
		Offered:     uint64(counts.offered),
		Refused:     uint64(counts.refused),
		Adopted:     uint64(counts.adopted),
		TakenBack:   uint64(counts.taken_back),
		Connects:    uint64(counts.connects),
		Failovers:   uint64(counts.failovers),
		InFlight:    uint64(counts.in_flight),
		QueuedBytes: uint64(counts.queued_bytes),
		Fallbacks:   byReason(counts.fallbacks[:]),
		Refusals:    byStatus(counts.refusals[:]),
	}, nil
}

// A State says what one of a broker's backends does: one of HANDOFF_STATE_* in handoff/backends.h.
type State uint32

// The states.
const (
	StateConnecting State = C.HANDOFF_STATE_CONNECTING
	StateReady      State = C.HANDOFF_STATE_READY
	StateDraining   State = C.HANDOFF_STATE_DRAINING
	StateResting    State = C.HANDOFF_STATE_RESTING
	StateDown       State = C.HANDOFF_STATE_DOWN
)

func (s State) String() string {
	switch s {
	case StateConnecting:
		return "connecting"
	case StateReady:
		return "ready"
	case StateDraining:
		return "draining"
	case StateResting:
		return "resting"
	case StateDown:
		return "down"
	}
	return "unknown"
}

// A BackendState is what one of a broker's backends does now, and what it has done since it was found:
// see handoff_broker_backend_state in handoff/backends.h.
type BackendState struct {
	Path  string
	State State
	Err   error         // why it is down or resting, or still connecting: an *Error, or nil
	Since time.Duration // how long it has been in this state
	// Next is how long until the broker connects or makes a trial offer; -1: neither is planned.
	Next                        time.Duration
	InFlight, Room              uint64 // now
	Connects, FailedConnects    uint64
	Offered, Adopted, TakenBack uint64
	Fallbacks                   map[Reason]uint64 // those that are not 0
	Refusals                    map[Status]uint64 // those that are not 0
	// Histogram counts the offers that have ended at it by the time that this took: under 1 microsecond,
	// under 2, under 4 and so on; the last one all that took longer.
	Histogram [32]uint64
}

// States is what each backend does, and at the end the directories that cannot be read, or in which a
// socket is left out. After Close its error is net.ErrClosed.
func (b *Broker) States() ([]BackendState, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, net.ErrClosed
	}
	var states []BackendState
	for {
		state := C.no_state()
		status, err := call(func() (status C.handoff_status, err error) {
			status, err = C.handoff_broker_get_backend_state(b.handle, C.size_t(len(states)), &state)
			return
		})
		if err != nil || status == C.HANDOFF_NOTHING {
			return states, err
		}
		states = append(states, newState(&state))
	}
}

func newState(state *C.handoff_broker_backend_state) BackendState {
	result := BackendState{
		Path:           C.GoString(state.path),
		State:          State(state.state),
		Since:          time.Duration(state.since_ms) * time.Millisecond,
		Next:           -1,
		InFlight:       uint64(state.in_flight),
		Room:           uint64(state.room),
		Connects:       uint64(state.connects),
		FailedConnects: uint64(state.failed_connects),
		Offered:        uint64(state.offered),
		Adopted:        uint64(state.adopted),
		TakenBack:      uint64(state.taken_back),
		Fallbacks:      byReason(state.fallbacks[:]),
		Refusals:       byStatus(state.refusals[:]),
	}
	if state.status != C.HANDOFF_OK {
		result.Err = &Error{Status(state.status), syscall.Errno(state.system_errno), C.GoString(state.message)}
	}
	if state.next_ms != C.HANDOFF_NO_TIMEOUT {
		result.Next = time.Duration(state.next_ms) * time.Millisecond
	}
	for i, count := range state.histogram {
		result.Histogram[i] = uint64(count)
	}
	return result
}

func byReason(counts []C.uint64_t) map[Reason]uint64 {
	result := make(map[Reason]uint64)
	for i, count := range counts {
		if count != 0 {
			result[Reason(i)] = uint64(count)
		}
	}
	return result
}

func byStatus(counts []C.uint64_t) map[Status]uint64 {
	result := make(map[Status]uint64)
	for i, count := range counts {
		if count != 0 {
			result[Status(-i)] = uint64(count)
		}
	}
	return result
}

// BackendStatistics is what a Listener has done so far: see handoff_backend_statistics in
// handoff/backend.h.
type BackendStatistics struct {
	Arrived, Adopted, Rejected, TakenBack           uint64
	Accepted, Refused, Broken                       uint64 // brokers
	Channels, Held, HeldBytes, KeptBytes            uint64 // now
	RefusedOverLimit, RefusedUsers, RefusedVersions uint64 // of the brokers that were refused
	RefusedDraining                                 uint64
	LastRefusedUser                                 uint32
	SystemErrors                                    uint64
	LastSystemError                                 syscall.Errno
}

// Statistics is what the listener has done so far. After Close its error is net.ErrClosed.
func (l *Listener) Statistics() (BackendStatistics, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handle == nil {
		return BackendStatistics{}, net.ErrClosed
	}
	counts := C.no_backend_statistics()
	if _, err := call(func() (status C.handoff_status, err error) {
		status, err = C.handoff_backend_get_statistics(l.handle, &counts)
		return
	}); err != nil {
		return BackendStatistics{}, err
	}
	return BackendStatistics{
		Arrived:          uint64(counts.arrived),
		Adopted:          uint64(counts.adopted),
		Rejected:         uint64(counts.rejected),
		TakenBack:        uint64(counts.taken_back),
		Accepted:         uint64(counts.accepted),
		Refused:          uint64(counts.refused),
		Broken:           uint64(counts.broken),
		Channels:         uint64(counts.channels),
		Held:             uint64(counts.held),
		HeldBytes:        uint64(counts.held_bytes),
		KeptBytes:        uint64(counts.kept_bytes),
		RefusedOverLimit: uint64(counts.refused_over_limit),
		RefusedUsers:     uint64(counts.refused_users),
		RefusedVersions:  uint64(counts.refused_versions),
		RefusedDraining:  uint64(counts.refused_draining),
		LastRefusedUser:  uint32(counts.last_refused_user),
		SystemErrors:     uint64(counts.system_errors),
		LastSystemError:  syscall.Errno(counts.system_errno),
	}, nil
}
