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
    const char *correlation, uintptr_t number, uint64_t *id)
{
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = fd;
    offer.preread = preread;
    offer.preread_len = preread_len;
    offer.metadata = metadata;
    offer.metadata_len = metadata_len;
    offer.service = service;
    offer.correlation = correlation;
    offer.user_data = (void *)number;
    return handoff_broker_offer(broker, &offer, id);
}

static handoff_verdict no_verdict(void)
{
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    return verdict;
}

static uintptr_t number_of(const handoff_verdict *verdict)
{
    return (uintptr_t)verdict->user_data;
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
	last    C.uintptr_t // the number of the last offer
	waiting map[C.uintptr_t]*made
	queue   []chan struct{} // offers that wait for room, the first one first
	refusal error           // why they wait
}

// made is an offer that was made. Its number tells its verdict: if the library has a bug, there is no id.
type made struct {
	number   C.uintptr_t
	id       C.uint64_t
	verdicts chan Verdict
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
	// Attempts is how many backends it was offered to.
	Attempts int
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

// MayPass tells whether the reason is about the backends, and not about this connection: the client can
// be offered again.
func (r Reason) MayPass() bool {
	return bool(C.handoff_reason_may_pass(C.handoff_reason(r)))
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
		waiting: make(map[C.uintptr_t]*made)}
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
	if C.handoff_broker_dispatch(b.handle) == C.HANDOFF_ERR_INTERNAL {
		b.fail()
		return
	}
	b.giveVerdicts()
	b.admit()
}

func (b *Broker) giveVerdicts() {
	verdict := C.no_verdict()
	for C.handoff_broker_next(b.handle, &verdict) == C.HANDOFF_OK {
		made, waits := b.waiting[C.number_of(&verdict)]
		if !waits { // a send would wait for ever, and everybody for the lock
			continue
		}
		delete(b.waiting, made.number)
		made.verdicts <- Verdict{
			Adopted:               verdict.outcome == C.HANDOFF_ADOPTED,
			Reason:                Reason(verdict.reason),
			MayHaveReachedBackend: verdict.may_have_reached_backend != 0,
			Backend:               C.GoString(verdict.backend),
			Attempts:              int(verdict.attempts),
		}
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
// If the backend adopts it, conn is closed. After any other verdict, and after any error, it is still
// yours to serve. When ctx is done, the offer is taken back and the error is ctx.Err(), unless the backend
// was faster: then there is that verdict. ErrInternal is a bug in the library, and closes the Broker.
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
	made, err := b.offerWhenThereIsRoom(ctx, raw, &offer)
	var verdict Verdict
	switch {
	case err == nil:
		verdict, err = b.verdict(ctx, made)
	case made == nil:
		verdict.Reason = reasonOf(err)
	default: // a bug, after which the verdict is there
		if verdict = <-made.verdicts; verdict.Adopted {
			err = nil
		}
	}
	if err == nil && verdict.Adopted {
		// Go's poller forgets it first, and nothing is sent: that is what the backend needs.
		conn.Close()
	}
	return verdict, err
}

func (b *Broker) offerWhenThereIsRoom(ctx context.Context, raw syscall.RawConn, offer *Offer) (
	made *made, err error) {
	var room chan struct{} // where this one is in line
	var late <-chan time.Time
	for {
		controlErr := raw.Control(func(fd uintptr) {
			made, room, err = b.offer(ctx, C.int(fd), offer, room != nil)
		})
		if controlErr != nil {
			if room != nil {
				b.leave(room)
			}
			return nil, controlErr
		}
		if room == nil {
			return made, err
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
			return nil, err
		case <-ctx.Done():
			b.leave(room)
			return nil, ctx.Err()
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

// offer makes an offer, or gets in line for room: behind all others, unless it was `admitted` from there. If
// it was made though there is an error, that is a bug in the library, and the verdict is there.
func (b *Broker) offer(ctx context.Context, fd C.int, offer *Offer, admitted bool) (
	_ *made, room chan struct{}, err error) {
	service, correlation := cString(offer.Service), cString(offer.Correlation)
	defer C.free(unsafe.Pointer(service))
	defer C.free(unsafe.Pointer(correlation))
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, nil, net.ErrClosed
	}
	if len(b.queue) > 0 && !admitted {
		room = make(chan struct{})
		b.queue = append(b.queue, room)
		return nil, room, b.refusal
	}
	if err = ctx.Err(); err != nil {
		b.admit() // its room is another one's
		return nil, nil, err
	}
	b.last++
	made := &made{number: b.last, verdicts: make(chan Verdict, 1)}
	status, err := call(func() (status C.handoff_status, err error) {
		status, err = C.offer_with(b.handle, fd, bytes(offer.Preread),
			C.size_t(len(offer.Preread)), bytes(offer.Metadata),
			C.size_t(len(offer.Metadata)), service, correlation, made.number, &made.id)
		return
	})
	switch {
	case err == nil:
		b.waiting[made.number] = made
		return made, nil, nil
	case status == C.HANDOFF_ERR_INTERNAL:
		b.waiting[made.number] = made
		b.fail()
		return made, nil, err
	case b.wait > 0 && isForLater(err):
		b.refusal = err
		room = make(chan struct{})
		b.queue = append([]chan struct{}{room}, b.queue...)
	default:
		b.admit() // its room is another one's
	}
	return nil, room, err
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

func (b *Broker) verdict(ctx context.Context, made *made) (Verdict, error) {
	select {
	case verdict := <-made.verdicts:
		return verdict, nil
	case <-ctx.Done():
	}
	if b.takeBack(made) {
		return Verdict{MayHaveReachedBackend: true}, ctx.Err()
	}
	return <-made.verdicts, nil // it is there, or on its way
}

func (b *Broker) takeBack(made *made) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	switch C.handoff_broker_take_back(b.handle, made.id) {
	case C.HANDOFF_OK:
		delete(b.waiting, made.number)
		b.admit()
		return true
	case C.HANDOFF_ERR_INTERNAL:
		b.fail()
	}
	return false
}

// Close takes every offer back. Each has its verdict then: ReasonBrokerClosed unless the backend was
// faster. Offers that wait for room, and later ones, fail with net.ErrClosed.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return net.ErrClosed
	}
	b.end()
	b.mu.Unlock()
	err := b.ready.Close()
	<-b.done
	return err
}

// fail closes after a bug in the library: what the call has done is not known, but the verdicts tell whose
// each connection is.
func (b *Broker) fail() {
	b.end()
	go b.ready.Close() // it waits until work has returned, which may have called this
}

func (b *Broker) end() {
	b.closed = true
	C.handoff_broker_close(b.handle)
	b.giveVerdicts()
	// After a bug an offer may have none. Then the connection is still the broker's.
	for _, made := range b.waiting {
		made.verdicts <- Verdict{Reason: ReasonBrokerClosed, MayHaveReachedBackend: true}
	}
	b.waiting = nil
	for _, room := range b.queue {
		close(room)
	}
	b.queue = nil
	C.handoff_broker_free(b.handle)
	b.handle = nil
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
