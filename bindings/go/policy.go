package handoff

// A Policy names who may be at the other end, by user and group numbers. It replaces the default, which
// is this process's user and root, and for a Broker also the owner of the socket's file: root too must
// then be named.
type Policy struct {
	Users  []uint32
	Groups []uint32
}
