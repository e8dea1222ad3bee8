package handoff

// #include <handoff.h>
import "C"

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// goodbye is how long Close waits for room to say close_notify, as in crypto/tls.
const goodbye = 5 * time.Second

// A Conn is a connection that was handed over, and what came with it. Reading it gives first what the
// broker has read from the client.
type Conn struct {
	Arrival

	conn net.Conn
	fd   int // until conn is made of it
	raw  syscall.RawConn

	reading sync.Mutex
	readErr error // after which nothing more can be received

	end    sync.Once
	endErr error
}

var (
	_ net.Conn                        = (*Conn)(nil)
	_ syscall.Conn                    = (*Conn)(nil)
	_ io.ReaderFrom                   = (*Conn)(nil)
	_ interface{ CloseWrite() error } = (*Conn)(nil)
)

// newConn copies what is the library's until the next arrival.
func newConn(arrival *C.handoff_arrival) *Conn {
	return &Conn{
		Arrival: Arrival{
			Metadata:    C.GoBytes(arrival.metadata, C.int(arrival.metadata_len)),
			Service:     C.GoString(arrival.service),
			Correlation: C.GoString(arrival.correlation),
			Broker: Process{int(arrival.broker_pid), uint32(arrival.broker_uid),
				uint32(arrival.broker_gid)},
			TLS:     arrival.tls != 0,
			id:      arrival.id,
			preread: C.GoBytes(arrival.preread, C.int(arrival.preread_len)),
		},
		fd: int(arrival.fd),
	}
}

// open makes a net.Conn of the descriptor. False if it cannot be one, which ends the connection.
func (c *Conn) open(useSpare func()) bool {
	conn, err := fileConn(c.fd, useSpare)
	if err != nil {
		return false
	}
	c.conn = conn
	// It fails for none that was just made.
	c.raw, _ = conn.(syscall.Conn).SyscallConn()
	return true
}

// Read gives what the broker has read, then what the client sends.
//
// With TLS it gives nothing but data, and io.EOF after the client's close_notify. If the client ends
// the connection without, it fails with ErrEndOfStream, and if the client changes its key, which nobody
// can follow here, with ErrTLSKeyUpdate; see handoff/tls.h. After such an error close the connection.
func (c *Conn) Read(b []byte) (int, error) {
	c.reading.Lock()
	if len(c.preread) > 0 {
		n := copy(b, c.preread)
		c.preread = c.preread[n:]
		c.reading.Unlock()
		return n, nil
	}
	c.preread = nil // it may be large
	c.reading.Unlock()
	if !c.TLS || len(b) == 0 {
		return c.conn.Read(b)
	}
	return c.receive(b)
}

func (c *Conn) receive(b []byte) (int, error) {
	var received C.size_t
	var err error
	waitErr := c.raw.Read(func(fd uintptr) bool {
		if err = c.readErr; err != nil {
			return true
		}
		var status C.handoff_status
		status, err = call(func() (status C.handoff_status, err error) {
			status, err = C.handoff_tls_receive(C.int(fd), unsafe.Pointer(&b[0]), C.size_t(len(b)), 0,
				&received)
			return
		})
		if status == C.HANDOFF_OK && received == 0 {
			err = io.EOF
		}
		c.readErr = err
		return status != C.HANDOFF_TIMED_OUT
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return int(received), err
}

// Write sends to the client.
//
// With TLS it may not fail when the client has gone: Linux 6.1 takes what is written and drops it. So a
// handler that only writes looks at its request's Context, which ends when net/http cannot read any more.
func (c *Conn) Write(b []byte) (int, error) {
	return c.conn.Write(b)
}

// ReadFrom sends what it reads, by sendfile(2) or splice(2) where that is possible.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(c.conn, r)
}

// CloseWrite ends what is sent, with close_notify if the client speaks TLS.
func (c *Conn) CloseWrite() error {
	c.end.Do(func() {
		if !c.TLS {
			c.endErr = c.conn.(interface{ CloseWrite() error }).CloseWrite()
			return
		}
		var err error
		waitErr := c.raw.Write(func(fd uintptr) bool {
			var status C.handoff_status
			status, err = call(func() (status C.handoff_status, err error) {
				status, err = C.handoff_tls_shutdown(C.int(fd), 0)
				return
			})
			return status != C.HANDOFF_TIMED_OUT
		})
		if c.endErr = waitErr; waitErr == nil {
			c.endErr = err
		}
	})
	return c.endErr
}

// Close ends the connection. It does what CloseWrite does first: a plain close would end nothing while
// the broker still has its copy.
func (c *Conn) Close() error {
	if c.TLS {
		c.conn.SetWriteDeadline(time.Now().Add(goodbye))
	}
	c.CloseWrite() // it fails where the client has gone, which is no news
	return c.conn.Close()
}

// LocalAddr is where the client has connected to.
func (c *Conn) LocalAddr() net.Addr {
	return c.conn.LocalAddr()
}

// RemoteAddr is the client as the standard metadata names it, behind whatever proxies; without it, the
// connection's peer. No header that the client sends can change it.
func (c *Conn) RemoteAddr() net.Addr {
	if metadata, err := c.StandardMetadata(); err == nil {
		if addr := metadata.Client.addr(); addr != nil {
			return addr
		}
	}
	if addr := c.conn.RemoteAddr(); addr != nil {
		return addr
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv4Unspecified(), 0)) // it has gone
}

// SetDeadline sets the deadlines of Read and Write, as of any net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.conn.SetDeadline(t) }

// SetReadDeadline sets the deadline of Read. What the broker has read comes even after it.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// SetWriteDeadline sets the deadline of Write and CloseWrite.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// SyscallConn gives the descriptor. What the broker has read does not come from it.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

type connKey struct{}

// ConnContext is for http.Server.ConnContext: FromContext then finds the connection of a request.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// FromContext is the connection of a request, by its Context; nil if it was not handed over. It is also
// found behind a *tls.Conn, or another connection with a method NetConn, which then has the reading.
func FromContext(ctx context.Context) *Conn {
	for conn := ctx.Value(connKey{}); ; {
		switch outer := conn.(type) {
		case *Conn:
			return outer
		case interface{ NetConn() net.Conn }:
			conn = outer.NetConn()
		default:
			return nil
		}
	}
}
