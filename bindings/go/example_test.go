package handoff_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"libhandoff/handoff"
)

// A backend that serves HTTP, until http.Server.Shutdown drains it.
func ExampleListen() {
	directory, err := os.MkdirTemp("", "handoff-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(directory)
	path := filepath.Join(directory, "handoff.sock")

	listener, err := handoff.Listen(path, nil)
	if err != nil {
		log.Fatal(err)
	}
	server := http.Server{
		ConnContext: handoff.ConnContext,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn := handoff.FromContext(r.Context())
			fmt.Fprintf(w, "hello %s, you want %s\n", r.RemoteAddr, conn.Service)
		}),
	}
	go server.Serve(listener)

	fmt.Print(askThroughABroker(path))
	if err := server.Shutdown(context.Background()); err != nil {
		log.Fatal(err)
	}
	// Output: hello 203.0.113.7:51234, you want app
}

// A broker that reads what the client sends first, and serves it itself if the backend does not.
func ExampleBroker_Offer() {
	broker, err := handoff.NewBroker("/run/app/handoff.sock", nil) // nobody listens there
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()

	handOver := func(conn net.Conn) {
		preread := make([]byte, 4096)
		n, err := conn.Read(preread)
		if err != nil {
			conn.Close()
			return
		}
		verdict, err := broker.Offer(context.Background(), conn, handoff.Offer{Preread: preread[:n]})
		if err == nil && verdict.Adopted {
			return // conn is closed here, and the backend's
		}
		fmt.Fprintf(conn, "the broker answers %q\n", preread[:n])
		conn.(*net.TCPConn).CloseWrite() // the backend may have a copy
		conn.Close()
	}

	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer door.Close()
	go func() {
		for {
			conn, err := door.Accept()
			if err != nil {
				return
			}
			go handOver(conn)
		}
	}()

	client, err := net.Dial("tcp", door.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "ping")
	answer, err := bufio.NewReader(client).ReadString('\n')
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(answer)
	// Output: the broker answers "ping"
}

// askThroughABroker is the body of the answer to a client whose connection is handed over.
func askThroughABroker(path string) string {
	broker, err := handoff.NewBroker(path, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer door.Close()
	client, err := net.Dial("tcp", door.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	accepted, err := door.Accept()
	if err != nil {
		log.Fatal(err)
	}
	verdict, err := broker.Offer(context.Background(), accepted, handoff.Offer{
		Preread:  []byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
		Metadata: []byte(`{"client":{"address":"203.0.113.7","port":51234}}`),
		Service:  "app",
	})
	if err != nil || !verdict.Adopted {
		log.Fatal(verdict.Reason, err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(client), nil)
	if err != nil {
		log.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		log.Fatal(err)
	}
	return string(body)
}
