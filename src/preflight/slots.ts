// Check of run.ts: a free replication slot, and nobody else's slot or publication under our name. What a resumed task
// made itself (see the tables above ensureSlot and ensurePublication) is no finding.
import type { Finding } from '../model/finding.ts';
import type { Role } from '../model/endpoint.ts';
import { ident, literal } from '../postgres/sql.ts';
import { onlyRow, type Ask } from './ask.ts';

export interface SlotFacts {
  /** max_replication_slots. */
  readonly max: number;
  readonly used: number;
  /** current_user, and which of the functions of the catch-up feed it may not execute. */
  readonly user: string;
  readonly refused: readonly string[];
  readonly slotExists: boolean;
  readonly publicationExists: boolean;
  /** idle_replication_slot_timeout (18+) as shown; `0` is none. */
  readonly idleTimeout: string;
  /** Physical slots, by name; how many physical standbys stream now. */
  readonly physicalSlots: readonly string[];
  readonly standbys: number;
  /** synchronized_standby_slots (17+); null before. */
  readonly synchronizedStandbys: string | null;
}

export interface SlotOwnership {
  readonly name: string;
  /** A slot of this name was made, or begun, by this task. */
  readonly slotIsOurs: boolean;
  readonly publicationIsOurs: boolean;
}

/** What the catch-up feed calls (postgres/slot-feed.ts). PUBLIC may, unless somebody has revoked it. */
const catchUpFunctions = [
  'pg_copy_logical_replication_slot(name, name, boolean)',
  'pg_logical_slot_get_binary_changes(name, pg_lsn, integer, text[])',
  'pg_replication_slot_advance(name, pg_lsn)',
];

export async function readSlots(ask: Ask, name: string): Promise<SlotFacts> {
  return onlyRow(
    await ask<SlotFacts>(
      `select current_setting('max_replication_slots')::int as max,
         coalesce(current_setting('idle_replication_slot_timeout', true), '0') as "idleTimeout",
         (select count(*)::int from pg_replication_slots) as used, current_user::text as "user",
         array(select f from unnest($2::text[]) with ordinality as t(f, n)
           where not has_function_privilege('pg_catalog.' || f, 'execute') order by n) as refused,
         array(select slot_name::text from pg_replication_slots where slot_type = 'physical' order by 1) as "physicalSlots",
         (select count(*)::int from pg_stat_replication r left join pg_replication_slots s on s.active_pid = r.pid
           where r.state = 'streaming' and coalesce(s.slot_type, 'physical') = 'physical') as standbys,
         current_setting('synchronized_standby_slots', true) as "synchronizedStandbys",
         exists (select from pg_replication_slots where slot_name = $1) as "slotExists",
         exists (select from pg_publication where pubname = $1) as "publicationExists"`,
      [name, catchUpFunctions],
    ),
  );
}

export function assessSlots(
  facts: SlotFacts,
  { name, slotIsOurs, publicationIsOurs }: SlotOwnership,
  side: Role = 'source',
): Finding[] {
  const findings: Finding[] = [];
  if (facts.slotExists && !slotIsOurs)
    findings.push({
      code: 'slot_name_taken',
      severity: 'blocking',
      object: name,
      message: `${side}: a replication slot ${name} exists that this task did not make`,
      remedy: `choose another id, or, if nobody uses that slot: select pg_drop_replication_slot(${literal(name)})`,
    });
  if (facts.publicationExists && !publicationIsOurs)
    findings.push({
      code: 'publication_name_taken',
      severity: 'blocking',
      object: name,
      message: `${side}: a publication ${name} exists that this task did not make`,
      remedy: `choose another id, or, if nobody uses that publication: drop publication ${ident(name)}`,
    });
  if (!facts.slotExists && facts.used >= facts.max)
    findings.push({
      code: 'replication_slots_exhausted',
      severity: 'blocking',
      object: 'max_replication_slots',
      message: `${side}: all ${facts.max} replication slots are in use; this task needs one`,
      remedy: `alter system set max_replication_slots = ${facts.used + 1}; then restart the server (or drop a slot that nobody uses)`,
    });
  if (!facts.slotExists && facts.used + 1 === facts.max)
    findings.push({
      code: 'catch_up_slot_missing',
      severity: 'info',
      object: 'max_replication_slots',
      message: `${side}: one replication slot is free. A second one, taken only while the stream is far behind, lets it catch up faster`,
      remedy: `alter system set max_replication_slots = ${facts.used + 2}; then restart the server`,
    });
  if (facts.refused.length > 0)
    findings.push({
      code: 'catch_up_not_permitted',
      severity: 'info',
      object: facts.user,
      message: `${side}: role ${facts.user} may not execute ${facts.refused.join(', ')}: while far behind, the stream catches up faster by these functions`,
      remedy: facts.refused
        .map((each) => `grant execute on function pg_catalog.${each} to ${ident(facts.user)}`)
        .join('; '),
    });
  // Nobody reads from the slot until the copy is complete, nor while the task is paused.
  if (facts.idleTimeout !== '0')
    findings.push({
      code: 'slot_idle_limited',
      severity: 'warning',
      object: 'idle_replication_slot_timeout',
      message: `${side}: idle_replication_slot_timeout is ${facts.idleTimeout}: a copy or a pause that takes longer loses the slot`,
      remedy: 'alter system set idle_replication_slot_timeout = 0; select pg_reload_conf()',
    });
  findings.push(...assessFailover(facts, side));
  return findings;
}

/** What becomes of the slot when a standby takes over: see wantsFailover in postgres/slot.ts. */
function assessFailover({ physicalSlots, standbys, synchronizedStandbys }: SlotFacts, side: Role): Finding[] {
  if (synchronizedStandbys !== null && synchronizedStandbys !== '')
    return [
      {
        code: 'failover_slot',
        severity: 'info',
        object: 'synchronized_standby_slots',
        message:
          `${side}: the slot is made with FAILOVER: a standby with sync_replication_slots gets a copy, and after its promotion the task ` +
          `goes on there. The stream waits for ${synchronizedStandbys}: one of them that is down holds it up. What it reads comes ` +
          'from the walsender alone, also while far behind: the slot functions would not wait for the standbys',
        remedy: null,
      },
    ];
  if (physicalSlots.length === 0 && standbys === 0) return [];
  return [
    {
      code: 'slot_without_failover',
      severity: 'info',
      object: 'synchronized_standby_slots',
      message:
        `${side}: it has standbys, and the slot is not copied to them: ` +
        (side === 'source'
          ? 'after a failover every table must be copied again (POST …/recopy)'
          : 'after a failover there is no way back any more'),
      remedy:
        synchronizedStandbys === null
          ? null
          : `alter system set synchronized_standby_slots = ${literal(physicalSlots.join(', '))}; select pg_reload_conf(); ` +
            'and on the standbys sync_replication_slots = on, hot_standby_feedback = on and a dbname in primary_conninfo',
    },
  ];
}
