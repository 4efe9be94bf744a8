// Check of run.ts: the source must write what logical decoding needs; with options.reverse the target, too.
import type { Finding } from '../model/finding.ts';
import type { Role } from '../model/endpoint.ts';
import { onlyRow, type Ask } from './ask.ts';

export async function readWalLevel(ask: Ask): Promise<string> {
  return onlyRow(await ask<{ level: string }>(`select current_setting('wal_level') as level`)).level;
}

export function assessWalLevel(level: string, side: Role = 'source'): Finding[] {
  if (level === 'logical') return [];
  return [
    {
      code: 'wal_level_not_logical',
      severity: 'blocking',
      object: 'wal_level',
      message: `${side}: wal_level is ${level}; logical decoding needs logical`,
      remedy: `alter system set wal_level = 'logical'; then restart the server (managed services have a parameter for it, such as rds.logical_replication)`,
    },
  ];
}
