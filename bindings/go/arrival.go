package handoff

// #include <handoff.h>
import "C"

import (
	"errors"
	"sync"
)

// An Arrival is what comes with a connection.
type Arrival struct {
	// Metadata is what the broker wanted the backend to know.
	Metadata []byte
	// Service is the service that is meant, and Correlation an id for logs; "" if the broker named none.
	Service, Correlation string
	// Broker is the process that hands it over.
	Broker Process
	// TLS: the client speaks TLS, and the kernel does it. For a Conn all is plain.
	TLS bool

	id      C.uint64_t
	preread []byte

	parse    sync.Once
	parsed   *Metadata
	parseErr error
}

// A Process is a broker as it was when it connected. For logs: a pid is not an identity.
type Process struct {
	Pid      int
	UID, GID uint32
}

// Preread is what the broker has read from the client and Read has not given yet. It is not for use
// while another goroutine reads.
func (a *Arrival) Preread() []byte {
	return a.preread
}

// StandardMetadata is the Metadata, parsed once.
func (a *Arrival) StandardMetadata() (*Metadata, error) {
	a.parse.Do(func() { a.parsed, a.parseErr = ParseMetadata(a.Metadata) })
	return a.parsed, a.parseErr
}

// decide asks Admit, and adopts or rejects. False if the connection is not ours: it is the broker's.
func (l *Listener) decide(conn *Conn) (bool, error) {
	asked := false
	defer func() {
		if !asked { // Admit has panicked, and the client must not wait for what nobody decides
			l.mu.Lock()
			defer l.mu.Unlock()
			l.reject(conn, ReasonRejected)
		}
	}()
	refusal := l.admit(&conn.Arrival)
	asked = true
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handle == nil {
		return false, l.closed("accept")
	}
	if refusal == nil && !l.haveSpare() {
		refusal = ReasonDescriptorPressure
	}
	if refusal != nil {
		reason := ReasonRejected
		if errors.As(refusal, &reason) && reason == ReasonNone {
			reason = ReasonRejected
		}
		l.reject(conn, reason)
		return false, nil
	}
	var fd C.int
	_, err := call(func() (status C.handoff_status, err error) {
		status, err = C.handoff_backend_adopt(l.handle, conn.id, &fd)
		return
	})
	// Another goroutine's Accept may have found that the broker had to be cut off, with its arrivals.
	if errors.Is(err, ErrTakenBack) || errors.Is(err, ErrInvalidArgument) {
		return false, nil
	}
	conn.fd = int(fd)
	return err == nil && conn.open(l.useSpare), err
}

// reject is for who has the lock.
func (l *Listener) reject(conn *Conn, reason Reason) {
	if l.handle == nil {
		return
	}
	// It fails if the arrival has gone meanwhile, which is no news, or if the number is no reason's.
	if C.handoff_backend_reject(l.handle, conn.id, C.handoff_reason(reason)) != C.HANDOFF_OK {
		C.handoff_backend_reject(l.handle, conn.id, C.HANDOFF_REASON_REJECTED)
	}
}
