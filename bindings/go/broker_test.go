package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"libhandoff/handoff"
)

// stillServes checks that a connection that was not handed over is as it was.
func stillServes(t *testing.T, client, accepted net.Conn) {
	t.Helper()
	must(t, accepted.SetDeadline(time.Now().Add(patience)))
	io.WriteString(client, "ping")
	buffer := make([]byte, 4)
	_, err := io.ReadFull(accepted, buffer)
	must(t, err)
	accepted.Write(buffer)
	_, err = io.ReadFull(client, buffer)
	must(t, err)
	if string(buffer) != "ping" {
		t.Errorf("%q", buffer)
	}
}

// serve answers each connection with what it sends.
func serve(listener *handoff.Listener, served *int64) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
			atomic.AddInt64(served, 1)
		}()
	}
}

func TestOffersOfManyGoroutines(t *testing.T) {
	const clients = 1000
	directory := t.TempDir() + "/"
	before := descriptors(t)
	var served [2]int64
	var listeners []*handoff.Listener
	for i := range served {
		listeners = append(listeners, listen(t, fmt.Sprintf("%s%d.sock", directory, i)))
		go serve(listeners[i], &served[i])
	}
	broker := newBroker(t, directory, &handoff.BrokerOptions{MaxInFlight: 4, Wait: patience})
	door, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer door.Close()
	var adopted int64
	go func() {
		for {
			conn, err := door.Accept()
			if err != nil {
				return
			}
			go func() {
				verdict, err := broker.Offer(context.Background(), conn,
					handoff.Offer{Preread: []byte("preread ")})
				if err == nil && verdict.Adopted {
					atomic.AddInt64(&adopted, 1)
					return
				}
				t.Error(verdict, err)
				conn.Close()
			}()
		}
	}()
	var group sync.WaitGroup
	for worker := 0; worker < 50; worker++ {
		group.Add(1)
		go func(worker int) {
			defer group.Done()
			for i := 0; i < clients/50; i++ {
				conn, err := net.Dial("tcp", door.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				message := fmt.Sprintf("%d %d", worker, i)
				conn.SetDeadline(time.Now().Add(patience))
				io.WriteString(conn, message)
				conn.(*net.TCPConn).CloseWrite()
				got, err := io.ReadAll(conn)
				if err != nil || string(got) != "preread "+message {
					t.Errorf("%q %v", got, err)
				}
				conn.Close()
			}
		}(worker)
	}
	group.Wait()
	waitUntil(t, "all are served", func() bool {
		return atomic.LoadInt64(&served[0])+atomic.LoadInt64(&served[1]) == clients &&
			atomic.LoadInt64(&adopted) == clients
	})
	if atomic.LoadInt64(&served[0]) == 0 || atomic.LoadInt64(&served[1]) == 0 {
		t.Error("one of them had none")
	}
	must(t, broker.Close())
	for _, listener := range listeners {
		must(t, listener.Close())
	}
	must(t, door.Close())
	waitUntil(t, "no descriptor is left", func() bool { return descriptors(t) <= before })
}

func TestWithoutABackendTheConnectionIsStillTheBrokers(t *testing.T) {
	broker := newBroker(t, socketPath(t), &handoff.BrokerOptions{Wait: 50 * time.Millisecond})
	client, accepted := pair(t)
	verdict, err := broker.Offer(context.Background(), accepted, handoff.Offer{})
	if !errors.Is(err, handoff.ErrBackendUnavailable) || !errors.Is(err, os.ErrNotExist) ||
		verdict.Adopted || verdict.Reason != handoff.ReasonBackendUnavailable || !verdict.Reason.MayPass() {
		t.Error(verdict, err)
	}
	stillServes(t, client, accepted)
}

func TestOfferWaitsForABackendThatComesLater(t *testing.T) {
	path := socketPath(t)
	broker := newBroker(t, path, &handoff.BrokerOptions{Wait: patience})
	verdicts := make(chan handoff.Verdict, 10)
	for i := 0; i < cap(verdicts); i++ {
		_, accepted := pair(t)
		go func() {
			verdict, err := broker.Offer(context.Background(), accepted, handoff.Offer{})
			if err != nil {
				t.Error(err)
			}
			verdicts <- verdict
		}()
	}
	time.Sleep(20 * time.Millisecond)
	var served int64
	go serve(listen(t, path), &served)
	for i := 0; i < cap(verdicts); i++ {
		if verdict := <-verdicts; !verdict.Adopted {
			t.Error(verdict.Reason)
		}
	}
}

func TestOfferIsTakenBackWhenTheContextIsDone(t *testing.T) {
	path := socketPath(t)
	listener := listen(t, path)
	broker := newBroker(t, path, nil)
	conns := accept(t, listener)
	_, first := pair(t)
	_, err := broker.Offer(context.Background(), first, handoff.Offer{})
	must(t, err)
	(<-conns).Close()
	// Now there is a channel, and nobody accepts.
	client, accepted := pair(t)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	verdict, err := broker.Offer(ctx, accepted, handoff.Offer{})
	if !errors.Is(err, context.DeadlineExceeded) || verdict.Adopted || !verdict.MayHaveReachedBackend {
		t.Error(verdict, err)
	}
	stillServes(t, client, accepted)
	_, err = broker.Offer(ctx, accepted, handoff.Offer{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	// What was taken back is not accepted.
	conns = accept(t, listener)
	_, last := pair(t)
	_, err = broker.Offer(context.Background(), last, handoff.Offer{Correlation: "last"})
	must(t, err)
	if conn := <-conns; conn.Correlation != "last" {
		t.Error(conn.Correlation)
	}
}

func TestFullWaitsForRoomThenGivesUp(t *testing.T) {
	path := socketPath(t)
	listener := listen(t, path)
	broker := newBroker(t, path, &handoff.BrokerOptions{MaxInFlight: 1, Wait: 200 * time.Millisecond})
	conns := accept(t, listener)
	_, first := pair(t)
	_, err := broker.Offer(context.Background(), first, handoff.Offer{})
	must(t, err)
	(<-conns).Close()

	errs := make(chan error, 5)
	for i := 0; i < cap(errs); i++ {
		_, accepted := pair(t)
		go func() {
			_, err := broker.Offer(context.Background(), accepted, handoff.Offer{})
			errs <- err
		}()
	}
	for i := 0; i < cap(errs)-1; i++ {
		if err := <-errs; !errors.Is(err, handoff.ErrFull) {
			t.Error(err)
		}
	}
	(<-accept(t, listener)).Close()
	must(t, <-errs)
}

func TestCloseGivesEachOfferItsEnd(t *testing.T) {
	path := socketPath(t)
	listener := listen(t, path)
	broker := newBroker(t, path, &handoff.BrokerOptions{MaxInFlight: 1, Wait: patience})
	conns := accept(t, listener)
	_, first := pair(t)
	_, err := broker.Offer(context.Background(), first, handoff.Offer{})
	must(t, err)
	(<-conns).Close()
	type end struct {
		verdict handoff.Verdict
		err     error
	}
	ends := make(chan end, 4)
	for i := 0; i < cap(ends); i++ {
		_, accepted := pair(t)
		go func() {
			verdict, err := broker.Offer(context.Background(), accepted, handoff.Offer{})
			ends <- end{verdict, err}
		}()
	}
	time.Sleep(50 * time.Millisecond)
	must(t, broker.Close())
	closed := 0
	for i := 0; i < cap(ends); i++ {
		switch end := <-ends; {
		case errors.Is(end.err, net.ErrClosed):
			closed++
		case end.err != nil || end.verdict.Reason != handoff.ReasonBrokerClosed ||
			end.verdict.Reason.MayPass():
			t.Error(end)
		}
	}
	if closed != cap(ends)-1 {
		t.Error(closed)
	}
	_, accepted := pair(t)
	if _, err := broker.Offer(context.Background(), accepted, handoff.Offer{}); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := broker.Close(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestWhatCannotBeOfferedIsRefused(t *testing.T) {
	path := socketPath(t)
	listener := listen(t, path)
	broker := newBroker(t, path, nil)
	pipe, other := net.Pipe()
	defer other.Close()
	if _, err := broker.Offer(context.Background(), pipe, handoff.Offer{}); !errors.Is(err, handoff.ErrInvalidArgument) {
		t.Error(err)
	}
	client, accepted := pair(t)
	conns := accept(t, listener)
	_, err := broker.Offer(context.Background(), accepted, handoff.Offer{Preread: make([]byte, 1<<17)})
	if !errors.Is(err, handoff.ErrTooLarge) {
		t.Error(err)
	}
	stillServes(t, client, accepted)
	_, err = broker.Offer(context.Background(), accepted, handoff.Offer{Metadata: []byte("x")})
	must(t, err)
	if conn := <-conns; string(conn.Metadata) != "x" {
		t.Error(conn.Metadata)
	}
}

// A closed descriptor that stayed in an epoll set, because the backend has a copy of the connection, would
// give its events to whatever has its number next.
func TestAdoptedConnectionIsOutOfThePoller(t *testing.T) {
	path := socketPath(t)
	conns := accept(t, listen(t, path))
	_, accepted := pair(t)
	var name string
	raw, err := accepted.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(number uintptr) {
		name, _ = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", number))
	}))
	if count := watches(t, name); count != 1 {
		t.Fatalf("the poller has it %d times before", count)
	}
	_, err = newBroker(t, path, nil).Offer(context.Background(), accepted, handoff.Offer{})
	must(t, err)
	defer (<-conns).Close()
	// The backend is in this process, too, and has a descriptor of the same socket.
	if count := watches(t, name); count != 1 {
		t.Errorf("the poller has it %d times", count)
	}
}

// watches counts how often a socket, "socket:[INODE]", is in this process's epoll sets.
func watches(t *testing.T, name string) (count int) {
	t.Helper()
	var inode uint64
	if _, err := fmt.Sscanf(name, "socket:[%d]", &inode); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	must(t, err)
	for _, file := range files {
		content, _ := os.ReadFile(file)
		for _, line := range strings.Split(string(content), "\n") {
			var found uint64
			if at := strings.Index(line, "ino:"); at != -1 && strings.HasPrefix(line, "tfd:") {
				fmt.Sscanf(line[at:], "ino:%x", &found)
				if found == inode {
					count++
				}
			}
		}
	}
	return count
}
