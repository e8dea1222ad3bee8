'use strict';
/*
 * The C library: its structs, its calls, its errors. The names are those of the headers.
 *
 * The calls are made in the thread that uses them and not with koffi's .async, which makes them in
 * another one: handoff_last_error() is about the thread that asks.
 */

const koffi = require('koffi');
const PACKAGE = require('../package.json');

const SONAME = 'libhandoff.so.0';

const library = (() => {
  try {
    return koffi.load(SONAME);
  } catch (error) {
    throw new Error(`${SONAME}: ${error.message}. Is it installed? See ldconfig(8), or set ` +
      'LD_LIBRARY_PATH', { cause: error });
  }
})();

const version = library.func('handoff_version', 'str', []);
const itself = () => `${SONAME} ${version()}`;

function call(name, result, ...types) {
  try {
    return library.func(name, result, types);
  } catch (error) {
    throw new Error(`${itself()} is older than this package, ${PACKAGE.version}: it has no ${name}()`,
      { cause: error });
  }
}

const lastErrno = call('handoff_last_errno', 'int');
const lastError = call('handoff_last_error', 'str');
const statusName = call('handoff_status_name', 'str', 'int32_t');
const statusMessage = call('handoff_status_message', 'str', 'int32_t');

/**
 * A call failed. `code` is the name of what it returned, such as 'HANDOFF_ERR_ADDRESS_IN_USE'. `errno`
 * is the system's error, negative as Node's, or 0 if the system had no part in it.
 */
class HandoffError extends Error {
  constructor(status, sentence) {
    super(sentence ?? lastError());
    this.name = 'HandoffError';
    this.code = statusName(status);
    this.errno = sentence ? 0 : -lastErrno() || 0;
  }
}

const OK = 0;

function check(status) {
  if (status !== OK) throw new HandoffError(status);
}

const getConstant = call('handoff_constant', 'int32_t', 'str', koffi.out('int64_t *'));
const getField = call('handoff_field', 'int32_t', 'str', koffi.out('size_t *'),
  koffi.out('size_t *'));

/** The value of a constant, such as 'HANDOFF_NOTHING'. */
function constant(name) {
  const value = [0];
  // C would see only what is before a NUL.
  if (name.includes('\0') || getConstant(name, value) !== OK) {
    throw new TypeError(`${itself()} has no ${name}`);
  }
  return value[0];
}

/** A struct as koffi has it. The library is asked whether it has the same. */
function struct(name, fields) {
  const type = koffi.struct(fields);
  for (const { name: field, offset, type: { size } } of Object.values(type.members)) {
    const [itsOffset, itsSize] = [[0], [0]];
    const full = `${name}.${field}`;
    if (getField(full, itsOffset, itsSize) !== OK) throw new TypeError(`${itself()} has no ${full}`);
    if (itsOffset[0] !== offset || itsSize[0] !== size) {
      throw new TypeError(`${itself()} has ${full} at ${itsOffset}, ${itsSize} bytes; this package ` +
        `has it at ${offset}, ${size} bytes`);
    }
  }
  return type;
}

const PeerPolicy = struct('handoff_peer_policy', {
  size: 'size_t',
  users: 'uint32_t *',
  users_len: 'size_t',
  groups: 'uint32_t *',
  groups_len: 'size_t',
});

const BackendOptions = struct('handoff_backend_options', {
  size: 'size_t',
  mode: 'uint32_t',
  backlog: 'int32_t',
  policy: koffi.pointer(PeerPolicy),
  max_channels: 'size_t',
  max_in_flight: 'size_t',
  max_offer_bytes: 'size_t',
  max_held_bytes: 'size_t',
  kinds: 'uint64_t',
  max_channels_per_user: 'size_t',
  max_kept_bytes: 'size_t',
  spin_us: 'uint32_t',
  reserved: 'uint32_t',
});

const Arrival = struct('handoff_arrival', {
  size: 'size_t',
  id: 'uint64_t',
  fd: 'int',
  broker_pid: 'int32_t',
  broker_uid: 'uint32_t',
  broker_gid: 'uint32_t',
  preread: 'void *',
  preread_len: 'size_t',
  metadata: 'void *',
  metadata_len: 'size_t',
  service: 'str',
  correlation: 'str',
  tls: 'uint32_t',
  reserved: 'uint32_t',
});

const COUNTS = [
  'arrived', 'adopted', 'rejected', 'taken_back', 'accepted', 'refused', 'broken', 'channels',
  'held', 'held_bytes', 'kept_bytes', 'refused_over_limit', 'system_errors', 'system_errno',
  'refused_users', 'last_refused_user', 'refused_versions', 'refused_draining',
];
const BackendStatistics = struct('handoff_backend_statistics', {
  size: 'size_t',
  ...Object.fromEntries(COUNTS.map((name) => [name, 'uint64_t'])),
});

/** A struct that the library fills, or whose other fields are zero, which is the default. */
function empty(type) {
  const fields = Object.entries(type.members);
  const zero = (member) => (['Pointer', 'String'].includes(member.type.primitive) ? null : 0);
  return Object.fromEntries(fields.map(([name, member]) =>
    [name, name === 'size' ? koffi.sizeof(type) : zero(member)]));
}

/** A copy of bytes that the library holds. */
function bytes(pointer, length) {
  const view = koffi.decode(pointer, 'uint8_t', length);
  return Buffer.from(view.buffer, view.byteOffset, view.byteLength);
}

const backend = 'void *';
const newBackend = koffi.out('void **');
const options = koffi.pointer(BackendOptions);
const status = 'int32_t';

module.exports = {
  Arrival,
  BackendOptions,
  BackendStatistics,
  COUNTS,
  HandoffError,
  OK,
  PeerPolicy,
  bytes,
  call,
  check,
  constant,
  empty,
  statusMessage,
  struct,
  version,
  // The largest size_t.
  NO_LIMIT: BigInt.asUintN(8 * koffi.sizeof('size_t'), -1n),

  backendListen: call('handoff_backend_listen', status, 'str', options, newBackend),
  backendListenOn: call('handoff_backend_listen_on', status, 'int', options, newBackend),
  backendFree: call('handoff_backend_free', 'void', backend),
  backendFd: call('handoff_backend_fd', 'int', backend),
  backendDispatch: call('handoff_backend_dispatch', status, backend),
  backendNext: call('handoff_backend_next', status, backend,
    koffi.inout(koffi.pointer(Arrival))),
  backendAdopt: call('handoff_backend_adopt', status, backend, 'uint64_t', koffi.out('int *')),
  backendReject: call('handoff_backend_reject', status, backend, 'uint64_t', 'uint32_t'),
  backendDrain: call('handoff_backend_drain', status, backend),
  backendStatistics: call('handoff_backend_get_statistics', status, backend,
    koffi.inout(koffi.pointer(BackendStatistics))),
  tlsReceive: call('handoff_tls_receive', status, 'int', 'void *', 'size_t', 'int',
    koffi.out('size_t *')),
  tlsShutdown: call('handoff_tls_shutdown', status, 'int', 'int'),
};
