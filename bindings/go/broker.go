package handoff

/*
#include <stdlib.h>
#include "policy.h"

// The pointers of a struct must not come from Go, so the structs are made here.
static handoff_status broker_with(const char *path, size_t max_in_flight, uint64_t timeout_ms,
    uint64_t attempt_timeout_ms, size_t max_failures, uint64_t failure_period_ms,
    const uint32_t *users, size_t users_len, const uint32_t *groups, size_t groups_len,
    handoff_broker **broker)
{
    handoff_peer_policy policy = policy_of(users, users_len, groups, groups_len);
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = max_in_flight;
    options.timeout_ms = timeout_ms;
    options.attempt_timeout_ms = attempt_timeout_ms;
    options.max_failures = max_failures;
    options.failure_period_ms = failure_period_ms;
    options.policy = &policy;
    return handoff_broker_new(path, &options, broker);
}

static handoff_status offer_with(handoff_broker *broker, int fd, const char *preread,
    size_t preread_len, const char *metadata, size_t metadata_len, const char *service,
    const char *correlation, uint64_t timeout_ms, uint64_t *id)
{
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = fd;
    offer.preread = preread;
    offer.preread_len = preread_len;
    offer.metadata = metadata;
    offer.metadata_len = metadata_len;
    offer.service = service;
    offer.correlation = correlation;
    offer.timeout_ms = timeout_ms;
    return handoff_broker_offer(broker, &offer, id);
}

static handoff_verdict no_verdict(void)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    return verdict;
}
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// BrokerOptions are the limits of a Broker. Zero is the default in every field: see
// handoff_broker_options in handoff/broker.h.
type BrokerOptions struct {
	MaxInFlight    int           // offers in flight at each backend: default 256
	Timeout        time.Duration // until an offer is taken back: default 5 seconds
	AttemptTimeout time.Duration // for one of several backends: default 1 second, or half of what is left
	MaxFailures    int           // after which a backend rests: default 8; -1: it never does
	FailurePeriod  time.Duration // how long a failure counts: default 30 seconds
	Policy         Policy        // who may be the backend
	// Wait is how long a connection may wait for a backend that has room, before it is offered: default
	// 1 second. Negative: not at all.
	Wait time.Duration
}

// A Broker is the broker's end: it offers connections to the backends of a path. Any number of
// goroutines may use it at once. No thread waits for a verdict.
type Broker struct {
	wait  time.Duration
	ready *os.File
	done  chan struct{} // closed when the last verdict is given

	mu      sync.Mutex // the library lets one thread at a time use the handle
	handle  *C.handoff_broker
	closed  bool
	waiting map[C.uint64_t]chan Verdict
	queue   []chan struct{} // offers that wait for room, the first one first
	refusal error           // why they wait
}

// An Offer is what goes with a connection.
type Offer struct {
	Preread  []byte // what was read from the client: the backend has it first
	Metadata []byte // what the backend should know
	// Service is the service that is meant, and Correlation an id for logs.
	Service, Correlation string
}

// A Verdict says what became of an offer.
type Verdict struct {
	// Adopted: the backend has the connection, and yours is closed. Otherwise it is still yours.
	Adopted bool
	// Reason is why it was not adopted, also if Offer returns an error of the library's.
	Reason Reason
	// MayHaveReachedBackend, where it was not adopted: the backend may still hold a copy, and may have
	// changed what copies share. To end the connection, call CloseWrite before Close.
	MayHaveReachedBackend bool
	// Backend is the path of the one that adopted it, or of the last one that had it.
	Backend string
	// Tries is how many backends it was offered to.
	Tries int
}

// A Reason says why a connection was not handed over: one of HANDOFF_REASON_* in handoff/status.h. It is
// an error for ListenOptions.Admit.
type Reason uint32

// The reasons.
const (
	ReasonNone                Reason = C.HANDOFF_REASON_NONE
	ReasonClientUnsupported   Reason = C.HANDOFF_REASON_CLIENT_UNSUPPORTED
	ReasonPolicyDisabled      Reason = C.HANDOFF_REASON_POLICY_DISABLED
	ReasonDescriptorPressure  Reason = C.HANDOFF_REASON_DESCRIPTOR_PRESSURE
	ReasonRateLimited         Reason = C.HANDOFF_REASON_RATE_LIMITED
	ReasonPermissionDenied    Reason = C.HANDOFF_REASON_PERMISSION_DENIED
	ReasonIntegrityMismatch   Reason = C.HANDOFF_REASON_INTEGRITY_MISMATCH
	ReasonAckTimeout          Reason = C.HANDOFF_REASON_ACK_TIMEOUT
	ReasonForeignBackend      Reason = C.HANDOFF_REASON_FOREIGN_BACKEND
	ReasonBackendUnavailable  Reason = C.HANDOFF_REASON_BACKEND_UNAVAILABLE
	ReasonBackendBusy         Reason = C.HANDOFF_REASON_BACKEND_BUSY
	ReasonRejected            Reason = C.HANDOFF_REASON_REJECTED
	ReasonUnsupportedPlatform Reason = C.HANDOFF_REASON_UNSUPPORTED_PLATFORM
	ReasonBrokerClosed        Reason = C.HANDOFF_REASON_BROKER_CLOSED
	ReasonBackendDied         Reason = C.HANDOFF_REASON_BACKEND_DIED
	ReasonClientGone          Reason = C.HANDOFF_REASON_CLIENT_GONE
	ReasonTooLarge            Reason = C.HANDOFF_REASON_TOO_LARGE
	ReasonKind                Reason = C.HANDOFF_REASON_KIND
	ReasonTooManyChannels     Reason = C.HANDOFF_REASON_TOO_MANY_CHANNELS
)

func (r Reason) String() string {
	return C.GoString(C.handoff_reason_name(C.handoff_reason(r)))
}

func (r Reason) Error() string {
	return "handoff: " + r.String()
}

// NewBroker makes a broker for the backend that listens at path, and begins to connect. If the path ends
// in "/", every socket in that directory is a backend. The options may be nil. Close frees it;
// nothing else does, because until then it gives verdicts and connects again.
func NewBroker(path string, options *BrokerOptions) (*Broker, error) {
	if options == nil {
		options = &BrokerOptions{}
	}
	if err := checkString("path", path); err != nil {
		return nil, err
	}
	if err := checkNumbers(map[string]int{"MaxInFlight": options.MaxInFlight,
		"MaxFailures": limit(options.MaxFailures)}); err != nil {
		return nil, err
	}
	if err := checkNumbers(map[string]time.Duration{"Timeout": options.Timeout,
		"AttemptTimeout": options.AttemptTimeout, "FailurePeriod": options.FailurePeriod}); err != nil {
		return nil, err
	}
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	users, groups := numbers(options.Policy.Users), numbers(options.Policy.Groups)
	var handle *C.handoff_broker
	if _, err := call(func() (status C.handoff_status, err error) {
		status, err = C.broker_with(name, C.size_t(options.MaxInFlight),
			milliseconds(options.Timeout), milliseconds(options.AttemptTimeout),
			C.size_t(options.MaxFailures), milliseconds(options.FailurePeriod),
			users, C.size_t(len(options.Policy.Users)),
			groups, C.size_t(len(options.Policy.Groups)), &handle)
		return
	}); err != nil {
		return nil, err
	}
	ready, err := watched(func() (fd C.int, err error) {
		fd, err = C.handoff_broker_fd(handle)
		return
	})
	if err != nil {
		C.handoff_broker_free(handle)
		return nil, err
	}
	broker := &Broker{wait: options.Wait, ready: ready, done: make(chan struct{}), handle: handle,
		waiting: make(map[C.uint64_t]chan Verdict)}
	if broker.wait == 0 {
		broker.wait = time.Second
	}
	raw, err := ready.SyscallConn()
	if err != nil {
		ready.Close()
		C.handoff_broker_free(handle)
		return nil, err
	}
	go func() {
		defer close(broker.done)
		// Until Close closes the file.
		raw.Read(func(uintptr) bool {
			broker.work()
			return false
		})
	}()
	return broker, nil
}

// milliseconds rounds up, so that what is not nothing stays something.
func milliseconds(d time.Duration) C.uint64_t {
	if d <= 0 {
		return 0
	}
	return C.uint64_t((d + time.Millisecond - 1) / time.Millisecond)
}

// work does what there is to do, gives the verdicts, and lets in who waits for room.
func (b *Broker) work() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	// After an error the descriptor becomes readable again; what it means for an offer is its verdict.
	C.handoff_broker_dispatch(b.handle)
	b.giveVerdicts()
	b.admit()
}

func (b *Broker) giveVerdicts() {
	verdict := C.no_verdict()
	for C.handoff_broker_next(b.handle, &verdict) == C.HANDOFF_OK {
		b.waiting[verdict.id] <- Verdict{
			Adopted:               verdict.outcome == C.HANDOFF_ADOPTED,
			Reason:                Reason(verdict.reason),
			MayHaveReachedBackend: verdict.may_have_reached_backend != 0,
			Backend:               C.GoString(verdict.backend),
			Tries:                 int(verdict.tries),
		}
		delete(b.waiting, verdict.id)
	}
}

// admit wakes as many of those that wait as there is room for. Who is woken and finds none waits again.
func (b *Broker) admit() {
	if len(b.queue) == 0 {
		return
	}
	room := int(C.handoff_broker_room(b.handle))
	for ; room > 0 && len(b.queue) > 0; room-- {
		close(b.queue[0])
		b.queue = b.queue[1:]
	}
}

// Offer offers a connection and waits for the verdict. Meanwhile nobody may read or write conn, which is
// a *net.TCPConn or a *net.UnixConn. Its mode and options are not changed.
//
// If the backend adopts it, conn is closed. After any other verdict, and after any error but
// ErrInternal, a bug in the library, it is still yours to serve. When ctx is done, the offer is taken
// back and the error is ctx.Err(), unless the backend was faster: then there is that verdict.
func (b *Broker) Offer(ctx context.Context, conn net.Conn, offer Offer) (Verdict, error) {
	var raw syscall.RawConn
	var err error
	switch conn := conn.(type) {
	case *net.TCPConn:
		raw, err = conn.SyscallConn()
	case *net.UnixConn:
		raw, err = conn.SyscallConn()
	default: // its Close could say more to the client than the backend would like
		return Verdict{}, fmt.Errorf("handoff: %T cannot be handed over: %w", conn, ErrInvalidArgument)
	}
	if err == nil {
		err = checkString("service", offer.Service)
	}
	if err == nil {
		err = checkString("correlation", offer.Correlation)
	}
	if err != nil {
		return Verdict{}, err
	}
	id, verdicts, err := b.offerWhenThereIsRoom(ctx, raw, &offer)
	if err != nil {
		return Verdict{Reason: reasonOf(err)}, err
	}
	verdict, err := b.verdict(ctx, id, verdicts)
	if err == nil && verdict.Adopted {
		// Go's poller forgets it first, and nothing is sent: that is what the backend needs.
		conn.Close()
	}
	return verdict, err
}

func (b *Broker) offerWhenThereIsRoom(ctx context.Context, raw syscall.RawConn, offer *Offer) (
	id C.uint64_t, verdicts chan Verdict, err error) {
	var room chan struct{} // where this one is in line
	var late <-chan time.Time
	for {
		controlErr := raw.Control(func(fd uintptr) {
			id, verdicts, room, err = b.offer(ctx, C.int(fd), offer, room != nil)
		})
		if controlErr != nil {
			if room != nil {
				b.leave(room)
			}
			return 0, nil, controlErr
		}
		if room == nil {
			return id, verdicts, err
		}
		if late == nil {
			timer := time.NewTimer(b.wait)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-room:
		case <-late:
			b.leave(room)
			return 0, nil, err
		case <-ctx.Done():
			b.leave(room)
			return 0, nil, ctx.Err()
		}
	}
}

// reasonOf is the reason that fits an error: ReasonNone if it is not the library's.
func reasonOf(err error) Reason {
	var failed *Error
	if !errors.As(err, &failed) {
		return ReasonNone
	}
	return Reason(C.handoff_status_reason(C.handoff_status(failed.Status)))
}

// isForLater tells whether the library says when an offer would be taken again.
func isForLater(err error) bool {
	var failed *Error
	if !errors.As(err, &failed) {
		return false
	}
	switch failed.Status {
	case ErrFull, ErrRateLimited, ErrBackendUnavailable, ErrTooManyChannels:
		return true
	}
	return false
}

// offer makes an offer, or gets in line for room: behind all others, unless it was `admitted` from there.
func (b *Broker) offer(ctx context.Context, fd C.int, offer *Offer, admitted bool) (
	id C.uint64_t, verdicts chan Verdict, room chan struct{}, err error) {
	service, correlation := cString(offer.Service), cString(offer.Correlation)
	defer C.free(unsafe.Pointer(service))
	defer C.free(unsafe.Pointer(correlation))
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, nil, nil, net.ErrClosed
	}
	if len(b.queue) > 0 && !admitted {
		room = make(chan struct{})
		b.queue = append(b.queue, room)
		return 0, nil, room, b.refusal
	}
	if err = ctx.Err(); err == nil {
		_, err = call(func() (status C.handoff_status, err error) {
			status, err = C.offer_with(b.handle, fd, bytes(offer.Preread),
				C.size_t(len(offer.Preread)), bytes(offer.Metadata),
				C.size_t(len(offer.Metadata)), service, correlation, 0, &id)
			return
		})
	}
	switch {
	case err == nil:
		verdicts = make(chan Verdict, 1)
		b.waiting[id] = verdicts
	case b.wait > 0 && isForLater(err):
		b.refusal = err
		room = make(chan struct{})
		b.queue = append([]chan struct{}{room}, b.queue...)
	default:
		b.admit() // its room is another one's
	}
	return
}

// leave gives up waiting. If there was room just now, the next one has it.
func (b *Broker) leave(room chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, other := range b.queue {
		if other == room {
			b.queue = append(b.queue[:i], b.queue[i+1:]...)
			return
		}
	}
	if !b.closed {
		b.admit()
	}
}

func (b *Broker) verdict(ctx context.Context, id C.uint64_t, verdicts chan Verdict) (Verdict, error) {
	select {
	case verdict := <-verdicts:
		return verdict, nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	taken := false
	if !b.closed {
		taken = C.handoff_broker_take_back(b.handle, id) == C.HANDOFF_OK
	}
	if taken {
		delete(b.waiting, id)
		b.admit()
	}
	b.mu.Unlock()
	if taken {
		return Verdict{MayHaveReachedBackend: true}, ctx.Err()
	}
	return <-verdicts, nil // it is there, or on its way
}

// Close takes every offer back. Each has its verdict then: ReasonBrokerClosed unless the backend was
// faster. Offers that wait for room, and later ones, fail with net.ErrClosed.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return net.ErrClosed
	}
	b.closed = true
	C.handoff_broker_close(b.handle)
	b.giveVerdicts()
	for _, room := range b.queue {
		close(room)
	}
	b.queue = nil
	C.handoff_broker_free(b.handle)
	b.handle = nil
	b.mu.Unlock()
	err := b.ready.Close()
	<-b.done
	return err
}

// checkString refuses what C would take only the beginning of.
func checkString(what, s string) error {
	if strings.IndexByte(s, 0) == -1 {
		return nil
	}
	return fmt.Errorf("handoff: the %s has a NUL: %q: %w", what, s, ErrInvalidArgument)
}

// checkNumbers refuses what C would take for a very large number, or nothing at all.
func checkNumbers[T int | time.Duration](options map[string]T) error {
	for name, value := range options {
		if value < 0 {
			return unfit(name, value)
		}
	}
	return nil
}

// limit is for an option of which -1 is HANDOFF_NO_LIMIT.
func limit(n int) int {
	if n == -1 {
		return 0
	}
	return n
}

func unfit(option string, value any) error {
	return fmt.Errorf("handoff: %s cannot be %v: %w", option, value, ErrInvalidArgument)
}

// cString is a string for C, or NULL for an empty one.
func cString(s string) *C.char {
	if s == "" {
		return nil
	}
	return C.CString(s)
}

// bytes is where the bytes of a slice are. Its type says to cgo that no pointers are among them.
func bytes(b []byte) *C.char {
	if len(b) == 0 {
		return nil
	}
	return (*C.char)(unsafe.Pointer(&b[0]))
}
