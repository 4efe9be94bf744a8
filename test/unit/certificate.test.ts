// The fingerprint of a certificate.
import { expect, test } from 'vitest';
import { certificateHash } from '../../src/model/certificate-hash.ts';
import type { Certificate } from '../../src/model/certificate.ts';

const certificate: Omit<Certificate, 'hash'> = {
  taskId: 't',
  fence: 'triggers',
  sourceVersion: '16.1',
  targetVersion: '18.1',
  fenceLsn: '0/1',
  markerLsn: '0/2',
  tables: [],
  sequences: [{ source: 's', target: 's', sourceLastValue: '1', lastValue: '1', isCalled: true }],
  validatedAt: '2026-01-01T00:00:00.000Z',
  armedAt: '2026-01-01T00:00:00.000Z',
  openedAt: '2026-01-01T00:00:00.000Z',
  completedAt: '2026-01-01T00:00:00.000Z',
  equal: true,
};

test('it does not depend on the order of names, nor on itself', () => {
  const hash = certificateHash(certificate);
  const turned = Object.fromEntries(Object.entries(certificate).toReversed()) as unknown as Certificate;
  expect(certificateHash({ ...turned, hash })).toBe(hash);
});

test('every change shows, deep inside, too', () => {
  const hash = certificateHash(certificate);
  expect(certificateHash({ ...certificate, equal: false })).not.toBe(hash);
  const [sequence] = certificate.sequences;
  expect(
    certificateHash({ ...certificate, sequences: sequence ? [{ ...sequence, lastValue: '2' }] : [] }),
  ).not.toBe(hash);
});
