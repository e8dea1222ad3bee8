package handoff

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
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

// connected is a client's connection and what a broker has accepted of it.
func connected(t *testing.T) (client, accepted *net.TCPConn) {
	t.Helper()
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	conn, err := net.Dial("tcp", door.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := door.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); other.Close() })
	return conn.(*net.TCPConn), other.(*net.TCPConn)
}

// net/http asks every connection for its address, and a client can go at any moment.
func TestClientThatHasGoneHasAnAddress(t *testing.T) {
	client, accepted := connected(t)
	client.SetLinger(0)
	client.Close()
	accepted.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := accepted.Read(make([]byte, 1)); err == nil {
		t.Fatal("it has not gone")
	}
	file, err := accepted.File()
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

const patience = 30 * time.Second

func waitUntil(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func TestRoomOfAWaiterWhoseConnectionIsClosedIsTheNextOnes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "handoff.sock")
	broker, err := NewBroker(path, &BrokerOptions{Wait: 2 * patience})
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	broker.ready.Close() // from now on only this test has it work
	<-broker.done
	line := func() int {
		broker.mu.Lock()
		defer broker.mu.Unlock()
		return len(broker.queue)
	}
	var accepted [2]*net.TCPConn
	var ends [2]chan error
	for i := range ends {
		_, accepted[i] = connected(t)
		ends[i] = make(chan error, 1)
		go func(conn net.Conn, end chan error) {
			_, err := broker.Offer(context.Background(), conn, Offer{})
			end <- err
		}(accepted[i], ends[i])
		waitUntil(t, "it waits for a backend", func() bool { return line() == i+1 })
	}
	accepted[0].Close()

	listener, err := Listen(path, &ListenOptions{MaxInFlight: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			conn.Close()
		}
	}()
	waitUntil(t, "there is room for one", func() bool { broker.work(); return line() < 2 })
	if err := <-ends[0]; err == nil {
		t.Error("a closed connection was offered")
	}
	waitUntil(t, "the next one has it", func() bool { return line() == 0 })
	waitUntil(t, "that one is adopted", func() bool { broker.work(); return len(ends[1]) == 1 })
	if err := <-ends[1]; err != nil {
		t.Error(err)
	}
}
