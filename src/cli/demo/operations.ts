// The transactions of the demo's writers. Each is one of the ways in which applications write that replication has to
// get right. `begin` and the end are the caller's.
import { randomUUID } from 'node:crypto';
import type { Client } from 'pg';
import { CUSTOMERS, ORDERS, PRODUCTS, SESSIONS, WAREHOUSES } from './schema.ts';

/** An integer from 0 to `limit` − 1. */
export type Random = (limit: number) => number;

export interface Operation {
  readonly name: string;
  /** How often it is chosen, relative to the others. */
  readonly weight: number;
  /** `unique` differs for every transaction of a run. */
  run(client: Client, random: Random, unique: string): Promise<'commit' | 'rollback'>;
}

async function placeOrder(client: Client, random: Random): Promise<string> {
  const customer = 1 + random(CUSTOMERS);
  const { rows } = await client.query<{ id: string }>(
    `insert into shop.orders (customer_id, delivery, remark) values ($1, $2, $3) returning id`,
    [customer, random(3) === 0 ? null : `${random(40)} days 03:04:05.678`, 'wörld\t\\N\n'],
  );
  const id = rows[0]?.id ?? '';
  await client.query(
    `insert into shop.order_items (order_id, line, product_id, quantity, unit_price)
     select $1, line, 1 + (($2::int + line * 997) % $3::int), 1 + line, 9.99 from generate_series(1, $4::int) line`,
    [id, random(PRODUCTS), PRODUCTS, 1 + random(4)],
  );
  await client.query(
    `update shop.orders set total = (select sum(line_total) from shop.order_items where order_id = $1), status = 'paid',
       past_statuses = past_statuses || status where id = $1`,
    [id],
  );
  await client.query(
    `insert into shop.payments values ($1, $2, 'card', 12.30, '{"ok" : true,  "n":1.0}', clock_timestamp())`,
    [randomUUID(), id],
  );
  return id;
}

export const operations: readonly Operation[] = [
  {
    name: 'place an order over four tables',
    weight: 6,
    async run(client, random) {
      await placeOrder(client, random);
      await client.query(
        `update shop."Warehouse Stock" set "onHand" = "onHand" - 1 where warehouse = $1 and product_id = $2`,
        [1 + random(WAREHOUSES), 1 + random(PRODUCTS)],
      );
      return 'commit';
    },
  },
  {
    name: 'order, then change of mind',
    weight: 2,
    async run(client, random) {
      const id = await placeOrder(client, random);
      await client.query('delete from shop.payments where order_id = $1', [id]);
      await client.query('delete from shop.orders where id = $1', [id]);
      return 'commit';
    },
  },
  {
    name: 'delete an old order with what belongs to it',
    weight: 2,
    async run(client, random) {
      const id = 1 + random(ORDERS);
      await client.query('delete from shop.payments where order_id = $1', [id]);
      await client.query('delete from shop.orders where id = $1', [id]); // order_items: on delete cascade
      return 'commit';
    },
  },
  {
    name: 'roll a large transaction back',
    weight: 1,
    async run(client, random) {
      await placeOrder(client, random);
      await client.query('update shop.addresses set city = $1 where customer_id between $2 and $2 + 200', [
        'Nowhere',
        random(CUSTOMERS),
      ]);
      return 'rollback';
    },
  },
  {
    name: 'keep one savepoint and leave another',
    weight: 2,
    async run(client, random) {
      const customer = 1 + random(CUSTOMERS);
      await client.query('update shop.customers set credit = credit + 1 where id = $1', [customer]);
      await client.query('savepoint doubtful');
      await client.query('delete from shop.addresses where customer_id = $1', [customer]);
      await placeOrder(client, random);
      await client.query('rollback to savepoint doubtful');
      await client.query('savepoint good');
      await client.query(
        `update shop.customers set tags = tags || 'seen'::text, born = 'infinity', last_ip = null where id = $1`,
        [customer],
      );
      await client.query('release savepoint good');
      return 'commit';
    },
  },
  {
    name: 'change a price beside an unchanged TOASTed description',
    weight: 3,
    async run(client, random) {
      await client.query(
        `update shop.products set price = price + 0.01, price_history = array_append(price_history[1:5], price),
           weight = case when weight = 'NaN' then '-0' else weight end where id = $1`,
        [1 + random(PRODUCTS)],
      );
      return 'commit';
    },
  },
  {
    name: 'rewrite a TOASTed description',
    weight: 1,
    async run(client, random, unique) {
      await client.query(
        `update shop.products set description = (select string_agg(md5($2 || k), '') from generate_series(1, 150) k),
           photo = decode(md5($2), 'hex') where id = $1`,
        [1 + random(PRODUCTS), unique],
      );
      return 'commit';
    },
  },
  {
    name: 'count in a hot row',
    weight: 4,
    async run(client, random) {
      await client.query('update shop.counters set value = value + 1 where name = $1', [
        `counter ${1 + random(20)}`,
      ]);
      return 'commit';
    },
  },
  {
    name: 'change keys',
    weight: 3,
    async run(client, random, unique) {
      const session = `s${1 + random(SESSIONS)}`;
      await client.query('update shop.web_sessions set token = $2, score = score + 1 where token = $1', [
        session,
        `t${unique}`,
      ]);
      // the freed key is taken again in the same transaction
      await client.query(
        `insert into shop.web_sessions (token, started_at, score) values ($1, now(), 'NaN') on conflict do nothing`,
        [session],
      );
      await client.query('update shop.addresses set n = n + 10 where customer_id = $1', [
        1 + random(CUSTOMERS),
      ]);
      await client.query(
        'update shop.payments set id = $2 where id = (select id from shop.payments where order_id = $1 limit 1)',
        [1 + random(ORDERS), randomUUID()],
      );
      return 'commit';
    },
  },
  {
    name: 'move events between partitions',
    weight: 2,
    async run(client, random) {
      await client.query(
        `update audit.events set at = at + interval '31 days'
         where at >= $1::timestamptz and at < $1::timestamptz + interval '10 minutes'`,
        [new Date(Date.UTC(2026, 0, 1) + random(80_000) * 60_000)],
      );
      return 'commit';
    },
  },
  {
    name: 'write and drop a bulk of events',
    weight: 1,
    async run(client, random) {
      await client.query(
        `insert into audit.events (at, kind, actor, payload)
         select now() - n * interval '1 hour', 'bulk', '::1', jsonb_build_object('n', n) from generate_series(1, 150) n`,
      );
      await client.query(`delete from audit.events where kind = 'bulk' and id % 50 = $1`, [random(50)]);
      return 'commit';
    },
  },
  {
    name: 'welcome a customer',
    weight: 2,
    async run(client, random, unique) {
      const { rows } = await client.query<{ id: string }>(
        `insert into shop.customers (public_id, email, full_name, preferences, network)
         values ($1, $2, 'Ünï "Quoted" \\', '{"deep": {"er": [1, 2.50, null]}}', '10.0.0.0/8') returning id`,
        [randomUUID(), `new-${unique}@example.org`],
      );
      await client.query(
        `insert into shop.addresses select $1, n, '', null, 'DE', null, 'empty' from generate_series(1, $2::int) n`,
        [rows[0]?.id, 1 + random(3)],
      );
      return 'commit';
    },
  },
];
