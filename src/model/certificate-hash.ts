// The fingerprint of a certificate: SHA-256 of its JSON with sorted names and without the fingerprint itself, so that a
// file that was edited, or damaged, is told from the one that was made. It is no signature: who can write the file can
// also compute it.
import { createHash } from 'node:crypto';
import type { Certificate } from './certificate.ts';

export function certificateHash(certificate: Omit<Certificate, 'hash'> & { readonly hash?: string }): string {
  const { hash: _, ...content } = certificate;
  return createHash('sha256').update(canonical(content)).digest('hex');
}

function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'null';
  const entries = Object.entries(value)
    .filter(([, inner]) => inner !== undefined)
    .toSorted(([a], [b]) => (a < b ? -1 : 1));
  return `{${entries.map(([name, inner]) => `${JSON.stringify(name)}:${canonical(inner)}`).join(',')}}`;
}
