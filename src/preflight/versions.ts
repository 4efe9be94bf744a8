// Check of run.ts: which majors we read from and write to. Logical decoding, the catalog queries and the bundled dump
// are tested with these; a dump of a newer major cannot be relied on in an older server.
import type { Finding } from '../model/finding.ts';
import type { Role } from '../model/endpoint.ts';
import { onlyRow, type Ask } from './ask.ts';

const OLDEST_MAJOR = 13;
const NEWEST_MAJOR = 18;

/** The major version, e.g. 16. */
export async function readMajor(ask: Ask): Promise<number> {
  const { version } = onlyRow(
    await ask<{ version: number }>(`select current_setting('server_version_num')::int as version`),
  );
  return Math.floor(version / 10_000);
}

export function assessMajor(role: Role, major: number): Finding[] {
  if (major < OLDEST_MAJOR || major > NEWEST_MAJOR)
    return [
      {
        code: `${role}_version_unsupported`,
        severity: 'blocking',
        object: role,
        message: `${role}: PostgreSQL ${major} is not supported; ${OLDEST_MAJOR} to ${NEWEST_MAJOR} are`,
        remedy: major < OLDEST_MAJOR ? `upgrade the ${role} to ${OLDEST_MAJOR} or later` : null,
      },
    ];
  if (role === 'source' && major === 13)
    return [
      {
        code: 'drain_marker_table',
        severity: 'info',
        object: role,
        message:
          'source: PostgreSQL 13 cannot send messages through logical decoding, so the end of the stream is marked ' +
          'by a row in a table in schema dts, which is in the publication',
        remedy: null,
      },
    ];
  return [];
}

export function assessMajorOrder(source: number, target: number): Finding[] {
  if (target >= source) return [];
  return [
    {
      code: 'target_version_older',
      severity: 'blocking',
      object: 'target',
      message: `the target is PostgreSQL ${target}, older than the source (${source}): its schema may not be accepted`,
      remedy: `use a target of version ${source} or later`,
    },
  ];
}
