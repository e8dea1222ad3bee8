package handoff

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Metadata is the standard metadata, as nginx sends it with `handoff_metadata default`. What does not
// apply is empty. docs/protocol.md has its schema.
type Metadata struct {
	Module    string
	Client    Endpoint
	Server    Endpoint
	Scheme    string
	TLS       *TLSMetadata // nil without TLS
	RequestID string
	Location  string
}

// An Endpoint is an address as nginx has it: "203.0.113.7", "2001:db8::1", or "unix:" and a path. The
// port is 0 if there is none.
type Endpoint struct {
	Address string
	Port    uint16
}

// TLSMetadata is what the broker knows of the client's TLS.
type TLSMetadata struct {
	Version           string // such as "TLSv1.3"
	Cipher            string
	SNI               string // what the client asked for: any text
	ALPN              string
	ClientCertificate *ClientCertificate // nil if there was none
}

// A ClientCertificate is verified only if Verify is "SUCCESS".
type ClientCertificate struct {
	Verify string
	SHA1   string
}

// ParseMetadata reads standard metadata. Members that it does not know are ignored: the administrator can
// add some. So a name must match exactly, which encoding/json alone does not ask for.
func ParseMetadata(metadata []byte) (*Metadata, error) {
	parsed := new(Metadata)
	if err := parseMembers(metadata, map[string]any{
		"module": &parsed.Module, "client": &parsed.Client, "server": &parsed.Server,
		"scheme": &parsed.Scheme, "tls": &parsed.TLS, "request_id": &parsed.RequestID,
		"location": &parsed.Location,
	}); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	return parsed, nil
}

func parseMembers(object []byte, members map[string]any) error {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(object, &values); err != nil {
		return err
	}
	for name, member := range members {
		if value, ok := values[name]; ok {
			if err := json.Unmarshal(value, member); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// UnmarshalJSON matches names exactly, as ParseMetadata does. So do those of the other types.
func (e *Endpoint) UnmarshalJSON(object []byte) error {
	return parseMembers(object, map[string]any{"address": &e.Address, "port": &e.Port})
}

func (t *TLSMetadata) UnmarshalJSON(object []byte) error {
	return parseMembers(object, map[string]any{
		"version": &t.Version, "cipher": &t.Cipher, "sni": &t.SNI, "alpn": &t.ALPN,
		"client_certificate": &t.ClientCertificate,
	})
}

func (c *ClientCertificate) UnmarshalJSON(object []byte) error {
	return parseMembers(object, map[string]any{"verify": &c.Verify, "sha1": &c.SHA1})
}

// addr is nil if the address is none.
func (e Endpoint) addr() net.Addr {
	if path := strings.TrimPrefix(e.Address, "unix:"); path != e.Address {
		return &net.UnixAddr{Name: path, Net: "unix"}
	}
	ip, err := netip.ParseAddr(e.Address)
	if err != nil {
		return nil
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, e.Port))
}
