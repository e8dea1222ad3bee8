package handoff_test

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"libhandoff/handoff"
)

// patience is for what should happen at once: only a fault takes so long.
const patience = 30 * time.Second

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func socketPath(t *testing.T) string {
	return filepath.Join(t.TempDir(), "handoff.sock")
}

func listen(t *testing.T, path string) *handoff.Listener {
	t.Helper()
	listener, err := handoff.Listen(path, nil)
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	return listener
}

func newBroker(t *testing.T, path string, options *handoff.BrokerOptions) *handoff.Broker {
	t.Helper()
	broker, err := handoff.NewBroker(path, options)
	must(t, err)
	t.Cleanup(func() { broker.Close() })
	return broker
}

// pair is a client's connection and what a broker has accepted of it.
func pair(t *testing.T) (client, accepted *net.TCPConn) {
	t.Helper()
	door, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer door.Close()
	conn, err := net.Dial("tcp", door.Addr().String())
	must(t, err)
	other, err := door.Accept()
	must(t, err)
	t.Cleanup(func() { conn.Close(); other.Close() })
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn.(*net.TCPConn), other.(*net.TCPConn)
}

// accept takes what arrives next.
func accept(t *testing.T, listener *handoff.Listener) <-chan *handoff.Conn {
	conns := make(chan *handoff.Conn, 1)
	go func() {
		conn, err := listener.AcceptHandoff()
		if err != nil {
			t.Error(err)
		}
		conns <- conn
	}()
	return conns
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	must(t, err)
	return string(data)
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func waitUntil(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}
