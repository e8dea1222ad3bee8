// http_backend SOCKET serves handed-over HTTP connections with net/http.
//
// /hello greets the client by its address, /echo sends a body back, and /events?n=5&ms=200 sends five
// events, 200 milliseconds apart. SIGTERM: nothing new is taken, each request that has begun is
// answered, and the exit status is 0.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"libhandoff/handoff"
)

func hello(w http.ResponseWriter, r *http.Request) {
	// Of the metadata, if the broker sends it. X-Forwarded-For and its like are the client's own words.
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr // of a Unix socket
	}
	fmt.Fprintf(w, "hello %s\n", host)
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Write(body)
}

func events(w http.ResponseWriter, r *http.Request) {
	count, _ := strconv.Atoi(r.FormValue("n"))
	pause, _ := strconv.Atoi(r.FormValue("ms"))
	w.Header().Set("Content-Type", "text/event-stream")
	for number := 1; number <= count; number++ {
		fmt.Fprintf(w, "data: %d\n\n", number)
		w.(http.Flusher).Flush()
		if number == count {
			return
		}
		select {
		case <-time.After(time.Duration(pause) * time.Millisecond):
		case <-r.Context().Done(): // the client has gone, or cannot be read from any more
			panic(http.ErrAbortHandler) // without the last chunk: this is not all
		}
	}
}

// facts is what came with the connection.
func facts(w http.ResponseWriter, r *http.Request) {
	conn := handoff.FromContext(r.Context())
	fmt.Fprintf(w, "%s %s\nservice: %q\ncorrelation: %q\nmetadata: %q\ntls: %v\n", r.Method, r.URL,
		conn.Service, conn.Correlation, conn.Metadata, conn.TLS)
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: http_backend SOCKET")
	}
	stopped, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	listener, err := handoff.Listen(os.Args[1], nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %s\n", listener.Addr())

	mux := http.NewServeMux()
	mux.HandleFunc("/hello", hello)
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/", facts)
	server := http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Served-By", "handoff-go")
			mux.ServeHTTP(w, r)
		}),
		ConnContext:       handoff.ConnContext,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       60 * time.Second,
	}

	drained := make(chan error)
	go func() {
		<-stopped.Done()
		stop() // a second signal ends it at once
		drained <- server.Shutdown(context.Background())
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	if err := <-drained; err != nil {
		log.Fatal(err)
	}
}
