package handoff

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// UseSpare is for tests outside.
func (l *Listener) UseSpare() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.useSpare()
}

// net/http asks every connection for its address, and a client can go at any moment.
func TestClientThatHasGoneHasAnAddress(t *testing.T) {
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	client, err := net.Dial("tcp", door.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := door.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	client.(*net.TCPConn).SetLinger(0)
	client.Close()
	accepted.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := accepted.Read(make([]byte, 1)); err == nil {
		t.Fatal("it has not gone")
	}
	file, err := accepted.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := syscall.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	conn := Conn{fd: fd}
	if !conn.open(func() {}) {
		t.Fatal("it cannot be a connection")
	}
	defer conn.Close()
	if conn.conn.RemoteAddr() != nil {
		t.Fatal("the system still knows it")
	}
	if got := conn.RemoteAddr().String(); got != "0.0.0.0:0" {
		t.Error(got)
	}
}

// failing is a listener whose backend cannot do its work twice.
type failing struct{ errs []error }

func (l *failing) Accept() (net.Conn, error) {
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}
func (l *failing) Close() error   { return nil }
func (l *failing) Addr() net.Addr { return &net.UnixAddr{} }

func TestHTTPServerGoesOnAfterAnErrorThatPasses(t *testing.T) {
	end := &Error{Status: ErrWrongProcess}
	server := http.Server{ErrorLog: log.New(io.Discard, "", 0)}
	listener := &failing{[]error{&Error{Status: ErrSystem}, &Error{Status: ErrDescriptorPressure}, end}}
	if err := server.Serve(listener); !errors.Is(err, end) || len(listener.errs) > 0 {
		t.Error(err, listener.errs)
	}
}
