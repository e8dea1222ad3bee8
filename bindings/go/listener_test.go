package handoff_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"libhandoff/handoff"
)

// handOver has a connection adopted, and gives the client's end and the backend's.
func handOver(t *testing.T, offer handoff.Offer) (*net.TCPConn, *handoff.Conn) {
	t.Helper()
	path := socketPath(t)
	conns := accept(t, listen(t, path))
	client, accepted := pair(t)
	verdict, err := newBroker(t, path, nil).Offer(context.Background(), accepted, offer)
	must(t, err)
	if !verdict.Adopted || verdict.Backend != path {
		t.Fatalf("%+v", verdict)
	}
	conn := <-conns
	t.Cleanup(func() { conn.Close() })
	return client, conn
}

func TestPrereadComesFirst(t *testing.T) {
	client, conn := handOver(t, handoff.Offer{Preread: []byte("first "), Metadata: []byte("\xff{"),
		Service: "app", Correlation: "r-1"})
	io.WriteString(client, "second")
	must(t, client.CloseWrite())
	if got := readAll(t, conn); got != "first second" {
		t.Errorf("%q", got)
	}
	if string(conn.Metadata) != "\xff{" || conn.Service != "app" || conn.Correlation != "r-1" ||
		conn.TLS || conn.Broker.Pid != os.Getpid() || int(conn.Broker.UID) != os.Geteuid() {
		t.Errorf("%+v", conn)
	}
}

func TestPrereadIsReadInPiecesOfAnySize(t *testing.T) {
	for size := 1; size < 8; size++ {
		client, conn := handOver(t, handoff.Offer{Preread: []byte("preread")})
		io.WriteString(client, "rest")
		must(t, client.CloseWrite())
		if got := readAll(t, readerOf(conn, size)); got != "prereadrest" {
			t.Errorf("by %d: %q", size, got)
		}
	}
}

// readerOf reads at most so many bytes at a time.
func readerOf(r io.Reader, size int) io.Reader {
	reader, writer := io.Pipe()
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{writer}, struct{ io.Reader }{r}, make([]byte, size))
		writer.CloseWithError(err)
	}()
	return reader
}

func TestRemoteAddrIsWhomTheMetadataNames(t *testing.T) {
	for metadata, expected := range map[string]string{
		`{"client":{"address":"203.0.113.7","port":51234}}`: "203.0.113.7:51234",
		`{"client":{"address":"2001:db8::1","port":1}}`:     "[2001:db8::1]:1",
		`{"client":{"address":"2001:db8::1"}}`:              "[2001:db8::1]:0",
		`{"client":{"address":"unix:"}}`:                    "",
		`{"Client":{"address":"192.0.2.9"}}`:                "peer",
		`{"client":{"Address":"192.0.2.9"}}`:                "peer",
		`{"client":{"address":"192.0.2.9","port":-1}}`:      "peer",
		`{"client":{"address":"x"}}`:                        "peer",
		`{"client":[]}`:                                     "peer",
		`{"server":{}}`:                                     "peer",
		`7`:                                                 "peer",
		`null`:                                              "peer",
		"\xff":                                              "peer",
		"":                                                  "peer",
	} {
		client, conn := handOver(t, handoff.Offer{Metadata: []byte(metadata)})
		if expected == "peer" {
			expected = client.LocalAddr().String()
		}
		if got := conn.RemoteAddr().String(); got != expected {
			t.Errorf("%s: %s", metadata, got)
		}
	}
}

func TestStandardMetadataHasAllThatNginxSends(t *testing.T) {
	_, conn := handOver(t, handoff.Offer{Metadata: []byte(`{"module":"http",
		"client":{"address":"203.0.113.7","port":51234},"server":{"address":"192.0.2.1","port":443},
		"scheme":"https","tls":{"version":"TLSv1.3","cipher":"TLS_AES_128_GCM_SHA256","sni":"a.example",
		"alpn":"http/1.1","client_certificate":{"verify":"SUCCESS","sha1":"00ff"}},
		"request_id":"8d7c","location":"/","user":"more"}`)})
	metadata, err := conn.StandardMetadata()
	must(t, err)
	got := fmt.Sprintf("%+v %+v %+v", *metadata, *metadata.TLS, *metadata.TLS.ClientCertificate)
	for _, expected := range []string{"Module:http Client:{Address:203.0.113.7 Port:51234} " +
		"Server:{Address:192.0.2.1 Port:443} Scheme:https", "RequestID:8d7c Location:/",
		"Version:TLSv1.3 Cipher:TLS_AES_128_GCM_SHA256 SNI:a.example ALPN:http/1.1",
		"{Verify:SUCCESS SHA1:00ff}"} {
		if !strings.Contains(got, expected) {
			t.Errorf("%s: not %s", got, expected)
		}
	}
}

func TestNamesInMetadataMatchExactly(t *testing.T) {
	metadata, err := handoff.ParseMetadata([]byte(`{
		"client":{"address":"203.0.113.7","Address":"192.0.2.9","port":1,"PORT":2},
		"tls":{"sni":"a.example","SNI":"b.example",
		"client_certificate":{"verify":"FAILED","Verify":"SUCCESS"}}}`))
	must(t, err)
	if metadata.Client != (handoff.Endpoint{Address: "203.0.113.7", Port: 1}) ||
		metadata.TLS.SNI != "a.example" || metadata.TLS.ClientCertificate.Verify != "FAILED" {
		t.Errorf("%+v %+v %+v", metadata, metadata.TLS, metadata.TLS.ClientCertificate)
	}
}

func TestStreamEndsThoughTheBrokerKeepsItsCopy(t *testing.T) {
	for name, end := range map[string]func(*handoff.Conn) error{
		"Close": (*handoff.Conn).Close, "CloseWrite": (*handoff.Conn).CloseWrite,
	} {
		path := socketPath(t)
		conns := accept(t, listen(t, path))
		client, accepted := pair(t)
		copied, err := accepted.File()
		must(t, err)
		defer copied.Close()
		_, err = newBroker(t, path, nil).Offer(context.Background(), accepted, handoff.Offer{})
		must(t, err)
		conn := <-conns
		io.WriteString(conn, name)
		must(t, end(conn))
		if got := readAll(t, client); got != name {
			t.Errorf("%q", got)
		}
		conn.Close()
	}
}

func TestDeadlines(t *testing.T) {
	_, conn := handOver(t, handoff.Offer{Preread: []byte("x")})
	must(t, conn.SetReadDeadline(time.Now()))
	buffer := make([]byte, 10)
	if n, err := conn.Read(buffer); n != 1 || err != nil {
		t.Error(n, err)
	}
	if _, err := conn.Read(buffer); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func TestCloseEndsAccept(t *testing.T) {
	listener := listen(t, socketPath(t))
	ended := make(chan error)
	for i := 0; i < 3; i++ {
		go func() {
			_, err := listener.Accept()
			ended <- err
		}()
	}
	time.Sleep(10 * time.Millisecond)
	must(t, listener.Close())
	for i := 0; i < 3; i++ {
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	var told *net.OpError
	if err := listener.Close(); !errors.Is(err, net.ErrClosed) || !errors.As(err, &told) ||
		told.Op != "close" {
		t.Error(err)
	}
	if _, err := os.Stat(listener.Addr().String()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestListenerThatIsDroppedIsClosed(t *testing.T) {
	before := descriptors(t)
	path := socketPath(t)
	_, err := handoff.Listen(path, nil)
	must(t, err)
	waitUntil(t, "it is closed", func() bool {
		runtime.GC()
		_, err := os.Stat(path)
		return errors.Is(err, os.ErrNotExist) && descriptors(t) <= before
	})
	listen(t, path)
}

func TestErrorsAreOfTheirKind(t *testing.T) {
	path := socketPath(t)
	listen(t, path)
	_, err := handoff.Listen(path, nil)
	var details *handoff.Error
	if !errors.Is(err, handoff.ErrAddressInUse) || errors.Is(err, handoff.ErrFull) ||
		!errors.As(err, &details) || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
	if handoff.ErrFull.String() != "HANDOFF_ERR_FULL" || handoff.ReasonKind.String() == "unknown" {
		t.Error(handoff.ErrFull.String(), handoff.ReasonKind)
	}
	_, err = handoff.Listen(filepath.Join(t.TempDir(), "missing", "x"), nil)
	if !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	_, err = handoff.Listen(path+"2", &handoff.ListenOptions{Mode: 01777})
	if !errors.Is(err, handoff.ErrInvalidArgument) {
		t.Error(err)
	}
}

func TestNumberThatDoesNotFitIsRefused(t *testing.T) {
	path := socketPath(t)
	refused := func(what string, err error) {
		if !errors.Is(err, handoff.ErrInvalidArgument) || !strings.Contains(err.Error(), what+" cannot be") {
			t.Error(what, err)
		}
	}
	for what, options := range map[string]handoff.ListenOptions{
		"Backlog": {Backlog: -1}, "MaxChannels": {MaxChannels: -1}, "MaxInFlight": {MaxInFlight: -1},
		"MaxOfferBytes": {MaxOfferBytes: -1}, "MaxHeldBytes": {MaxHeldBytes: -2},
	} {
		_, err := handoff.Listen(path, &options)
		refused(what, err)
	}
	if large := math.MaxInt32; strconv.IntSize > 32 {
		_, err := handoff.Listen(path, &handoff.ListenOptions{Backlog: 2 * (large + 1)})
		refused("Backlog", err)
	}
	for what, options := range map[string]handoff.BrokerOptions{
		"MaxInFlight": {MaxInFlight: -1}, "MaxFailures": {MaxFailures: -2}, "Timeout": {Timeout: -1},
		"AttemptTimeout": {AttemptTimeout: -1}, "FailurePeriod": {FailurePeriod: -1},
	} {
		_, err := handoff.NewBroker(path, &options)
		refused(what, err)
	}
	listener, err := handoff.Listen(path, &handoff.ListenOptions{MaxHeldBytes: -1})
	must(t, err)
	defer listener.Close()
	broker, err := handoff.NewBroker(path, &handoff.BrokerOptions{MaxFailures: -1})
	must(t, err)
	broker.Close()
}

func TestNULIsRefused(t *testing.T) {
	path := socketPath(t)
	listen(t, path)
	broker := newBroker(t, path, nil)
	_, accepted := pair(t)
	refused := func(what string, err error) {
		if !errors.Is(err, handoff.ErrInvalidArgument) || !strings.Contains(err.Error(), what+" has a NUL") {
			t.Error(what, err)
		}
	}
	_, err := handoff.Listen(path+"2\x00.other", nil)
	refused("path", err)
	_, err = handoff.NewBroker(path+"\x00.other", nil)
	refused("path", err)
	_, err = broker.Offer(context.Background(), accepted, handoff.Offer{Service: "public\x00admin"})
	refused("service", err)
	_, err = broker.Offer(context.Background(), accepted, handoff.Offer{Correlation: "a\x00b"})
	refused("correlation", err)
}

func TestPolicyKeepsOutWhoIsNotNamed(t *testing.T) {
	path := socketPath(t)
	listener, err := handoff.Listen(path, &handoff.ListenOptions{Policy: handoff.Policy{
		Users: []uint32{uint32(os.Geteuid()) + 1}, Groups: []uint32{4000000000}}})
	must(t, err)
	defer listener.Close()
	go listener.Accept()
	_, accepted := pair(t)
	broker := newBroker(t, path, &handoff.BrokerOptions{Wait: 50 * time.Millisecond})
	_, err = broker.Offer(context.Background(), accepted, handoff.Offer{})
	if !errors.Is(err, handoff.ErrPermissionDenied) && !errors.Is(err, handoff.ErrBackendUnavailable) {
		t.Error(err)
	}
}

func TestConnectionOfARequestIsFoundBehindTLS(t *testing.T) {
	path := socketPath(t)
	listener := listen(t, path)
	broker := newBroker(t, path, nil)
	server := httptest.Server{Listener: listener, Config: &http.Server{
		ConnContext: handoff.ConnContext,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if conn := handoff.FromContext(r.Context()); conn != nil {
				io.WriteString(w, conn.Service)
			}
		}),
	}}
	server.StartTLS()
	defer server.Close()
	client := server.Client()
	client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn,
		error) {
		conn, accepted := pair(t)
		_, err := broker.Offer(ctx, accepted, handoff.Offer{Service: "app"})
		return conn, err
	}
	response, err := client.Get("https://example.com/")
	must(t, err)
	defer response.Body.Close()
	if got := readAll(t, response.Body); got != "app" {
		t.Errorf("%q", got)
	}
}

func TestConnectionThatWasNotHandedOverIsNotFound(t *testing.T) {
	_, accepted := pair(t)
	for _, conn := range []net.Conn{accepted, tls.Server(tls.Server(accepted, nil), nil)} {
		ctx := handoff.ConnContext(context.Background(), conn)
		if handoff.FromContext(ctx) != nil || handoff.FromContext(context.Background()) != nil {
			t.Errorf("%T", conn)
		}
	}
}

func TestListenFile(t *testing.T) {
	path := socketPath(t)
	door, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	must(t, err)
	defer door.Close()
	file, err := door.File()
	must(t, err)
	defer file.Close()
	listener, err := handoff.ListenFile(file, nil)
	must(t, err)
	defer listener.Close()
	conns := accept(t, listener)
	_, accepted := pair(t)
	_, err = newBroker(t, path, nil).Offer(context.Background(), accepted, handoff.Offer{})
	must(t, err)
	(<-conns).Close()
}

func TestHTTPServerServesAndDrains(t *testing.T) {
	before := descriptors(t)
	path := socketPath(t)
	listener := listen(t, path)
	broker := newBroker(t, path, nil)
	mux := http.NewServeMux()
	begun, finish := make(chan bool, 1), make(chan bool)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.RemoteAddr, handoff.FromContext(r.Context()).Service)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		begun <- true
		<-finish
		io.WriteString(w, "done")
	})
	server := http.Server{Handler: mux, ConnContext: handoff.ConnContext}
	served := make(chan error)
	go func() { served <- server.Serve(listener) }()

	request := func(what string) *net.TCPConn {
		client, accepted := pair(t)
		verdict, err := broker.Offer(context.Background(), accepted, handoff.Offer{Service: "app",
			Preread:  []byte("GET " + what + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
			Metadata: []byte(`{"client":{"address":"203.0.113.7","port":5}}`)})
		must(t, err)
		if !verdict.Adopted {
			t.Fatal(verdict.Reason)
		}
		return client
	}
	for i := 0; i < 20; i++ {
		client := request("/")
		if got := readAll(t, client); !strings.HasSuffix(got, "\r\n\r\n203.0.113.7:5 app") {
			t.Fatal(got)
		}
		client.Close()
	}
	slow := request("/slow")
	<-begun
	ended := make(chan error)
	go func() { ended <- server.Shutdown(context.Background()) }()
	if err := <-served; err != http.ErrServerClosed {
		t.Error(err)
	}
	close(finish)
	if got := readAll(t, slow); !strings.HasSuffix(got, "\r\n\r\ndone") {
		t.Error(got)
	}
	must(t, <-ended)
	slow.Close()
	must(t, broker.Close())
	waitUntil(t, "no descriptor is left", func() bool { return descriptors(t) <= before })
}
