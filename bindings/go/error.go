package handoff

// #include <handoff.h>
import "C"

import (
	"io"
	"net"
	"runtime"
	"syscall"
)

// A Status says what kind of error a call of the library returned. Compare an error with one by
// errors.Is: errors.Is(err, handoff.ErrFull). The library's header handoff/status.h says of each what
// to do about it.
type Status int32

// The kinds of errors of the library.
const (
	ErrInvalidArgument    Status = C.HANDOFF_ERR_INVALID_ARGUMENT
	ErrUnsupported        Status = C.HANDOFF_ERR_UNSUPPORTED
	ErrPermissionDenied   Status = C.HANDOFF_ERR_PERMISSION_DENIED
	ErrBackendUnavailable Status = C.HANDOFF_ERR_BACKEND_UNAVAILABLE
	ErrWouldBlock         Status = C.HANDOFF_ERR_WOULD_BLOCK
	ErrDescriptorPressure Status = C.HANDOFF_ERR_DESCRIPTOR_PRESSURE
	ErrSendFailed         Status = C.HANDOFF_ERR_SEND_FAILED
	ErrReceiveFailed      Status = C.HANDOFF_ERR_RECEIVE_FAILED
	ErrEndOfStream        Status = C.HANDOFF_ERR_END_OF_STREAM
	ErrFull               Status = C.HANDOFF_ERR_FULL
	ErrRandom             Status = C.HANDOFF_ERR_RANDOM
	ErrPeerUnknown        Status = C.HANDOFF_ERR_PEER_UNKNOWN
	ErrPeerNotAllowed     Status = C.HANDOFF_ERR_PEER_NOT_ALLOWED
	ErrAddressInUse       Status = C.HANDOFF_ERR_ADDRESS_IN_USE
	ErrNotASocket         Status = C.HANDOFF_ERR_NOT_A_SOCKET
	ErrListenFailed       Status = C.HANDOFF_ERR_LISTEN_FAILED
	ErrInternal           Status = C.HANDOFF_ERR_INTERNAL
	ErrRateLimited        Status = C.HANDOFF_ERR_RATE_LIMITED
	ErrTooLarge           Status = C.HANDOFF_ERR_TOO_LARGE
	ErrWrongProcess       Status = C.HANDOFF_ERR_WRONG_PROCESS
	ErrClosed             Status = C.HANDOFF_ERR_CLOSED
	ErrTakenBack          Status = C.HANDOFF_ERR_TAKEN_BACK
	ErrTooLate            Status = C.HANDOFF_ERR_TOO_LATE
	ErrSystem             Status = C.HANDOFF_ERR_SYSTEM
	ErrNoMemory           Status = C.HANDOFF_ERR_NO_MEMORY
	ErrNotTLS             Status = C.HANDOFF_ERR_NOT_TLS
	ErrTLSKeyUpdate       Status = C.HANDOFF_ERR_TLS_KEY_UPDATE
	ErrTLSAlert           Status = C.HANDOFF_ERR_TLS_ALERT
	ErrTLSRecord          Status = C.HANDOFF_ERR_TLS_RECORD
	ErrTooManyChannels    Status = C.HANDOFF_ERR_TOO_MANY_CHANNELS
)

// Error describes the status in general. An *Error has the details.
func (s Status) Error() string {
	return C.GoString(C.handoff_status_message(C.handoff_status(s)))
}

// String is the status's name in C.
func (s Status) String() string {
	return C.GoString(C.handoff_status_name(C.handoff_status(s)))
}

// An Error is a call of the library that failed.
type Error struct {
	Status  Status
	Errno   syscall.Errno // the system's error; 0 if the system had no part in it
	Message string        // names the socket and the descriptor, if there were any
}

func (e *Error) Error() string {
	return "handoff: " + e.Message
}

// Is makes errors.Is find the Status, and also net.ErrClosed after a Close, and io.ErrUnexpectedEOF
// where a client with TLS has ended its connection without close_notify.
func (e *Error) Is(target error) bool {
	switch target {
	case e.Status:
		return true
	case net.ErrClosed:
		return e.Status == ErrClosed
	case io.ErrUnexpectedEOF:
		return e.Status == ErrEndOfStream
	}
	return false
}

// Temporary tells whether the same call may succeed later: net/http then calls Accept again.
func (e *Error) Temporary() bool {
	return e.Status == ErrSystem || e.Status == ErrDescriptorPressure || e.Status == ErrNoMemory
}

// Timeout is false: it makes an *Error a net.Error.
func (e *Error) Timeout() bool { return false }

// Unwrap gives the system's error, if it had a part in it.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// call makes one call of the library, and an error of what it returns. The library keeps the message
// of an error for the thread, so the goroutine stays on it until it has the message.
func call(do func() (C.handoff_status, error)) (C.handoff_status, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	status, err := do()
	if status >= C.HANDOFF_OK {
		return status, nil
	}
	errno, _ := err.(syscall.Errno)
	return status, &Error{Status(status), errno, C.GoString(C.handoff_last_error())}
}
