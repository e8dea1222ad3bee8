import { EventEmitter } from 'events';
import { Server, Socket } from 'net';

/** The limits of a backend. What is left out has its default, as handoff_backend_options says. */
export interface Options {
  /** The permission bits of the socket's file: default 0o600. */
  mode?: number;
  backlog?: number;
  /** Who may connect, by number, instead of this user and root. */
  users?: readonly number[];
  groups?: readonly number[];
  maxChannels?: number;
  maxChannelsPerUser?: number;
  /** Offers in flight on each channel. */
  maxInFlight?: number;
  /** Bytes of preread, metadata and names in one offer. */
  maxOfferBytes?: number;
  /** Bytes of all arrivals that are neither adopted nor rejected: may be Infinity. */
  maxHeldBytes?: number;
  /** Bytes of memory to keep for later arrivals: may be Infinity. */
  maxKeptBytes?: number;
}

/** A path, a name in the abstract namespace ('@name'), or a socket that listens already. */
export type Place = string | { fd: number };

/** What may be said to a broker: HANDOFF_REASON_* without that. */
export type Reason =
  | 'CLIENT_UNSUPPORTED' | 'POLICY_DISABLED' | 'DESCRIPTOR_PRESSURE' | 'RATE_LIMITED'
  | 'PERMISSION_DENIED' | 'INTEGRITY_MISMATCH' | 'BACKEND_UNAVAILABLE' | 'BACKEND_BUSY'
  | 'REJECTED' | 'CLIENT_GONE' | 'TOO_LARGE' | 'KIND';

/** A call of the library failed. */
export class HandoffError extends Error {
  /** The name of what it returned, such as 'HANDOFF_ERR_ADDRESS_IN_USE'. */
  code: string;
  /** The system's error, negative as Node's, or 0 if the system had no part in it. */
  errno: number;
}

/**
 * A connection that was handed over. Its remoteAddress and remotePort are what the broker says, if it
 * says whom the connection is from. `encrypted` is true if the kernel does the client's TLS: read and
 * write plain bytes. It then gives a HandoffError if the client sends what is no data, or ends without
 * close_notify.
 */
export class Connection extends Socket {
  readonly encrypted?: true;
}

/** An offer as the backend sees it. Adopt it, reject it or let a server have it, now or later. */
export interface Arrival {
  readonly id: number | bigint;
  /** What the broker has read from the client. It comes first in the connection, too. */
  readonly preread: Buffer;
  /** What the broker wanted you to know. */
  readonly metadata: Buffer;
  readonly service: string;
  readonly correlation: string;
  /** As it was when it connected. */
  readonly broker: { pid: number; uid: number; gid: number };
  /** Whom the connection is from, if the metadata is as nginx sends it. */
  readonly client: { address: string; port: number | undefined } | null;
  /** The kernel does the client's TLS. */
  readonly tls: boolean;

  /**
   * Takes the connection. null: the broker has taken it back, which is no error; or it is neither TCP nor
   * a Unix socket, and has been ended.
   */
  adopt(options?: { allowHalfOpen?: boolean }): Connection | null;
  /** Leaves the client to the broker: default 'REJECTED'. */
  reject(reason?: Reason): void;
  /** Adopts it and emits it as the server's 'connection', unless the server has maxConnections. */
  serve(server: Server): void;
}

export interface Backend {
  on(event: 'arrival', listener: (arrival: Arrival) => void): this;
  on(event: 'error', listener: (error: HandoffError) => void): this;
  on(event: 'close', listener: () => void): this;
}

/**
 * The backend's end of the channels of one handoff socket. It listens at once, or throws: also in a worker
 * thread, see README.md.
 */
export class Backend extends EventEmitter {
  constructor(place: Place, options?: Options);
  /** How many connections there are that were adopted here. */
  readonly connections: number;
  /** handoff_backend_statistics, in camelCase. Throws after 'close'. */
  readonly statistics: Record<string, number>;
  /**
   * Takes no more, so that a successor can listen at the path. Servers answer what has begun, and end
   * what is idle. Resolves, and emits 'close', when all connections have ended.
   */
  close(): Promise<void>;
  /** Lets the process end although it listens, as net.Server does: then its file stays, for the next one. */
  unref(): this;
  /** The opposite, and how it begins. */
  ref(): this;
}

/** Listens for brokers. */
export function listen(place: Place, options?: Options, onArrival?: (arrival: Arrival) => void): Backend;

/** Lets a server of http, https or net serve all that arrives. If the server closes, so does this. */
export function serve(server: Server, place: Place, options?: Options): Backend;

/** The library's version. */
export function version(): string;
