// Who may talk to us. Pure; called for every request by the app and for every upgrade by the inspector. On loopback a
// web page of somebody else must not reach us through the user's browser (DNS rebinding, cross-site requests); beyond
// loopback every request needs the token.
import { createHash, timingSafeEqual } from 'node:crypto';
import { Refusal } from './problem.ts';

export interface AccessPolicy {
  /** We listen on a loopback address only. */
  readonly loopback: boolean;
  /** Required in `Authorization: Bearer …` when not null. */
  readonly token: string | null;
}

export interface AccessRequest {
  readonly method: string;
  readonly path: string;
  readonly host: string | undefined;
  readonly origin: string | undefined;
  readonly authorization: string | undefined;
}

const HEALTH_PATH = '/api/v1/health';

const loopbackNames: ReadonlySet<string> = new Set(['localhost', '127.0.0.1', '[::1]']);

/** Whether listening on `host` is reachable from this machine only. */
export function isLoopbackHost(host: string): boolean {
  return host === 'localhost' || isLoopbackAddress(host);
}

/** Whether an address of a socket belongs to this machine. */
export function isLoopbackAddress(address: string | undefined): boolean {
  if (address === undefined) return false;
  const plain = address.toLowerCase().replace(/^::ffff:/, '');
  return plain === '::1' || /^127(?:\.\d{1,3}){3}$/.test(plain);
}

/** A host without its port, in lower case; null when it is not a host. */
function hostName(host: string | undefined): string | null {
  return /^([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?$/.exec(host?.toLowerCase() ?? '')?.[1] ?? null;
}

function isSameOrigin(origin: string, host: string | undefined): boolean {
  const url = URL.canParse(origin) ? new URL(origin) : null; // `null` is what sandboxed frames and files send
  if (url === null || host === undefined || !URL.canParse(`${url.protocol}//${host}`)) return false;
  return url.host === new URL(`${url.protocol}//${host}`).host; // both without a default port
}

/** Equal digests instead of equal texts: a comparison that tells nothing by its duration, lengths included. */
function isToken(given: string, token: string): boolean {
  const digest = (text: string): Buffer => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(given), digest(token));
}

/** The Host rule: on loopback only names of this machine, whatever name the browser resolved to it. */
function checkHost(policy: AccessPolicy, host: string | undefined): Refusal | null {
  const name = hostName(host);
  if (name !== null && (!policy.loopback || loopbackNames.has(name))) return null;
  return new Refusal(403, 'forbidden', 'the Host header does not name this machine', {
    hint: 'use localhost, 127.0.0.1 or [::1]',
  });
}

function checkToken(policy: AccessPolicy, authorization: string | undefined): Refusal | null {
  if (policy.token === null) return null;
  const given = /^bearer +(\S+)$/i.exec(authorization ?? '')?.[1];
  if (given !== undefined && isToken(given, policy.token)) return null;
  return new Refusal(401, 'unauthorized', 'the bearer token is missing or wrong', {
    headers: { 'www-authenticate': 'Bearer' },
  });
}

const crossOrigin = (): Refusal =>
  new Refusal(403, 'forbidden', 'requests from pages of another origin are not accepted');

/** Why a plain request is not answered; null when it may go on. */
export function refuseRequest(policy: AccessPolicy, request: AccessRequest): Refusal | null {
  const wrongHost = checkHost(policy, request.host);
  if (wrongHost) return wrongHost;
  const changes = request.method !== 'GET' && request.method !== 'HEAD';
  if (changes && request.origin !== undefined && !isSameOrigin(request.origin, request.host))
    return crossOrigin();
  return request.path === HEALTH_PATH ? null : checkToken(policy, request.authorization);
}

/** The hosted inspector may look at us from the user's browser, and nothing else of another origin. */
const inspectorOrigins: ReadonlySet<string> = new Set(['https://stately.ai', 'https://www.stately.ai']);

/** Why a WebSocket is not opened. Browsers let any page open one to any host: the Origin is all we have. */
export function refuseUpgrade(
  policy: AccessPolicy,
  request: AccessRequest,
  peerAddress: string | undefined,
): Refusal | null {
  const wrongHost = checkHost(policy, request.host);
  if (wrongHost) return wrongHost;
  if (!isLoopbackAddress(peerAddress))
    return new Refusal(403, 'forbidden', 'the inspector answers this machine only');
  const { origin } = request;
  if (origin !== undefined && !inspectorOrigins.has(origin) && !isSameOrigin(origin, request.host))
    return crossOrigin();
  return checkToken(policy, request.authorization);
}
