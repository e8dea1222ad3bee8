package handoff

/*
#cgo pkg-config: handoff
#include <stdlib.h>
#include "policy.h"

// The pointers of a struct must not come from Go, so the struct is made here.
static handoff_status listen_with(const char *path, int fd, uint32_t mode, int32_t backlog,
    size_t max_channels, size_t max_in_flight, size_t max_offer_bytes, size_t max_held_bytes,
    const uint32_t *users, size_t users_len, const uint32_t *groups, size_t groups_len,
    handoff_backend **backend)
{
    handoff_peer_policy policy = policy_of(users, users_len, groups, groups_len);
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.policy = &policy;
    options.mode = mode;
    options.backlog = backlog;
    options.max_channels = max_channels;
    options.max_in_flight = max_in_flight;
    options.max_offer_bytes = max_offer_bytes;
    options.max_held_bytes = max_held_bytes;
    return path ? handoff_backend_listen(path, &options, backend)
                : handoff_backend_listen_on(fd, &options, backend);
}

static handoff_arrival no_arrival(void)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    return arrival;
}

// Takes an arrival without adopting it, as handoff_backend_accept() would do first.
static handoff_status next_arrival(handoff_backend *backend, handoff_arrival *arrival)
{
    handoff_status status = handoff_backend_next(backend, arrival);
    if (status == HANDOFF_NOTHING && (status = handoff_backend_dispatch(backend)) == HANDOFF_OK)
        status = handoff_backend_next(backend, arrival);
    // Ends the batch, so that a decision is sent at once: there may be no other call for long.
    if (status == HANDOFF_OK)
        (void)!handoff_backend_dispatch(backend);
    return status;
}
*/
import "C"

import (
	"errors"
	"io/fs"
	"math"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// ListenOptions are the limits of a Listener. Zero is the default in every field: see
// handoff_backend_options in handoff/backend.h.
type ListenOptions struct {
	Mode          fs.FileMode // the permission bits of the socket's file: default 0600
	Backlog       int         // brokers that may wait to be accepted: default 4096
	Policy        Policy      // who may connect
	MaxChannels   int         // brokers at once: default 64
	MaxInFlight   int         // offers in flight on each channel: default 256
	MaxOfferBytes int         // preread, metadata and names of one offer: default 65536
	MaxHeldBytes  int         // bytes of arrivals that are held at once: default 64 MiB; -1: no limit
	// Admit, if not nil, is asked about each arrival before it is adopted. Where it returns an error, the
	// arrival is rejected and the broker serves the client another way. The error may be a Reason:
	// ReasonBackendBusy makes the broker ask another backend. It is ReasonRejected otherwise, also where
	// Admit panics.
	//
	// Accept calls it, so the next connection waits for it, unless several goroutines accept.
	Admit func(*Arrival) error
}

// A Listener is the backend's end: a net.Listener whose connections are those that brokers hand over.
// Several goroutines may use it at once.
//
// A connection is adopted when Accept returns it. Until then the broker still has it, and serves it
// another way if nobody calls Accept: so it is with a listener that limits how many it has at once.
type Listener struct {
	addr   net.UnixAddr
	admit  func(*Arrival) error
	ready  *os.File // a copy of the backend's descriptor, for Go's poller
	raw    syscall.RawConn
	mu     sync.Mutex // the library lets one thread at a time use the handle
	handle *C.handoff_backend
	spare  int // a descriptor to close when net.FileConn finds no other; -1: none
}

// Listen makes a handoff socket at path and listens on it for brokers. A path that begins with "@" is
// an abstract name. Workers that share the work each listen at a path of their own in one directory,
// which the broker is made with. The options may be nil.
func Listen(path string, options *ListenOptions) (*Listener, error) {
	if err := checkString("path", path); err != nil {
		return nil, err
	}
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	return listen(name, -1, path, options)
}

// ListenFile listens on a socket that somebody else made, such as systemd: a listening Unix socket of
// sequenced packets. The file stays yours to close. Mode and Backlog of the options have no effect.
func ListenFile(file *os.File, options *ListenOptions) (*Listener, error) {
	var listener *Listener
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	if controlErr := raw.Control(func(fd uintptr) {
		listener, err = listen(nil, C.int(fd), file.Name(), options)
	}); controlErr != nil {
		return nil, controlErr
	}
	return listener, err
}

func listen(path *C.char, fd C.int, name string, options *ListenOptions) (*Listener, error) {
	if options == nil {
		options = &ListenOptions{}
	}
	if err := checkNumbers(map[string]int{"Backlog": options.Backlog, "MaxChannels": options.MaxChannels,
		"MaxInFlight": options.MaxInFlight, "MaxOfferBytes": options.MaxOfferBytes,
		"MaxHeldBytes": limit(options.MaxHeldBytes)}); err != nil {
		return nil, err
	}
	if options.Backlog > math.MaxInt32 {
		return nil, unfit("Backlog", options.Backlog)
	}
	listener := &Listener{addr: net.UnixAddr{Name: name, Net: "unixpacket"}, admit: options.Admit,
		spare: -1}
	users, groups := numbers(options.Policy.Users), numbers(options.Policy.Groups)
	var handle *C.handoff_backend
	if _, err := call(func() (status C.handoff_status, err error) {
		status, err = C.listen_with(path, fd, C.uint32_t(options.Mode), C.int32_t(options.Backlog),
			C.size_t(options.MaxChannels), C.size_t(options.MaxInFlight),
			C.size_t(options.MaxOfferBytes), C.size_t(options.MaxHeldBytes),
			users, C.size_t(len(options.Policy.Users)),
			groups, C.size_t(len(options.Policy.Groups)), &handle)
		return
	}); err != nil {
		return nil, err
	}
	listener.handle = handle
	// The first use, so that what the system refuses is refused here.
	ready, err := watched(func() (fd C.int, err error) {
		fd, err = C.handoff_backend_fd(handle)
		return
	})
	if err != nil {
		C.handoff_backend_free(handle)
		return nil, err
	}
	listener.ready = ready
	listener.raw, err = ready.SyscallConn()
	if err != nil {
		listener.Close()
		return nil, err
	}
	// As the listeners of package net have one: nobody else can listen at the path before.
	runtime.SetFinalizer(listener, (*Listener).Close)
	return listener, nil
}

// numbers is the array of a slice as C has it.
func numbers(list []uint32) *C.uint32_t {
	if len(list) == 0 {
		return nil
	}
	return (*C.uint32_t)(&list[0])
}

// watched makes a file of a copy of a handle's descriptor, which is an epoll descriptor: so Go's poller
// can watch it, and no thread waits. Non-blocking says to Go that it can be watched; the library's
// calls do not look at it.
func watched(descriptor func() (C.int, error)) (*os.File, error) {
	var fd C.int
	if _, err := call(func() (C.handoff_status, error) {
		var err error
		if fd, err = descriptor(); fd == -1 {
			return C.handoff_last_status(), err
		}
		return C.HANDOFF_OK, nil
	}); err != nil {
		return nil, err
	}
	copied, err := duplicate(fd)
	if err != nil {
		return nil, err
	}
	if err := syscall.SetNonblock(copied, true); err != nil {
		syscall.Close(copied)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(copied), "handoff"), nil
}

func duplicate(fd C.int) (int, error) {
	copied, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, os.NewSyscallError("fcntl", errno)
	}
	return int(copied), nil
}

// Accept waits for a connection and adopts it. From then on it is this process's alone: if this process
// ends before it has answered, the client is lost. What it returns is a *Conn.
//
// After Close its error is net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	return l.AcceptHandoff()
}

// AcceptHandoff is Accept with a *Conn for its result.
func (l *Listener) AcceptHandoff() (*Conn, error) {
	for {
		var conn *Conn
		var err error
		if waitErr := l.raw.Read(func(uintptr) bool {
			conn, err = l.take()
			return conn != nil || err != nil
		}); waitErr != nil {
			return nil, l.closed("accept")
		}
		if err != nil || l.admit == nil {
			return conn, err
		}
		// Here, where Close does not wait for it.
		if adopted, err := l.decide(conn); err != nil {
			return nil, err
		} else if adopted {
			return conn, nil
		}
	}
}

// take adopts what has arrived, or only takes it if it is to be decided on. Nothing if nothing has.
func (l *Listener) take() (*Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		conn, err := l.next()
		if conn == nil || l.admit != nil || conn.open(l.useSpare) {
			return conn, err
		}
	}
}

func (l *Listener) next() (*Conn, error) {
	if l.handle == nil {
		return nil, l.closed("accept")
	}
	if !l.haveSpare() {
		return nil, l.rejectAll()
	}
	arrival := C.no_arrival()
	status, err := call(func() (status C.handoff_status, err error) {
		if l.admit != nil {
			status, err = C.next_arrival(l.handle, &arrival)
		} else {
			status, err = C.handoff_backend_accept(l.handle, 0, &arrival)
		}
		return
	})
	if err != nil || status != C.HANDOFF_OK {
		return nil, err
	}
	return newConn(&arrival), nil
}

// haveSpare is for the moment before an adoption: a connection needs another descriptor after it.
func (l *Listener) haveSpare() bool {
	if l.spare == -1 {
		l.spare, _ = duplicate(C.handoff_backend_fd(l.handle))
	}
	return l.spare != -1
}

func (l *Listener) useSpare() {
	if l.spare != -1 {
		syscall.Close(l.spare)
		l.spare = -1
	}
}

// rejectAll leaves to the brokers what there are no descriptors for.
func (l *Listener) rejectAll() error {
	arrival := C.no_arrival()
	_, err := call(func() (status C.handoff_status, err error) {
		status, err = C.handoff_backend_dispatch(l.handle)
		for status == C.HANDOFF_OK {
			if status, err = C.handoff_backend_next(l.handle, &arrival); status == C.HANDOFF_OK {
				C.handoff_backend_reject(l.handle, arrival.id, C.HANDOFF_REASON_DESCRIPTOR_PRESSURE)
			}
		}
		return
	})
	return err
}

func (l *Listener) closed(op string) error {
	return &net.OpError{Op: op, Net: l.addr.Net, Addr: &l.addr, Err: net.ErrClosed}
}

// Close stops listening and ends every Accept. The brokers keep, and serve another way, what was not
// adopted yet; connections that were stay open. http.Server.Shutdown calls it, and then waits for these.
func (l *Listener) Close() error {
	runtime.SetFinalizer(l, nil)
	l.mu.Lock()
	handle := l.handle
	l.handle = nil
	if handle != nil {
		C.handoff_backend_free(handle)
		l.useSpare()
	}
	l.mu.Unlock()
	if handle == nil {
		return l.closed("close")
	}
	return l.ready.Close()
}

// Addr is the handoff socket.
func (l *Listener) Addr() net.Addr {
	return &l.addr
}

// isPressure tells whether the system lacks something that it may have again in a moment.
func isPressure(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// fileConn makes a connection of a descriptor, which it closes. It needs another one for a moment, and
// the client is adopted: so it uses the spare one. Another goroutine may be faster and take that: then it
// waits a little, and at last the client is lost.
func fileConn(fd int, useSpare func()) (net.Conn, error) {
	file := os.NewFile(uintptr(fd), "client")
	defer file.Close()
	conn, err := net.FileConn(file)
	if isPressure(err) {
		useSpare()
		conn, err = net.FileConn(file)
	}
	for end := time.Now().Add(time.Second); isPressure(err) && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
		conn, err = net.FileConn(file)
	}
	if err != nil {
		syscall.Shutdown(fd, syscall.SHUT_RDWR) // the broker may not have closed its copy yet
	}
	return conn, err
}
