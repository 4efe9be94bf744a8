-- What PostgreSQL 15 and later know.
create table hard.from_15 (
  id integer primary key, a integer, b integer,
  constraint one_null unique nulls not distinct (a, b),
  constraint some_set foreign key (a, b) references hard.rings_b (id, a) on delete set null (b)
);
create unique index from_15_null on hard.from_15 (b) nulls not distinct where a > 0;
create view hard.invoked with (security_invoker = true) as select id, a from hard.from_15;
create unlogged sequence hard.unlogged_numbers;
