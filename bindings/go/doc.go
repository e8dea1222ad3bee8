// Package handoff passes accepted connections between processes of one host, by libhandoff.
//
// A broker has accepted a client, and offers its connection with what it has read from it. A backend
// adopts the connection, and from then on talks to the client directly. What the backend does not adopt
// is still the broker's to serve another way; the two never both serve a client.
//
// The backend's end is a net.Listener:
//
//	listener, err := handoff.Listen("/run/app/handoff.sock", nil)
//	...
//	err = http.Serve(listener, mux)
//
// The broker's end is Broker.Offer. Any goroutine may use either end. No goroutine that waits here keeps a
// thread.
//
// The package needs libhandoff and its headers, found by pkg-config.
package handoff
