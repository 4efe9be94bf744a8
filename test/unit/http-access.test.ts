import { describe, expect, test } from 'vitest';
import {
  isLoopbackAddress,
  isLoopbackHost,
  refuseRequest,
  refuseUpgrade,
  type AccessRequest,
} from '../../src/http/access.ts';

const local = { loopback: true, token: null };
const open = { loopback: false, token: 'sesame' };

function request(over: Partial<AccessRequest> = {}): AccessRequest {
  return {
    method: 'POST',
    path: '/api/v1/migrations',
    host: '127.0.0.1:8080',
    origin: undefined,
    authorization: undefined,
    ...over,
  };
}

describe('loopback', () => {
  test.each(['localhost', '127.0.0.1', '127.3.2.1', '::1'])('%s is this machine only', (host) => {
    expect(isLoopbackHost(host)).toBe(true);
  });
  test.each(['', '0.0.0.0', '::', '10.0.0.1', 'localhost.example.com', '127.0.0.1.example.com', '128.0.0.1'])(
    '%j can be reached by others',
    (host) => {
      expect(isLoopbackHost(host)).toBe(false);
    },
  );
  test('an IPv4 peer on an IPv6 socket is recognised', () => {
    expect(isLoopbackAddress('::ffff:127.0.0.1')).toBe(true);
    expect(isLoopbackAddress('::ffff:10.0.0.1')).toBe(false);
    expect(isLoopbackAddress(undefined)).toBe(false);
  });
});

describe('Host', () => {
  test.each(['localhost', 'LOCALHOST:1', '127.0.0.1', '127.0.0.1:8080', '[::1]', '[::1]:8080'])(
    '%s is answered on loopback',
    (host) => {
      expect(refuseRequest(local, request({ host }))).toBeNull();
    },
  );
  test.each(['evil.example', 'evil.example:8080', 'localhost.evil.example', 'localhost@evil', '', undefined])(
    '%s is refused on loopback: another name was bound to our address',
    (host) => {
      expect(refuseRequest(local, request({ host }))?.status).toBe(403);
    },
  );
  test('any name is answered beyond loopback, where the token protects', () => {
    const authorization = 'Bearer sesame';
    expect(refuseRequest(open, request({ host: 'dts.example', authorization }))).toBeNull();
  });
});

describe('Origin', () => {
  test.each([
    'https://evil.example',
    'http://localhost:9999',
    'null',
    'http://127.0.0.1',
    'https://stately.ai',
  ])('a page of %s cannot change anything', (origin) => {
    expect(refuseRequest(local, request({ origin }))?.status).toBe(403);
  });
  test('our own page can', () => {
    expect(refuseRequest(local, request({ origin: 'http://127.0.0.1:8080' }))).toBeNull();
    expect(refuseRequest(local, request({ host: 'localhost', origin: 'http://localhost:80' }))).toBeNull();
  });
  test('a read is answered: without CORS headers a foreign page cannot see the answer', () => {
    expect(refuseRequest(local, request({ method: 'GET', origin: 'https://evil.example' }))).toBeNull();
  });
});

describe('token', () => {
  test.each([
    undefined,
    '',
    'sesame',
    'Bearer',
    'Bearer sesam',
    'Bearer sesame2',
    'Basic sesame',
    'Bearer sesame x',
  ])('Authorization %j is refused', (authorization) => {
    const refusal = refuseRequest(open, request({ authorization }));
    expect(refusal?.status).toBe(401);
    expect(refusal?.headers).toEqual({ 'www-authenticate': 'Bearer' });
  });
  test('the health route is open to probes, and nothing beside it', () => {
    expect(refuseRequest(open, request({ method: 'GET', path: '/api/v1/health' }))).toBeNull();
    expect(refuseRequest(open, request({ method: 'GET', path: '/api/v1/health/' }))?.status).toBe(401);
    expect(refuseRequest(open, request({ method: 'GET', path: '/' }))?.status).toBe(401);
  });
});

describe('inspector', () => {
  const upgrade = request({ method: 'GET', path: '/inspect' });
  test('is for peers of this machine, with a token too', () => {
    expect(refuseUpgrade(local, upgrade, '127.0.0.1')).toBeNull();
    expect(refuseUpgrade(local, upgrade, '10.0.0.1')?.status).toBe(403);
    expect(refuseUpgrade(open, upgrade, '127.0.0.1')?.status).toBe(401);
    expect(refuseUpgrade(open, { ...upgrade, authorization: 'Bearer sesame' }, '10.0.0.1')?.status).toBe(403);
  });
  test('lets in the hosted inspector and our own page, no other page', () => {
    const from = (origin: string): number | undefined =>
      refuseUpgrade(local, { ...upgrade, origin }, '127.0.0.1')?.status;
    expect(from('https://stately.ai')).toBeUndefined();
    expect(from('http://127.0.0.1:8080')).toBeUndefined();
    for (const origin of [
      'http://stately.ai',
      'https://stately.ai.evil.example',
      'https://evil.example',
      'null',
    ])
      expect(from(origin)).toBe(403);
  });
  test('is not reached under a foreign name', () => {
    expect(refuseUpgrade(local, { ...upgrade, host: 'evil.example' }, '127.0.0.1')?.status).toBe(403);
  });
});
