// The message shapes of @statelyai/inspect 0.7 (its `convertXStateEvent`), made by the inspect hub for viewers. Pure:
// what goes in is read once and copied, secrets and what JSON cannot carry do not come out.
import type { InspectionMessage } from '../model/service.ts';

/** Receivers drop messages without it; the release whose shapes these are. */
const PROTOCOL_VERSION = '0.7.2';

/** Deeper values are cut, as the library does. */
const MAX_DEPTH = 10;

const REDACTED = '***';
const secretNames = /^(?:.*[_-])?(?:password|passwd|sslkey|token|secret)$/i;
/** The tail of a camelCase name: `accessToken`, `sourcePassword`. */
const secretTails = /[a-z](?:Password|Sslkey|Token|Secret)$/;
/** user:password in a URL. Begins at a fixed text and is bounded: a search that starts everywhere takes quadratic time. */
const urlCredentials = /(:\/\/[^\s:/@]{0,300}):[^\s/@]{0,2000}@/g;

export interface ActorFacts {
  readonly sessionId: string;
  /** Session of the root actor; its own for the root. */
  readonly rootId: string;
  /** Absent for the root. */
  readonly parentId?: string;
  readonly name: string;
  /** `logic.config` of a machine; absent for promises and callbacks. */
  readonly definition?: unknown;
  /** `actorRef.getSnapshot()`; undefined while the actor is being made, which viewers must not see. */
  readonly actorSnapshot: unknown;
}

export interface EventFacts {
  /** Of the receiver. */
  readonly sessionId: string;
  readonly rootId: string;
  /** Of the sender; absent when the event came from outside. */
  readonly sourceId?: string;
  readonly event: unknown;
}

export interface SnapshotFacts {
  readonly sessionId: string;
  readonly rootId: string;
  /** What led to it. */
  readonly event: unknown;
  readonly actorSnapshot: unknown;
}

/** An actor that exists; `at` in ms since 1970. */
export function actorMessage(facts: ActorFacts, at: number = Date.now()): InspectionMessage {
  return {
    type: '@xstate.actor',
    name: facts.name,
    sessionId: facts.sessionId,
    rootId: facts.rootId,
    ...(facts.parentId === undefined ? {} : { parentId: facts.parentId }),
    definition: JSON.stringify(plain(facts.definition ?? { id: facts.name })),
    snapshot: plain(facts.actorSnapshot ?? { status: 'active' }),
    ...envelope(at),
  };
}

/** An event on its way to an actor. */
export function eventMessage(facts: EventFacts, at: number = Date.now()): InspectionMessage {
  return {
    type: '@xstate.event',
    sessionId: facts.sessionId,
    rootId: facts.rootId,
    ...(facts.sourceId === undefined ? {} : { sourceId: facts.sourceId }),
    event: plain(facts.event),
    ...envelope(at),
  };
}

/** What an actor has become. */
export function snapshotMessage(facts: SnapshotFacts, at: number = Date.now()): InspectionMessage {
  return {
    type: '@xstate.snapshot',
    sessionId: facts.sessionId,
    rootId: facts.rootId,
    event: plain(facts.event),
    snapshot: plain(facts.actorSnapshot),
    ...envelope(at),
  };
}

function envelope(at: number): { readonly createdAt: string; readonly id: null; readonly _version: string } {
  return { createdAt: String(at), id: null, _version: PROTOCOL_VERSION };
}

/** A copy as JSON can carry it: no secrets, cycles, functions or classes, no deeper than MAX_DEPTH. */
function plain(value: unknown, ancestors: readonly object[] = [], name = ''): unknown {
  if (typeof value === 'string') return value.replaceAll(urlCredentials, `$1:${REDACTED}@`);
  if (typeof value === 'bigint') return String(value);
  if (typeof value === 'function') return { type: value.name };
  if (typeof value === 'symbol') return value.description ?? '';
  if (typeof value === 'object' && value !== null) return plainObject(value, ancestors, name);
  return value;
}

function plainObject(value: object, ancestors: readonly object[], name: string): unknown {
  if (ancestors.includes(value)) return '[Circular]';
  if (ancestors.length >= MAX_DEPTH) return Array.isArray(value) ? '[Array]' : '[Object]';
  const inside = [...ancestors, value];
  if (Array.isArray(value)) return value.map((item) => plain(item, inside) ?? null);
  if (value instanceof Error) return { name: value.name, message: plain(value.message) };
  if (value instanceof Map) return plain(Object.fromEntries(value), ancestors, name);
  if (value instanceof Set) return plain([...value], ancestors, name);
  // Actors and machine snapshots of xstate say themselves what of them is data.
  if ('toJSON' in value && typeof value.toJSON === 'function')
    return plain((value.toJSON as (key: string) => unknown)(name), inside, name);
  const entries: [string, unknown][] = [];
  for (const [key, inner] of Object.entries(value)) {
    const secret = secretNames.test(key) || secretTails.test(key);
    const kept = secret && inner !== undefined && inner !== null ? REDACTED : plain(inner, inside, key);
    if (kept !== undefined) entries.push([key, kept]);
  }
  return Object.fromEntries(entries);
}
